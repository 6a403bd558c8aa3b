"""The update of the family, one module a backend; `rule.Kernel` is what each of them has."""
