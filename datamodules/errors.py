"""What a user can mend in data: one line that says which file, where, what was expected, and how to mend it."""


class DataError(Exception):
    """Data on disk (or on the way to it) is not what was expected; the message is shown to the user as it is."""
