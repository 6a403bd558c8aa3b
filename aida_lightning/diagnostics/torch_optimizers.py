"""The adaptive stepsizes of torch's own optimizers."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, NAdam, Optimizer, RAdam

from aida_lightning.diagnostics.reductions import real
from aida_lightning.diagnostics.state import NoStepsize, stepsize
from aida_lightning.optim import Yogi


@stepsize.register(Adam)
@stepsize.register(AdamW)  # no Adam itself in older torch
@stepsize.register(NAdam)
@stepsize.register(Yogi)
@torch.no_grad()
def adam(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    """Divide by the root of the corrected second moment, and by eps."""
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


for cls, why in {
    torch.optim.SGD: "one learning rate moves all elements of a layer",
}.items():
    stepsize.register(cls, NoStepsize(why))
