"""The kernel for tensors that hold many layers: each operation once for all layers of a tensor.

A tensor is a matrix with a row per layer, and what a layer has one of is a column. The letters are
those of the loop.
"""

import torch
from torch import Tensor

from aida_lightning.optim._kernels.layers import Layers
from aida_lightning.optim._kernels.loop import gradient, move_by, update_momentum
from aida_lightning.optim._kernels.rule import UpdateRule, finite_sums
from aida_lightning.optim._kernels.stepsizes import (
    TINY,
    adaptive_stepsize,
    joined_sums,
    suppressed_stepsize,
)
from aida_lightning.optim._kernels.tracking import Scalar


def momentum(layers: Layers, rule: UpdateRule) -> Tensor:
    """Update every momentum and return the sums over each layer."""
    sums = []
    for x, g, m, v in zip(*layers.tensors()[:4], strict=True):
        g = gradient(x, g, v.dtype, rule, None)
        m = update_momentum(m, g, rule)
        of_layers = [_inner(m, m), _inner(g, g), _inner(m, g)]
        if rule.layer_mean == "statistic":
            r = m - g
            r_sq = _inner(r, r)
            of_layers += [r_sq, _inner(r, m) - r_sq]
        sums.append(torch.stack(of_layers, 1))
    return torch.cat(sums)


def update(layers: Layers, rule: UpdateRule, sums: Tensor | None) -> Tensor | None:
    """Update the statistic and the parameter of every layer."""
    if rule.layer_mean == "statistic":
        assert sums is not None
        move(layers, rule, _average_statistics(layers, rule, sums))
        return None
    totals = []
    of_tensors = [None] * len(layers.params) if sums is None else torch.split(sums, layers.counts)
    for x, g, m, v, step, of_layers in zip(*layers.tensors(), of_tensors, strict=True):
        g = gradient(x, g, v.dtype, rule, None)
        m = update_momentum(m, g, rule) if of_layers is None else m.to(v.dtype)
        d = _tracked_vectors(g, m, rule, of_layers)
        v.mul_(rule.beta2) if rule.beta2 else v.zero_()
        v.add_(rule.eps_in_state).addcmul_(d, d, value=1 - rule.beta2)
        correction1, correction2 = rule.bias_corrections(step)
        if rule.suppresses_range:
            totals.append(_sums_of_statistics(v))
            continue
        s = adaptive_stepsize(v, correction2, rule.eps if rule.eps_in_denominator else 0.0)
        if rule.layer_mean == "stepsize":
            totals.append(s.sum(1, keepdim=True))
        else:
            move_by(x, m, s, -rule.lr / correction1, rule)
    return torch.cat(totals) if totals else None


def move(layers: Layers, rule: UpdateRule, stepsizes: Tensor) -> None:
    """Move every parameter by the stepsizes of its layer."""
    of_tensors = torch.split(stepsizes, layers.counts)
    for x, _, m, v, step, of_layers in zip(*layers.tensors(), of_tensors, strict=True):
        correction1, _ = rule.bias_corrections(step)
        m = m.to(v.dtype)
        if rule.suppresses_range:
            units, inners, outers = of_layers.unsqueeze(2).unbind(1)
            s = suppressed_stepsize(v, inners, outers)
            move_by(x, m, s, units * -rule.lr / correction1, rule)
        else:
            move_by(x, m, None, of_layers.unsqueeze(1) * -rule.lr / correction1, rule)


def _tracked_vectors(g: Tensor, m: Tensor, rule: UpdateRule, sums: Tensor | None) -> Tensor:
    """Return the tracked vector of every layer."""
    if not rule.track.of_momentum:
        return g
    if sums is None:
        return m - g
    alphas, betas = rule.coefficients(*finite_sums(sums)[:, :3].unbind(1))
    d = m * _column(alphas, m.dtype)
    return d.add_(g * _column(betas, g.dtype)) if rule.track.of_gradient else d


def _average_statistics(layers: Layers, rule: UpdateRule, sums: Tensor) -> Tensor:
    """Update the statistics of all layers and return their stepsizes, of shape ``(n,)``."""
    means = layers.mean(rule.squares(sums), on_device=rule.on_device)
    stepsizes = []
    of_tensors = torch.split(means, layers.counts)
    for v, step, mean in zip(layers.exp_avg_sqs, layers.steps, of_tensors, strict=True):
        _, correction2 = rule.bias_corrections(step)
        v.mul_(rule.beta2) if rule.beta2 else v.zero_()
        v.add_(mean * (1 - rule.beta2) + rule.eps)
        stepsizes.append(adaptive_stepsize(v, correction2, 0.0))
    return torch.cat(stepsizes)


def _sums_of_statistics(v: Tensor) -> Tensor:
    """Take the sums over each layer that suppressed stepsizes depend on, of shape ``(n, 3)``."""
    least, largest = v.amin(1), v.amax(1).clamp(min=TINY)
    scaled = v / largest.unsqueeze(1)
    of_layers = (scaled.sum(1), _inner(scaled, scaled), largest, least)
    return joined_sums(torch.stack(of_layers, 1).unsqueeze(1))


def _column(numbers: Scalar, dtype: torch.dtype) -> Scalar:
    return numbers.to(dtype).unsqueeze(1) if isinstance(numbers, Tensor) else numbers


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Compute the inner product of each pair of rows, of shape ``(n,)``."""
    products: Tensor = torch.linalg.vecdot(a, b)
    return products
