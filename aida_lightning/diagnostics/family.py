"""The functions that read the state of the package's own optimizers: the family and baselines."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aida_lightning.diagnostics.adapter import Adapter
from aida_lightning.diagnostics.formulas import adam
from aida_lightning.diagnostics.rates import effective_learning_rate, step_of
from aida_lightning.diagnostics.reductions import real
from aida_lightning.diagnostics.state import last_update, stepsize, stepsize_ceiling
from aida_lightning.optim import MSVAG, Fromage, LayerwiseOptimizer, SETAdam, Yogi


@stepsize.register
def _layerwise(
    optimizer: LayerwiseOptimizer, group: dict[str, Any], state: dict[str, Any]
) -> Tensor:
    return optimizer._stepsize(group, state)


@stepsize_ceiling.register
def _(optimizer: LayerwiseOptimizer, group: dict[str, Any]) -> float:
    lowest_root: float = (group["eps"] / (1 - group["betas"][1])) ** 0.5
    return 1 / (lowest_root + float(group["eps"] if optimizer.eps_in_denominator else 0.0))


@stepsize_ceiling.register
def _(optimizer: SETAdam, group: dict[str, Any]) -> float:
    ceiling: float = group["eps"] ** -0.5 / (1 - group["tau"])
    return ceiling


@last_update.register
@torch.no_grad()
def _(
    optimizer: LayerwiseOptimizer,
    group: dict[str, Any],
    state: dict[str, Any],
    param: Tensor,
    lr: float | Tensor | None = None,
) -> Tensor:
    s = optimizer._stepsize(group, state, applied=True)
    update = real(state["exp_avg"]) * s * -effective_learning_rate(group, state, lr)
    if group["decoupled_weight_decay"] and group["weight_decay"]:
        x, decay = real(param), (group["lr"] if lr is None else lr) * group["weight_decay"]
        # x = (1 - decay) * x_before + update
        update = x - (x - update) / (1 - decay)
    return update


def msvag(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    r"""Compute :math:`\gamma`, the damping of each element by its noise; 0/0 counts as 0.

    Balles and Hennig, arXiv 1705.07774.
    """
    (beta1, beta2), t = group["betas"], step_of(group, state)
    m_sq = (state["exp_avg"] / (1 - beta1**t)).square()
    v = state["exp_avg_sq"] / (1 - beta2**t)
    rho = (1 - beta1) * (1 + beta1**t) / ((1 + beta1) * (1 - beta1**t))
    gamma: Tensor = m_sq / (m_sq + rho * ((v - m_sq) / (1 - rho)))
    return gamma.nan_to_num_(nan=0.0)


Adapter(adam)(Yogi)
Adapter(msvag)(MSVAG)
Adapter("one rate, a fraction of the layer's norm, moves all elements of a layer")(Fromage)
