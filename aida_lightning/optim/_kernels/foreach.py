"""The horizontally batched kernel: each operation once for all layers, with torch's foreach ops.

The letters are those of the loop, in the plural; every list has one entry per layer. The layers of
one call are on one device and have one dtype.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from aida_lightning.optim._kernels.layers import Layers
from aida_lightning.optim._kernels.rule import UpdateRule, finite_sums
from aida_lightning.optim._kernels.stepsizes import joined_sums, partial_sums

# Floats or 0-dim tensors, one per layer; torch's stubs have no overload that takes either.
ScalarList: TypeAlias = Any


def momentum(layers: Layers, rule: UpdateRule) -> Tensor:
    """Update every momentum and return the sums over each layer."""
    gs, scratch = _gradients(layers, rule)
    ms = _update_momenta(layers, gs, rule)
    m_sq, g_sq, m_dot_g = _squares(ms), _squares(gs), _inner(ms, gs)
    if rule.layer_mean != "statistic":
        return torch.stack((m_sq, g_sq, m_dot_g), 1)
    # g - m, in place of g if that is ours.
    rs = gs if scratch else list(torch._foreach_sub(gs, ms))
    if scratch:
        torch._foreach_sub_(gs, ms)
    r_sq = _squares(rs)
    return torch.stack((m_sq, g_sq, m_dot_g, r_sq, -_inner(rs, ms) - r_sq), 1)


def update(layers: Layers, rule: UpdateRule, sums: Tensor | None) -> Tensor | None:
    """Update the statistic and the parameter of every layer."""
    vs = layers.exp_avg_sqs
    corrections = [rule.bias_corrections(step) for step in layers.steps]
    corrections2: ScalarList = [correction2 for _, correction2 in corrections]
    if rule.layer_mean == "statistic":
        assert sums is not None
        means = layers.mean(rule.squares(sums), on_device=rule.on_device)
        means = means * (1 - rule.beta2) + rule.eps
        torch._foreach_mul_(vs, rule.beta2) if rule.beta2 else torch._foreach_zero_(vs)
        torch._foreach_add_(vs, list(means.to(vs[0].dtype).unbind()))
        move(layers, rule, torch.stack(_stepsizes(vs, corrections2, rule)))
        return None

    gs, scratch = _gradients(layers, rule) if rule.track.of_gradient else ([], False)
    if sums is None:
        ms = _update_momenta(layers, gs, rule)
    else:
        ms = [m.to(v.dtype) for m, v in zip(layers.exp_avgs, vs, strict=True)]
    ds = _tracked_vectors(gs, ms, rule, sums, scratch)
    # Not by 0, which would make NaN of a statistic that overflowed.
    torch._foreach_mul_(vs, rule.beta2) if rule.beta2 else torch._foreach_zero_(vs)
    torch._foreach_addcmul_(vs, ds, ds, 1 - rule.beta2)
    del gs, ds  # where they were scratch, their memory serves the stepsizes
    if rule.suppresses_range:
        parts = torch.stack([part for v in vs for part in partial_sums(v)])
        return joined_sums(parts.view(-1, 1, 4))
    torch._foreach_add_(vs, rule.eps)
    ss = _stepsizes(vs, corrections2, rule)
    if rule.layer_mean == "stepsize":
        return torch.stack([s.sum() for s in ss]).unsqueeze(1)
    _move(layers, ms, ss, corrections, rule)
    return None


def move(layers: Layers, rule: UpdateRule, stepsizes: Tensor) -> None:
    """Move every parameter by the stepsizes of its layer."""
    dtype = layers.exp_avg_sqs[0].dtype
    ms = [m.to(dtype) for m in layers.exp_avgs]
    corrections = [rule.bias_corrections(step) for step in layers.steps]
    stepsizes = stepsizes.to(dtype)
    if rule.suppresses_range:
        ss = _suppressed_stepsizes(layers.exp_avg_sqs, stepsizes)
    else:
        ss = list(stepsizes.unbind())
    _move(layers, ms, ss, corrections, rule)


def _gradients(layers: Layers, rule: UpdateRule) -> tuple[list[Tensor], bool]:
    """Compute the gradients of what is minimized; tell whether they are ours to overwrite."""
    dtype = layers.exp_avg_sqs[0].dtype
    gs = [g.to(dtype) for g in layers.grads]
    ours = all(g is not grad for g, grad in zip(gs, layers.grads, strict=True))
    if rule.maximize:
        gs, ours = list(torch._foreach_neg(gs)), True
    if decay := rule.coupled_weight_decay:
        xs = [x.to(dtype) for x in layers.params]
        if ours:
            torch._foreach_add_(gs, xs, alpha=decay)
        else:
            gs, ours = list(torch._foreach_add(gs, xs, alpha=decay)), True
    return gs, ours


def _update_momenta(layers: Layers, gs: list[Tensor], rule: UpdateRule) -> list[Tensor]:
    """Update every m in place and return them in g's dtype, as they were rounded to their own."""
    dtype = gs[0].dtype
    ms = [m.to(dtype) for m in layers.exp_avgs]
    torch._foreach_lerp_(ms, gs, 1 - rule.beta1)
    if layers.exp_avgs[0].dtype != dtype:
        torch._foreach_copy_(layers.exp_avgs, ms)
        torch._foreach_copy_(ms, layers.exp_avgs)
    return ms


