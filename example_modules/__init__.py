"""LightningModules and networks of the examples and experiments."""
