"""Checks of the monitor's arguments."""

from collections.abc import Iterable

from lightning.fabric.utilities.exceptions import MisconfigurationException


def check_interval(logging_interval: object, every_n_steps: object) -> None:
    """Raise unless the interval is known, and no number of steps is given for one of epochs."""
    if logging_interval not in ("step", "epoch"):
        raise MisconfigurationException(
            f"logging_interval must be 'step' or 'epoch', got {logging_interval!r}"
        )
    if logging_interval == "epoch" and every_n_steps is not None:
        raise MisconfigurationException(
            f"every_n_steps={every_n_steps} has no meaning with logging_interval='epoch'"
        )


def check_count(name: str, value: object) -> None:
    """Raise unless the value is None or an int of at least 1."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise MisconfigurationException(f"{name} must be an int >= 1 or None, got {value!r}")
    if value < 1:
        raise MisconfigurationException(f"{name} must be >= 1, got {value}")


def listed(name: str, value: object, kind: str) -> list[str]:
    """Give one string or several as a list, and raise where there is another thing or none."""
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, Iterable) or not all(isinstance(s, str) for s in strings):
        raise MisconfigurationException(f"{name} must be a {kind} or a list of them, got {value!r}")
    if not (strings := [*strings]):
        raise MisconfigurationException(f"{name} must name at least one {kind}, got {value!r}")
    return strings
