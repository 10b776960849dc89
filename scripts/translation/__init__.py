"""Lines of text through translators, for the subcommands translate and distill."""
