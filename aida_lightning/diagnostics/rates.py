"""The learning rate that multiplies the momentum, or the gradient, and the stepsizes."""

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

    For NAdam, it is :math:`\eta \, \mu_{t+1} / (1 - \prod_{i \le t+1} \mu_i)` with the optimizer's
    momenta :math:`\mu`. For other optimizers, see the table on the page about reading the charts.

    Args:
        group: parameter group of the layer. If it has no ``betas``, the momentum's bias is not
            corrected, and the function returns the learning rate itself.
        state: ``optimizer.state[parameter]`` of the layer.
        lr: learning rate of that update. None, the default, uses the group's current one.
        optimizer: the optimizer, whose class may have its own rule. With None, the default, the
            group and the state alone determine the result.

    Returns:
        A float. If the learning rate is a tensor, or the step is a tensor on a GPU: a 0-dim tensor
        on the device, which the host does not read.

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
    if "mu_product" in state:  # NAdam schedules beta1 and looks ahead to its next value.
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
    """Return 1, because the learning rate does not enter the step."""
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
    r"""Compute :math:`\eta / (1 - \beta_1^t)`, or :math:`\eta` if an option turns that off."""
    if group.get("adam_debias") or not group.get("bias_correction", True):
        return lr
    return bias_corrected(optimizer, group, state, lr)


def step_of(group: dict[str, Any], state: dict[str, Any]) -> Any:
    """Return the number of steps, which some optimizers keep in the group; None without one."""
    return on_host(state["step"] if "step" in state else group.get("step"))


def on_host(number: Any) -> Any:
    """Return a tensor's number if it is on the host, or a float64 tensor if it is on a device."""
    if not isinstance(number, Tensor):
        return number
    return number.item() if number.device.type == "cpu" else number.double().squeeze()
