"""What `leeml export` writes: the graphs of a network, the facts beside them, and files that are copied as they are."""
