"""One file a verb of the command `leeml`."""
