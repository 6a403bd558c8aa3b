"""The learning rate that multiplies the momentum, or the gradient, and its stepsizes."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from aida_lightning.diagnostics._dispatch import ByClass


def effective_learning_rate(
    group: dict[str, Any],
    state: dict[str, Any],
    lr: float | Tensor | None = None,
    optimizer: Optimizer | None = None,
) -> float | Tensor:
    r"""Return :math:`\eta / (1 - \beta_1^t)`, the factor of :math:`m \, s` in the last update.

    For NAdam it is :math:`\eta \, \mu_{t+1} / (1 - \prod_{i \le t+1} \mu_i)` with its momenta
    :math:`\mu`. The table on the page on reading the charts has those of other optimizers.

    Args:
        group: the parameter group that the layer is in. Without ``betas`` there is no correction
            of the momentum's bias, and the learning rate itself is returned.
        state: ``optimizer.state[parameter]`` of the layer.
        lr: the learning rate of that update. None, the default, takes the group's present one.
        optimizer: the optimizer, whose class may have a rule of its own. None, the default, leaves
            it at the group's and the state's entries.

    Returns:
        A float; or a 0-dim tensor on the device, which is not read on the host, if the learning
        rate is a tensor or the step is one on a GPU.

    Example:
        >>> round(effective_learning_rate({"lr": 1e-3, "betas": (0.9, 0.999)}, {"step": 1}), 6)
        0.01
    """
    lr = group["lr"] if lr is None else lr
    lr = lr.squeeze() if isinstance(lr, Tensor) else lr
    return learning_rate(optimizer, group, state, lr)


def bias_corrected(
    optimizer: Optimizer | None, group: dict[str, Any], state: dict[str, Any], lr: float | Tensor
) -> float | Tensor:
    r"""Compute :math:`\eta / (1 - \beta_1^t)` from the learning rate of the step."""
    t = step_of(group, state)
    if "betas" not in group or t is None:
        return lr
    beta1 = group["betas"][0]
    if "mu_product" in state:  # NAdam's own schedule of beta1, of which the next is looked ahead to
        beta1 = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * group["momentum_decay"]))
        looked_ahead: float | Tensor = lr * beta1 / (1 - on_host(state["mu_product"]) * beta1)
        return looked_ahead
    corrected: float | Tensor = lr / (1 - beta1**t)
    return corrected


learning_rate: ByClass[float | Tensor] = ByClass(bias_corrected)


def given_rate(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any], lr: Any) -> Any:
    """Return the learning rate itself."""
    return lr


def no_rate(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any], lr: Any) -> float:
    """Return 1, for the learning rate does not enter."""
    return 1.0


def decayed_rate(
    optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any], lr: Any
) -> Any:
    r"""Compute :math:`\eta / (1 + (t - 1) \gamma)`, where :math:`\gamma` is ``lr_decay``."""
    return lr / (1 + (step_of(group, state) - 1) * group["lr_decay"])


def relative_rate(
    optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any], lr: Any
) -> Any:
    r"""Compute :math:`\min(\eta, 1 / \sqrt t)`."""
    bound = step_of(group, state) ** -0.5
    return lr.clamp(max=bound) if isinstance(lr, Tensor) else min(lr, bound)


def debiased_rate(
    optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any], lr: Any
) -> Any:
    r"""Compute :math:`\eta / (1 - \beta_1^t)` unless the group's options leave out the division."""
    if group.get("adam_debias") or not group.get("bias_correction", True):
        return lr
    return bias_corrected(optimizer, group, state, lr)


def step_of(group: dict[str, Any], state: dict[str, Any]) -> Any:
    """Return the count of steps, which some optimizers keep in the group; None without one."""
    return on_host(state["step"] if "step" in state else group.get("step"))


def on_host(number: Any) -> Any:
    """Return a tensor's number where it is on the host, and in float64 on a device."""
    if not isinstance(number, Tensor):
        return number
    return number.item() if number.device.type == "cpu" else number.double().squeeze()