def _tracked_vectors(
    gs: list[Tensor], ms: list[Tensor], rule: UpdateRule, sums: Tensor | None, scratch: bool
) -> list[Tensor]:
    if not rule.track.of_momentum:
        return gs
    if rule.track.is_constant:
        if not scratch:
            return list(torch._foreach_sub(gs, ms))
        torch._foreach_sub_(gs, ms)  # its square is that of m - g
        return gs
    assert sums is not None
    coefficients = rule.coefficients(*finite_sums(sums)[:, :3].unbind(1))
    # A fill, for the copy of a number from the host would wait for the device.
    alphas, betas = (
        c if isinstance(c, Tensor) else torch.full_like(sums[:, 0], c) for c in coefficients
    )
    ls: tuple[ScalarList, ScalarList] = (list(alphas.unbind()), list(betas.unbind()))
    if not rule.track.of_gradient:
        return list(torch._foreach_mul(ms, ls[0]))
    if scratch:
        torch._foreach_mul_(gs, ls[1])
    ds = gs if scratch else list(torch._foreach_mul(gs, ls[1]))
    torch._foreach_addcmul_(ds, ms, ls[0])
    return ds


def _stepsizes(vs: list[Tensor], corrections2: ScalarList, rule: UpdateRule) -> list[Tensor]:
    ss = torch._foreach_div(vs, corrections2)
    if rule.eps_in_denominator:
        torch._foreach_sqrt_(ss)
        torch._foreach_add_(ss, rule.eps)
        torch._foreach_reciprocal_(ss)
    else:
        torch._foreach_rsqrt_(ss)
    return list(ss)


def _suppressed_stepsizes(vs: list[Tensor], of_layers: Tensor) -> list[Tensor]:
    units, inners, outers = (list(numbers.unbind()) for numbers in of_layers.unbind(1))
    ss = list(torch._foreach_add(vs, inners))
    torch._foreach_sqrt_(ss)
    torch._foreach_add_(ss, outers)
    torch._foreach_reciprocal_(ss)
    torch._foreach_mul_(ss, units)
    return ss


def _move(
    layers: Layers,
    ms: list[Tensor],
    ss: list[Tensor],
    corrections: ScalarList,
    rule: UpdateRule,
) -> None:
    """Decay every x where the decay is decoupled, and add the updates."""
    xs = [x.to(m.dtype) for x, m in zip(layers.params, ms, strict=True)]
    if rule.decoupled_weight_decay and rule.weight_decay:
        torch._foreach_mul_(xs, 1 - rule.lr * rule.weight_decay)
    scales: ScalarList = [-rule.lr / correction1 for correction1, _ in corrections]
    if isinstance(scales[0], Tensor):
        torch._foreach_addcmul_(xs, ms, torch._foreach_mul(ss, scales))
    else:
        torch._foreach_addcmul_(xs, ms, ss, scales)
    if layers.params[0].dtype != xs[0].dtype:
        torch._foreach_copy_(layers.params, xs)


def _squares(vectors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(vectors)).square()


def _inner(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Compute the inner product of each pair of layers, of shape ``(n,)``."""
    return torch.stack(
        [torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(first, second, strict=True)]
    )
