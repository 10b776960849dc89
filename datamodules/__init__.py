"""LightningDataModules, one file a homework, on the shared parts beside them."""
