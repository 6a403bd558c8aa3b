"""One update rule, one file a backend, all with the signature ``(layers, rule) -> None``."""
