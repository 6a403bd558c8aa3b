"""The functions that read the state of other packages' optimizers, without importing any of them.

An option that changes what the stepsizes multiply, such as ``cautious``, does not change the
stepsizes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aida_lightning.diagnostics import _dispatch
from aida_lightning.diagnostics.adapter import Adapter
from aida_lightning.diagnostics.formulas import (
    Entries,
    adadelta,
    adagrad,
    adam,
    adamax,
    factored,
    option,
    rectified_adam,
    uncorrected,
)
from aida_lightning.diagnostics.rates import debiased_rate, given_rate, step_of
from aida_lightning.diagnostics.torch_optimizers import ADAM, ONE_RATE, ORTHOGONAL

SIGN = "its update is a sign, which has the same size for all elements"
MATRIX = "a matrix multiplies its momentum, instead of one factor per element"


def maybe_rectified(
    optimizer: Optimizer,
    group: Entries,
    state: Entries,
    *,
    plain: Callable[..., Tensor] = adam,
    **options: Any,
) -> Tensor:
    """Compute the stepsizes of ``plain`` or, with the option ``rectify``, of ``rectified_adam``.

    A rectified optimizer that has the option ``amsgrad`` ignores it.
    """
    if option(optimizer, group, "rectify", False):
        return rectified_adam(optimizer, {**group, "amsgrad": False}, state, **options)
    return plain(optimizer, group, state, **options)


def schedule_free(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    r"""Compute ``adam``'s stepsizes; they multiply the gradient in the step of :math:`z`.

    .. math:: z_{t+1} = z_t - \eta_t s \, g(y_t)

    The weights are :math:`y_t = (1 - \beta_1) z_t + \beta_1 x_t` in training, with the average
    :math:`x` of all :math:`z`. Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, arXiv
    2405.15682, algorithm 1.
    """
    return adam(optimizer, {**group, "step": group["k"]}, state)


def averaged(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    r"""Compute :math:`s = 1 / (\sqrt{v / c^2 + 10^{-15}} + \epsilon)`, as ``schedule_free``."""
    if group["ams_bound"]:  # It keeps the largest of the corrected second moments.
        corrected = state["max_exp_avg_sq"]
    else:
        corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** group["step"])
    held = {"exp_avg_sq": corrected + 1e-15}
    return uncorrected(optimizer, {"eps": group["eps"]}, held)


def warmed_up_rate(optimizer: Optimizer, group: Entries, state: Entries, lr: Any) -> Any:
    r"""Compute :math:`\eta_t = \eta \min(1, t / w)`, where :math:`w` is ``warmup_steps``."""
    return lr * min(1.0, group.get("step", group.get("k")) / max(1, group["warmup_steps"]))


def relative_step_rate(optimizer: Optimizer, group: Entries, state: Entries, lr: Any) -> Any:
    r"""Compute :math:`\min(10^{-2}, 1 / \sqrt t)`, or :math:`\eta` without ``relative_step``.

    With ``warmup_init``, the rate is :math:`\min(10^{-6} t, 1 / \sqrt t)`. It excludes the two
    factors that a layer's elements share: the layer's root mean square and the clipping factor.
    """
    if not group["relative_step"]:
        return lr
    t = step_of(group, state)
    return min(1e-6 * t if group["warmup_init"] else 1e-2, t**-0.5)


def bounded_factored(optimizer: Any, group: Entries, state: Entries) -> Tensor:
    r"""Compute ``factored``, or :math:`s = \sqrt{(1 - \beta_{2,t}) / u}` with ``ams_bound``.

    :math:`u` is the largest :math:`\sqrt v` so far, and :math:`1 - \beta_{2,t} = \max(1 - \beta_2,
    t^\gamma)` the weight of the last gradient, with :math:`\gamma` the ``decay_rate``.
    """
    if not group["ams_bound"]:
        return factored(optimizer, group, state)
    weight = max(1 - group["betas"][1], group["step"] ** optimizer.decay_rate)
    s: Tensor = (state["exp_avg_sq_hat"] / weight).rsqrt_()
    return s


def trusted_rate(optimizer: Optimizer, group: Entries, state: Entries, lr: Any) -> Any:
    r"""Compute :math:`\eta / (1 - \beta_1^t)` times the trust ratio of the layer."""
    # A rectified optimizer that waits leaves no ratio in its state.
    ratio = 1.0 if group["adam"] else state.get("trust_ratio", 1.0)
    return debiased_rate(optimizer, group, state, lr) * ratio


def blockwise(state: Entries, n: int) -> Tensor:
    """Return a moment of bitsandbytes, from codes of 8 bits and the maximum of each block."""
    values: Tensor = state[f"state{n}"]
    if values.dtype != torch.uint8:
        return values
    maxima: Tensor = state[f"absmax{n}"]
    flat: Tensor = state[f"qmap{n}"][values.flatten().int()]
    size = 256 if -(-flat.numel() // 256) == maxima.numel() else 2048  # in older versions
    scale = maxima.repeat_interleave(size)[: flat.numel()]
    return (flat * scale).view_as(values)


def low_bit_adam(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    """Compute ``adam``'s stepsizes from the second moment as it is stored, in 8 or in 32 bits.

    The step itself used the moment before it was rounded to 8 bits.
    """
    return adam(optimizer, group, {"step": state["step"], "exp_avg_sq": blockwise(state, 2)})


def low_bit_sums(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    """Compute the stepsizes of Adagrad and RMSprop, which multiply the gradient."""
    return adagrad(optimizer, group, {"sum": blockwise(state, 1)})


def first_state(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    """Return what an optimizer of bitsandbytes keeps first: its momentum or, without one, v."""
    return blockwise(state, 1)


def second_state(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    """Return the second moment of an Adam of bitsandbytes."""
    return blockwise(state, 2)


def no_momentum(optimizer: Optimizer, group: Entries, state: Entries) -> None:
    """Return None."""


def latest_step(group: Entries, states: Any) -> int:
    """Return the number of steps of a group in which only the last layer counts them."""
    counts: list[int] = [states[param]["step"] for param in group["params"] if param in states]
    return max(counts)


def fused_adam(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    """Compute ``adam``'s stepsizes for DeepSpeed, which counts in the state of the last layer."""
    t = latest_step(group, optimizer.state)
    return adam(optimizer, group, {**state, "step": t})


