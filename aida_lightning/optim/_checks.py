"""Checks of the options that the optimizers share, in torch's wording."""

from collections.abc import Sequence
from numbers import Real

from torch import Tensor


def check_lr(lr: object) -> None:
    """Raise unless ``lr`` is a number, or a tensor of one element, that is at least 0."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        lr = lr.item()
    # Written so that NaN, which no comparison holds for, is refused too; likewise below.
    if not 0.0 <= _number("learning rate", lr):
        raise ValueError(f"Invalid learning rate: {lr}, it must be >= 0")


def check_betas(betas: object) -> None:
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


def check_positive(name: str, value: object) -> None:
    """Raise unless ``value`` is a number above 0; ``name`` is what the message calls it."""
    if not 0.0 < _number(f"{name} value", value):
        raise ValueError(f"Invalid {name} value: {value}, it must be > 0")


def check_non_negative(name: str, value: object) -> None:
    """Raise unless ``value`` is a number of at least 0; ``name`` is what the message calls it."""
    if not 0.0 <= _number(f"{name} value", value):
        raise ValueError(f"Invalid {name} value: {value}, it must be >= 0")


def check_order(k: object) -> None:
    """Raise unless ``k``, the number of mutual projections, is an int of at least 0."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise ValueError(f"Invalid number of projections k: {k!r}, it must be an int >= 0")


def check_gradient(optimizer: object, gradient: Tensor) -> None:
    """Raise where ``gradient`` is sparse or complex, which ``optimizer`` has no equation for."""
    for kind, found in (("sparse", gradient.is_sparse), ("complex", gradient.is_complex())):
        if found:
            raise RuntimeError(f"{type(optimizer).__name__} does not support {kind} gradients")


def _number(what: str, value: object) -> float:
    # bool is a number to Python, but `eps=True` is a mistake; so is "1e-3" out of a YAML file.
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Invalid {what}: {value!r}, it must be a number")
    return float(value)
