"""What a user can fix in data: one line that says which file, where, what was expected, and how to fix it."""

from collections.abc import Sized


class DataError(Exception):
    """Data on disk (or on the way to it) is not what was expected; the message is shown to the user as it is."""


def and_more(items: Sized) -> str:
    """What follows the first of several items in a message."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