def fused_rate(optimizer: Optimizer, group: Entries, state: Entries, lr: Any) -> Any:
    """Compute ``debiased_rate`` for DeepSpeed, which counts in the state of the last layer."""
    t = latest_step(group, optimizer.state)
    return debiased_rate(optimizer, group, {**state, "step": t}, lr)


# Keyed by the path of a class, or of its module or package.
NONE = {
    ONE_RATE: [
        "apex.optimizers.fused_sgd",
        "bitsandbytes.optim.lars",
        "bitsandbytes.optim.sgd",
        "pytorch_optimizer.optimizer.lars",
        "pytorch_optimizer.optimizer.schedulefree.ScheduleFreeSGD",
        "pytorch_optimizer.optimizer.sgd.ASGD",
        "pytorch_optimizer.optimizer.sgd.SGDW",
        "schedulefree.sgd_schedulefree",
        "timm.optim.sgdw",
    ],
    SIGN: [
        "bitsandbytes.optim.lion",
        "deepspeed.ops.lion",
        "lion_pytorch",
        "pytorch_optimizer.optimizer.lion",
        "pytorch_optimizer.optimizer.sgd.SignSGD",
        "pytorch_optimizer.optimizer.tiger",
        "timm.optim.lion",
    ],
    ORTHOGONAL: ["pytorch_optimizer.optimizer.muon", "timm.optim.muon"],
    MATRIX: [
        "pytorch_optimizer.optimizer.psgd",
        "pytorch_optimizer.optimizer.shampoo",
        "pytorch_optimizer.optimizer.soap",
    ],
}
BELIEF = Adapter(partial(maybe_rectified, v="exp_avg_var"))
LOW_BIT_ADAM = Adapter(low_bit_adam, momentum=first_state, second_moment=second_state)
LOW_BIT_SUMS = Adapter(low_bit_sums, given_rate, no_momentum, first_state)
_aida = partial(
    maybe_rectified, plain=partial(adam, eps_first=True), v="exp_avg_var", eps_in_root=1e-15
)
ADAPTERS = {
    "adabelief_pytorch.AdaBelief.AdaBelief": BELIEF,
    "apex.optimizers.fused_adagrad.FusedAdagrad": Adapter(adagrad, given_rate),
    "apex.optimizers.fused_adam.FusedAdam": Adapter(adam, debiased_rate),
    "bitsandbytes.optim.adagrad": LOW_BIT_SUMS,
    "bitsandbytes.optim.adam": LOW_BIT_ADAM,
    "bitsandbytes.optim.adamw": LOW_BIT_ADAM,
    "bitsandbytes.optim.rmsprop": LOW_BIT_SUMS,
    "deepspeed.ops.adam.cpu_adam.DeepSpeedCPUAdam": Adapter(adam, debiased_rate),
    "deepspeed.ops.adam.fused_adam.FusedAdam": Adapter(fused_adam, fused_rate),
    "schedulefree.adamw_schedulefree.AdamWScheduleFree": Adapter(schedule_free, warmed_up_rate),
    "timm.optim.adabelief.AdaBelief": BELIEF,
    "timm.optim.adamw.AdamWLegacy": ADAM,
    "torchao.optim.adam": ADAM,
    "torchao.prototype.low_bit_optim.adam": ADAM,
    "transformers.optimization.Adafactor": Adapter(factored, relative_step_rate),
    **{
        f"pytorch_optimizer.optimizer.{path}": adapter
        for path, adapter in {
            "adabelief.AdaBelief": Adapter(BELIEF.stepsize, debiased_rate),
            "adadelta.AdaDelta": Adapter(adadelta),
            "adafactor.AdaFactor": Adapter(bounded_factored, relative_step_rate),
            "adamax.AdaMax": Adapter(adamax, debiased_rate),
            "adamc.AdamC": Adapter(partial(adam, eps_first=True, eps_in_root=1e-15)),
            "adamp.AdamP": Adapter(partial(adam, eps_first=True), debiased_rate),
            "ademamix.AdEMAMix": ADAM,
            "aida.Aida": Adapter(_aida, debiased_rate),
            "grams.Grams": ADAM,
            "lamb.Lamb": Adapter(partial(maybe_rectified, plain=uncorrected), trusted_rate),
            "radam.RAdam": Adapter(rectified_adam, debiased_rate),
            "schedulefree.ScheduleFreeAdamW": Adapter(averaged, warmed_up_rate),
            "sgd.AccSGD": Adapter(ONE_RATE, momentum=no_momentum),  # The buffer holds weights.
            "yogi.Yogi": Adapter(adam, debiased_rate),
        }.items()
    },
    **{path: Adapter(why) for why, paths in NONE.items() for path in paths},
}
_dispatch.adapters.update(ADAPTERS)
