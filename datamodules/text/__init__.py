"""Sentence pairs: reading, cleaning, tokens, batches."""
