"""The update of the family, one module per backend; `rule.Kernel` is what each of them has."""
