"""One update rule, one file a backend."""
