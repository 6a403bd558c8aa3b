"""The horizontally batched kernel: each operation once for all layers, with torch's foreach ops.

Letters as in the reference kernel, in the plural; every list has one entry a layer.
"""

from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from aida_lightning._kernels.rule import Layers, UpdateRule, finite_sums
from aida_lightning.optim.tracking import (
    gradient,
    needs_inner_products,
    residual,
)

# Floats or 0-dim tensors, one a layer; torch's stubs have no overload that takes either.
ScalarList: TypeAlias = Any


def foreach(layers: Layers, rule: UpdateRule) -> None:
    """Update every layer in place, all layers of one device and dtype at once."""
    if not layers.params:
        return
    if rule.differentiable:
        raise AssertionError("_foreach ops don't support autograd")
    groups = Optimizer._group_tensors_by_device_and_dtype(cast(list[list[Tensor | None]], layers))
    for tensors, _ in groups.values():
        update_group(Layers(*cast(list[list[Tensor]], tensors)), rule)


def update_group(layers: Layers, rule: UpdateRule) -> None:
    """Update the layers of one device and dtype in place."""
    params, grads, exp_avgs, vs, steps = layers
    dtype = vs[0].dtype
    xs, gs, ms = ([t.to(dtype) for t in tensors] for tensors in (params, grads, exp_avgs))
    # Scratch that may be overwritten; a list of the user's own gradients may not.
    owns_gradients = all(g is not grad for g, grad in zip(gs, grads, strict=True))

    # A tensor of 1 on the host, for foreach would wrap the number once for every step there.
    if steps[0].is_cpu and not torch.compiler.is_compiling():
        torch._foreach_add_(steps, torch.ones(()), alpha=1)
    else:
        torch._foreach_add_(steps, 1)
    if rule.maximize:
        gs, owns_gradients = list(torch._foreach_neg(gs)), True
    if rule.weight_decay != 0:
        if rule.decoupled_weight_decay:
            torch._foreach_mul_(xs, 1 - rule.lr * rule.weight_decay)
        elif owns_gradients:
            torch._foreach_add_(gs, xs, alpha=rule.weight_decay)
        else:
            gs, owns_gradients = list(torch._foreach_add(gs, xs, alpha=rule.weight_decay)), True

    torch._foreach_lerp_(ms, gs, 1 - rule.beta1)
    track(gs, ms, vs, rule, scratch=owns_gradients)

    del gs  # where they were scratch, their memory serves the stepsizes
    corrections = [rule.bias_corrections(step) for step in steps]
    corrections2: ScalarList = [correction2 for _, correction2 in corrections]
    ss = torch._foreach_div(vs, corrections2)
    if rule.eps_in_denominator:
        torch._foreach_sqrt_(ss)
        torch._foreach_add_(ss, rule.eps)
        torch._foreach_reciprocal_(ss)
    else:
        torch._foreach_rsqrt_(ss)
    if rule.layer_mean == "stepsize":
        ss = tuple(s.sum() / max(s.numel(), 1) for s in ss)
    scales: ScalarList = [-rule.lr / correction1 for correction1, _ in corrections]
    if isinstance(scales[0], Tensor):
        torch._foreach_mul_(ss, scales)
        torch._foreach_addcmul_(xs, ms, ss)
    else:
        torch._foreach_addcmul_(xs, ms, ss, scales)

    if dtype != params[0].dtype:
        torch._foreach_copy_(params, xs)
        torch._foreach_copy_(exp_avgs, ms)


def track(
    gs: list[Tensor], ms: list[Tensor], vs: list[Tensor], rule: UpdateRule, scratch: bool
) -> None:
    """Update every v in place by the tracked vector of its layer."""
    ds: list[Tensor] | tuple[Tensor, ...]
    alphas, betas = layer_coefficients(gs, ms, rule)
    if rule.track is gradient:
        ds = gs
    elif rule.track is residual:
        # g - m, whose square is the same
        ds = gs if scratch else torch._foreach_sub(gs, ms)
        if scratch:
            torch._foreach_sub_(gs, ms)
    else:
        if scratch:
            torch._foreach_mul_(gs, betas)
        ds = gs if scratch else torch._foreach_mul(gs, betas)
        torch._foreach_addcmul_(ds, ms, alphas)
    # Not by 0, which would make NaN of a statistic that overflowed.
    torch._foreach_mul_(vs, rule.beta2) if rule.beta2 else torch._foreach_zero_(vs)
    if rule.layer_mean == "statistic":
        weights = [(1 - rule.beta2) / max(d.numel(), 1) for d in ds]
        squares = torch._foreach_mul(torch._foreach_norm(ds), torch._foreach_norm(ds))
        torch._foreach_add_(vs, torch._foreach_mul(squares, weights))
    else:
        torch._foreach_addcmul_(vs, ds, ds, 1 - rule.beta2)
    torch._foreach_add_(vs, rule.eps)


def layer_coefficients(
    gs: list[Tensor], ms: list[Tensor], rule: UpdateRule
) -> tuple[ScalarList, ScalarList]:
    """Give alpha and beta of every layer: floats if they are constant, else 0-dim tensors."""
    if not needs_inner_products(rule.track):
        alpha, beta = rule.coefficients(0.0, 0.0, 0.0)
        return [alpha] * len(gs), [beta] * len(gs)
    m_sq, g_sq = (torch.stack(torch._foreach_norm(vectors)).square() for vectors in (ms, gs))
    m_dot_g = torch.stack(
        [torch.dot(m.reshape(-1), g.reshape(-1)) for m, g in zip(ms, gs, strict=True)]
    )
    sums = finite_sums(torch.stack((m_sq, g_sq, m_dot_g)))
    coefficients = [
        value if isinstance(value, Tensor) else torch.full_like(sums[0], value)
        for value in rule.coefficients(*sums.unbind())
    ]
    return list(coefficients[0].unbind()), list(coefficients[1].unbind())
