"""The options that the optimizers share, and the values that each option accepts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

from aida_lightning.optim._partition import checked_partition


def options_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Pick the options from the local variables of a constructor that has just been entered."""
    return {
        name: value
        for name, value in arguments.items()
        if name not in ("self", "params", "__class__")
    }


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert options to plain numbers, and raise torch's errors for those out of range.

    A checkpoint that contains NumPy's numbers or a configuration library's sequences cannot be
    loaded with ``weights_only``.
    """
    return {
        name: _KINDS[name](_native(value)) if name in _KINDS else value
        for name, value in options.items()
    }


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the options of the family to plain form, and raise torch's errors for wrong ones."""
    plain = plain_options(options)
    if plain["fused"] and plain["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    if plain["fused"] and (plain["differentiable"] or plain["capturable"]):
        raise RuntimeError("`fused` does not support `differentiable` or `capturable`")
    if isinstance(plain["lr"], Tensor) and plain["foreach"] and not plain["capturable"]:
        raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
    return plain


def _native(value: Any) -> Any:
    is_scalar = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim)
    return value.item() if is_scalar else value


def _flag(name: str, value: object) -> bool | None:
    """Return True, False or None, and refuse text: "false" would count as true."""
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"Invalid {name} value: {value!r}, it must be True or False")
    return value


def _lr(lr: object) -> float | Tensor:
    """Return a number or one-element tensor that is at least 0."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        _lr(lr.item())
        return lr
    # This and the comparisons below also refuse NaN, because no comparison with NaN holds.
    if not 0.0 <= (number := _number("learning rate", lr)):
        raise ValueError(f"Invalid learning rate: {lr}, it must be >= 0")
    return number


def _betas(betas: object) -> tuple[float, float]:
    """Return a pair of numbers in [0, 1) from any sequence."""
    if isinstance(betas, str) or not isinstance(betas, Sequence | np.ndarray):
        raise TypeError(f"Invalid betas: {betas!r}, they must be a pair of numbers")
    if len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas!r}, they must be a pair of numbers")
    numbers = [_fraction(f"beta parameter at index {i}", beta) for i, beta in enumerate(betas)]
    return numbers[0], numbers[1]


def _fraction(what: str, value: object) -> float:
    """Return a number in [0, 1); the error message calls it ``what``."""
    if not 0.0 <= (number := _number(what, value)) < 1.0:
        raise ValueError(f"Invalid {what}: {number}, it must be in [0, 1)")
    return number


def _positive(name: str, value: object) -> float:
    """Return a number above 0; the error message calls it ``name``."""
    if not 0.0 < (number := _number(f"{name} value", value)):
        raise ValueError(f"Invalid {name} value: {value}, it must be > 0")
    return number


def _non_negative(name: str, value: object) -> float:
    """Return a number of at least 0; the error message calls it ``name``."""
    if not 0.0 <= (number := _number(f"{name} value", value)):
        raise ValueError(f"Invalid {name} value: {value}, it must be >= 0")
    return number


def _order(k: object) -> int:
    """Return ``k``, the number of mutual projections, as an integer of at least 0."""
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 0:
        raise ValueError(f"Invalid number of projections k: {k!r}, it must be an int >= 0")
    return int(k)


def _number(what: str, value: object) -> float:
    # bool is a number to Python, but `eps=True` is a mistake, as is "1e-3" from a YAML file.
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Invalid {what}: {value!r}, it must be a number")
    return float(value)


_FLAGS = ("decoupled_weight_decay", "foreach", "fused", "maximize", "capturable", "differentiable")
_KINDS: dict[str, Callable[[object], Any]] = {
    "lr": _lr,
    "betas": _betas,
    "eps": partial(_positive, "epsilon"),
    "weight_decay": partial(_non_negative, "weight_decay"),
    "initial_accumulator": partial(_non_negative, "initial_accumulator"),
    "k": _order,
    "partition": checked_partition,
    **{name: partial(_flag, name) for name in _FLAGS},
    "xi": partial(_positive, "xi"),
    "tau": partial(_fraction, "tau value"),
}
