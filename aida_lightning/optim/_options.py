"""The options that the optimizers share, and the values that each of them may have."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

from torch import Tensor


def options_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Pick the options from the local variables of a constructor that has just been entered."""
    return {
        name: value
        for name, value in arguments.items()
        if name not in ("self", "params", "__class__")
    }


def check_options(options: Mapping[str, Any]) -> None:
    """Raise in torch's wording unless every option that has a range is within it."""
    for name, check in _CHECKS.items():
        if name in options:
            check(options[name])


def _check_lr(lr: object) -> None:
    """Raise unless ``lr`` is a number, or a tensor of one element, that is at least 0."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        lr = lr.item()
    # This and the comparisons below refuse NaN too, for which no comparison holds.
    if not 0.0 <= _number("learning rate", lr):
        raise ValueError(f"Invalid learning rate: {lr}, it must be >= 0")


def _check_betas(betas: object) -> None:
    """Raise unless ``betas`` is a pair of numbers in [0, 1)."""
    if isinstance(betas, str) or not isinstance(betas, Sequence):
        raise TypeError(f"Invalid betas: {betas!r}, they must be a pair of numbers")
    if len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas!r}, they must be a pair of numbers")
    for index, beta in enumerate(betas):
        if not 0.0 <= _number(f"beta parameter at index {index}", beta) < 1.0:
            raise ValueError(
                f"Invalid beta parameter at index {index}: {beta}, it must be in [0, 1)"
            )


def _check_positive(name: str, value: object) -> None:
    """Raise unless ``value``, which the message calls ``name``, is a number above 0."""
    if not 0.0 < _number(f"{name} value", value):
        raise ValueError(f"Invalid {name} value: {value}, it must be > 0")


def _check_non_negative(name: str, value: object) -> None:
    """Raise unless ``value``, which the message calls ``name``, is a number of at least 0."""
    if not 0.0 <= _number(f"{name} value", value):
        raise ValueError(f"Invalid {name} value: {value}, it must be >= 0")


def _check_order(k: object) -> None:
    """Raise unless ``k``, the number of mutual projections, is an int of at least 0."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise ValueError(f"Invalid number of projections k: {k!r}, it must be an int >= 0")


def _number(what: str, value: object) -> float:
    # bool is a number to Python, but `eps=True` is a mistake; so is "1e-3" out of a YAML file.
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Invalid {what}: {value!r}, it must be a number")
    return float(value)


_CHECKS: dict[str, Callable[[object], None]] = {
    "lr": _check_lr,
    "betas": _check_betas,
    "eps": partial(_check_positive, "epsilon"),
    "weight_decay": partial(_check_non_negative, "weight_decay"),
    "initial_accumulator": partial(_check_non_negative, "initial_accumulator"),
    "k": _check_order,
    "xi": partial(_check_positive, "xi"),
}
