"""LightningDataModules of the examples and experiments."""
