"""LightningModules, one file a homework; plain networks in `modules.nets`."""
