"""One file per subcommand of `leeml`; the folders hold what they share."""
