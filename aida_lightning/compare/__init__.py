"""Comparisons of optimizers: the paper's experiments, and the user's own."""
