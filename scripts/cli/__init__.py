"""The command line: parsers, configs, messages."""
