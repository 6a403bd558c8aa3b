"""The command line: comparisons of optimizers and the paper's figures."""
