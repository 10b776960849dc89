"""Folders of images: layouts, the decoded cache, rows of training."""
