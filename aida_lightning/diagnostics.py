"""The adaptive stepsizes of an optimizer, and their statistics: pure functions of its state."""

from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, NAdam, Optimizer, RAdam

from aida_lightning.optim import LayerwiseOptimizer, Yogi


@singledispatch
def stepsize(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    r"""Compute the elementwise adaptive stepsizes of one layer from an optimizer's state.

    They are the :math:`s` of :math:`x \leftarrow x - \eta \, m / (1 - \beta_1^t) \, s`, without the
    learning rate and without the correction of the momentum's bias. The family, Yogi and torch's
    Adam, AdamW, NAdam and RAdam are known. To add an optimizer, register a function for its class.

    Args:
        optimizer: the optimizer; its class chooses the function.
        group: the parameter group that the layer is in.
        state: ``optimizer.state[parameter]`` of the layer, which is not empty. Neither it nor the
            group may be changed.

    Returns:
        A tensor of any shape, on the state's device; reading a value of it on the host would make
        a GPU wait.

    Raises:
        NotImplementedError: the class, and none of its bases, is known.

    Example:
        >>> import torch
        >>> @stepsize.register
        ... def _(optimizer: torch.optim.RMSprop, group, state):
        ...     return 1 / (state["square_avg"].sqrt() + group["eps"])
        >>> has_stepsize(torch.optim.RMSprop([torch.zeros(1)]))
        True
    """
    raise NotImplementedError(
        f"{type(optimizer).__name__} has no adaptive stepsizes that are known"
    )


def has_stepsize(optimizer: Optimizer) -> bool:
    """Tell whether ``stepsize`` knows the optimizer's class.

    Example:
        >>> import torch
        >>> has_stepsize(torch.optim.SGD([torch.zeros(1)]))
        False
    """
    return stepsize.dispatch(type(optimizer)) is not stepsize.dispatch(object)


def mean_and_std(values: Tensor) -> Tensor:
    """Compute the mean and the population standard deviation over all elements.

    Args:
        values: a real tensor of any shape with at least one element.

    Returns:
        A tensor of shape (2,), on ``values``' device, in its dtype or, for half precision,
        in float32. Both come from one pass that merges (n, mean, M2), so a spread far below the
        mean is not lost.

    Example:
        >>> import torch
        >>> mean_and_std(torch.tensor([1.0, 3.0]))
        tensor([2., 1.])
    """
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    variance, mean = torch.var_mean(values, correction=0)
    return torch.stack((mean, variance.sqrt()))


@stepsize.register
def _layerwise(
    optimizer: LayerwiseOptimizer, group: dict[str, Any], state: dict[str, Any]
) -> Tensor:
    return optimizer._stepsize(group, state)


@stepsize.register(Adam)
@stepsize.register(AdamW)  # no Adam itself in older torch
@stepsize.register(NAdam)
@stepsize.register(Yogi)
@torch.no_grad()
def _adam(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    v = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    if v.is_complex():
        v = torch.view_as_real(v)
    correction2 = 1 - group["betas"][1] ** _double(state["step"])
    s: Tensor = v.sqrt().div_(correction2.sqrt()).add_(group["eps"]).reciprocal_()
    return s


@stepsize.register(RAdam)
@torch.no_grad()
def _radam(optimizer: RAdam, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    beta2, t = group["betas"][1], _double(state["step"])
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * beta2**t / (1 - beta2**t)
    rectification = ((length - 4) * (length - 2) * longest) / (
        (longest - 4) * (longest - 2) * length
    )
    v = torch.view_as_real(v) if (v := state["exp_avg_sq"]).is_complex() else v
    # RAdam adds eps before the bias correction. While the average is too short it does not adapt.
    adaptive = (rectification * (1 - beta2**t)).sqrt() / (v.sqrt() + group["eps"])
    return torch.where((length > 5).to(v.device), adaptive.to(v.dtype), 1.0)


def _double(step: Tensor | float) -> Tensor:
    return torch.as_tensor(step, dtype=torch.float64)
