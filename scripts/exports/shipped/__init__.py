"""Files that an exported folder gets as they are: one example a homework, and what loads the graphs."""
