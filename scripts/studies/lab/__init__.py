"""What all studies share: statements, measuring, training, the page."""
