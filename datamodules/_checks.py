"""Checks of numeric arguments."""


def check_at_least(least: float, **values: float | None) -> None:
    """Raise a ValueError that names the first of ``values`` under ``least``; None is allowed."""
    for name, value in values.items():
        if value is not None and not value >= least:  # This form refuses a NaN, too.
            raise ValueError(f"Invalid {name} value: {value}, it must be at least {least}")


def check_probabilities(**values: float) -> None:
    """Raise a ValueError that names the first of ``values`` outside [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"Invalid {name} value: {value}, it must be in [0, 1)")
