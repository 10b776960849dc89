"""What modules draw."""
