"""The adaptive stepsizes of an optimizer, and what else its state says: pure functions."""

from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam

from aida_lightning.diagnostics.reductions import real
from aida_lightning.optim import LayerwiseOptimizer, Yogi


@singledispatch
def stepsize(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    r"""Compute the elementwise adaptive stepsizes of one layer from an optimizer's state.

    They are the :math:`s` of :math:`x \leftarrow x - \eta \, m / (1 - \beta_1^t) \, s`, without the
    learning rate and without the correction of the momentum's bias. The classes that are known are
    those of the family, Yogi, and torch's Adam, AdamW, NAdam and RAdam. To add another, register a
    function for it.

    Args:
        optimizer: the optimizer; its class chooses the function.
        group: the parameter group that the layer is in.
        state: ``optimizer.state[parameter]`` of the layer, which is not empty. Neither it nor the
            group may be changed.

    Returns:
        A real tensor on the state's device, of any shape.

    Raises:
        NotImplementedError: neither the class nor any of its bases is known.

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


@singledispatch
def stepsize_ceiling(optimizer: Optimizer, group: dict[str, Any]) -> float | None:
    r"""Return the largest value that an adaptive stepsize can have, by the options of its group.

    It is :math:`\sqrt{(1 - \beta_2) / \epsilon}` for the family, which adds :math:`\epsilon` to
    :math:`v` at every step. AdaBelief and Adam+ add it to the denominator as well, so that their
    ceiling is just below. To add an optimizer, register a function for its class.

    Args:
        optimizer: the optimizer; its class chooses the function.
        group: the parameter group.

    Returns:
        The ceiling, or None where none is known of the class.

    Example:
        >>> import torch
        >>> from aida_lightning import Aida
        >>> optimizer = Aida([torch.zeros(1)], betas=(0.9, 0.999), eps=1e-5)
        >>> round(stepsize_ceiling(optimizer, optimizer.param_groups[0]), 2)
        10.0
    """
    return None


def effective_learning_rate(
    group: dict[str, Any], state: dict[str, Any], lr: float | Tensor | None = None
) -> float | Tensor:
    r"""Return :math:`\eta / (1 - \beta_1^t)`, the factor of :math:`m \, s` in the last update.

    For NAdam it is :math:`\eta \, \mu_{t+1} / (1 - \prod_{i \le t+1} \mu_i)` with its momenta
    :math:`\mu`.

    Args:
        group: the parameter group that the layer is in. Without ``betas`` there is no correction
            of the momentum's bias, and the learning rate itself is returned.
        state: ``optimizer.state[parameter]`` of the layer.
        lr: the learning rate of that update. None, the default, takes the group's present one.

    Returns:
        A float; or a 0-dim tensor on the device, which is not read on the host, if the learning
        rate is a tensor or the step is one on a GPU.

    Example:
        >>> round(effective_learning_rate({"lr": 1e-3, "betas": (0.9, 0.999)}, {"step": 1}), 6)
        0.01
    """
    lr = group["lr"] if lr is None else lr
    lr = lr.squeeze() if isinstance(lr, Tensor) else lr
    if "betas" not in group or "step" not in state:
        return lr
    step = state["step"]
    if isinstance(step, Tensor):
        step = step.item() if step.device.type == "cpu" else step.double()
    beta1 = group["betas"][0]
    if "mu_product" in state:  # NAdam's own schedule of beta1, of which the next is looked ahead to
        beta1 = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * group["momentum_decay"]))
        product = state["mu_product"]
        product = product.item() if product.device.type == "cpu" else product.double()
        looked_ahead: float | Tensor = lr * beta1 / (1 - product * beta1)
        return looked_ahead
    corrected: float | Tensor = lr / (1 - beta1**step)
    return corrected


@singledispatch
def last_update(
    optimizer: Optimizer,
    group: dict[str, Any],
    state: dict[str, Any],
    param: Tensor,
    lr: float | Tensor | None = None,
) -> Tensor | None:
    r"""Compute from a layer's state what its last step added to the parameter.

    It is :math:`-\eta \, m / (1 - \beta_1^t) \, s`, plus the part of a decoupled weight decay. Only
    the family's is known. In half precision it is the update from before :math:`x` was rounded.

    Args:
        optimizer: the optimizer; its class chooses the function.
        group: the parameter group that the layer is in.
        state: ``optimizer.state[parameter]`` of the layer, which is not empty.
        param: the parameter, which no one has changed since.
        lr: the learning rate of that update. None, the default, takes the group's present one.

    Returns:
        A real tensor of the parameter's shape (complex parameters: a last dimension of 2 is added),
        or None where the class is not known. Only a copy from before the step helps then.

    Example:
        >>> import torch
        >>> from aida_lightning import Aida
        >>> param = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = Aida([param])
        >>> param.grad = torch.ones(2)
        >>> optimizer.step()
        >>> (group,) = optimizer.param_groups
        >>> torch.allclose(last_update(optimizer, group, optimizer.state[param], param), param)
        True
    """
    return None


@singledispatch
def momentum(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any]) -> Tensor | None:
    """Return the moving average of gradients that a step goes along; None where there is none."""
    for name in ("exp_avg", "momentum_buffer"):
        if isinstance(state.get(name), Tensor):
            found: Tensor = state[name]
            return found
    return None


def why_none(optimizer: Optimizer) -> str | None:
    """Say why a known class has no adaptive stepsizes; return None for others."""
    return "it has one learning rate for all elements" if type(optimizer) is SGD else None


@stepsize.register
def _layerwise(
    optimizer: LayerwiseOptimizer, group: dict[str, Any], state: dict[str, Any]
) -> Tensor:
    return optimizer._stepsize(group, state)


@stepsize_ceiling.register
def _(optimizer: LayerwiseOptimizer, group: dict[str, Any]) -> float:
    lowest_root: float = (group["eps"] / (1 - group["betas"][1])) ** 0.5
    return 1 / (lowest_root + float(group["eps"] if optimizer.eps_in_denominator else 0.0))


@last_update.register
@torch.no_grad()
def _(
    optimizer: LayerwiseOptimizer,
    group: dict[str, Any],
    state: dict[str, Any],
    param: Tensor,
    lr: float | Tensor | None = None,
) -> Tensor:
    s = optimizer._stepsize(group, state)
    if optimizer.layer_mean == "stepsize":
        s = s.mean()
    update = real(state["exp_avg"]) * s * -effective_learning_rate(group, state, lr)
    if group["decoupled_weight_decay"] and group["weight_decay"]:
        x, decay = real(param), (group["lr"] if lr is None else lr) * group["weight_decay"]
        # x = (1 - decay) * x_before + update
        update = x - (x - update) / (1 - decay)
    return update


@stepsize.register(Adam)
@stepsize.register(AdamW)  # no Adam itself in older torch
@stepsize.register(NAdam)
@stepsize.register(Yogi)
@torch.no_grad()
def _adam(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    v = real(state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"])
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
    v = real(state["exp_avg_sq"])
    # RAdam adds eps before the bias correction. While the average is too short it does not adapt.
    adaptive = (rectification * (1 - beta2**t)).sqrt() / (v.sqrt() + group["eps"])
    return torch.where((length > 5).to(v.device), adaptive.to(v.dtype), 1.0)


def _double(step: Tensor | float) -> Tensor:
    return torch.as_tensor(step, dtype=torch.float64)
