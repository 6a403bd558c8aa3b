"""Checks of the results of functions that users register for their own optimizers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aida_lightning import diagnostics


def stepsize(optimizer: Optimizer, *args: Any) -> Tensor:
    """Call ``diagnostics.stepsize``, which must return a real tensor."""
    result: Tensor = _call(diagnostics.stepsize, "a dense real tensor", _is_real, optimizer, *args)
    return result


def last_update(optimizer: Optimizer, *args: Any) -> Tensor | None:
    """Call ``diagnostics.last_update``, which must return a real tensor or None."""
    allowed = "a dense real tensor or None"
    result: Tensor | None = _call(
        diagnostics.last_update, allowed, lambda x: x is None or _is_real(x), optimizer, *args
    )
    return result


def stepsize_ceiling(optimizer: Optimizer, *args: Any) -> float | None:
    """Call ``diagnostics.stepsize_ceiling``, which must return a number or None."""
    result: float | None = _call(
        diagnostics.stepsize_ceiling,
        "a float or None",
        lambda x: x is None or isinstance(x, float | int),
        optimizer,
        *args,
    )
    return result


def momentum(optimizer: Optimizer, *args: Any) -> Tensor | None:
    """Call ``diagnostics.momentum``, which must return a tensor or None."""
    return _tensor_or_none(diagnostics.momentum, optimizer, *args)


def second_moment(optimizer: Optimizer, *args: Any) -> Tensor | None:
    """Call ``diagnostics.second_moment``, which must return a tensor or None."""
    return _tensor_or_none(diagnostics.second_moment, optimizer, *args)


def _tensor_or_none(function: Any, optimizer: Optimizer, *args: Any) -> Tensor | None:
    is_allowed = lambda x: x is None or isinstance(x, Tensor)  # noqa: E731
    result: Tensor | None = _call(function, "a tensor or None", is_allowed, optimizer, *args)
    return result


def _call(
    function: Any, allowed: str, is_allowed: Callable[[Any], bool], optimizer: Optimizer, *args: Any
) -> Any:
    result = function(optimizer, *args)
    if is_allowed(result):
        return result
    registered = function.dispatch(type(optimizer))
    name = getattr(registered, "__qualname__", type(registered).__qualname__)
    raise TypeError(
        f"{registered.__module__}.{name}, which is registered with "
        f"`{function.__name__}.register` for {type(optimizer).__name__}, must return {allowed}, "
        f"got {result!r}"
    )


def _is_real(result: object) -> bool:
    """Tell whether a function's result is a dense real tensor with values."""
    return (
        isinstance(result, torch.Tensor)
        and result.is_floating_point()
        and result.layout is torch.strided
        and not result.is_meta
    )
