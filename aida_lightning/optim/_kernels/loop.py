"""The blocked loop: one layer after the other, by torch's operations, which share scratch.

On the CPU a large layer is swept in blocks that the caches hold, so that of many operations only
the first reads memory, and all of them work in one block of scratch. On other devices a layer is
one block.

Letters, as in the paper: x parameter, g gradient, m and v the moving averages of the gradient and
of the squared tracked vector d, s the adaptive stepsize.
"""

from collections.abc import Iterator, Sequence
from math import isinf
from typing import Any

import torch
from torch import Tensor

from aida_lightning.optim._kernels.layers import Layers
from aida_lightning.optim._kernels.rule import UpdateRule, finite_sums
from aida_lightning.optim._kernels.stepsizes import (
    LARGEST,
    adaptive_stepsize,
    joined_sums,
    partial_sums,
    reciprocal_root,
    suppressed_stepsize,
)
from aida_lightning.optim._kernels.tracking import Coefficients, Scalar

# Elements per block: the caches lose some of larger blocks, and threads wait in smaller ones.
BLOCK = 1 << 19


def momentum(layers: Layers, rule: UpdateRule) -> Tensor:
    """Update every momentum and return the sums over each layer."""
    sums: list[Tensor] = []
    blocks = [
        _momentum_of_layer(x, g, m, v.dtype, rule, sums)
        for x, g, m, v in zip(*layers.tensors()[:4], strict=True)
    ]
    table = torch.stack(sums).view(sum(blocks), -1)
    if len(table) == len(blocks):
        return table
    return torch.stack([of_layer.sum(0) for of_layer in torch.split(table, blocks)])


def update(layers: Layers, rule: UpdateRule, sums: Tensor | None) -> Tensor | None:
    """Update the statistic and the parameter of every layer."""
    if rule.layer_mean == "statistic":
        assert sums is not None
        move(layers, rule, _average_statistics(layers, rule, sums))
        return None
    totals = [
        _update_layer(x, g, m, v, step, coefficients, rule, has_momentum=sums is not None)
        for x, g, m, v, step, coefficients in zip(
            *layers.tensors(), _coefficients(len(layers.params), rule, sums), strict=True
        )
    ]
    if rule.suppresses_range:
        parts = torch.stack([part for of_layer in totals for part in of_layer]).view(-1, 4)
        if len(parts) == len(totals):
            return joined_sums(parts.unsqueeze(1))
        blocks = [len(of_layer) // 4 for of_layer in totals]
        return torch.stack([joined_sums(of_layer) for of_layer in torch.split(parts, blocks)])
    if rule.layer_mean != "stepsize":
        return None
    return torch.stack([torch.stack(of_layer).sum() for of_layer in totals]).unsqueeze(1)


def move(layers: Layers, rule: UpdateRule, stepsizes: Tensor) -> None:
    """Move every parameter by the stepsizes of its layer."""
    on_host = stepsizes.is_cpu and not (rule.differentiable or rule.on_device)
    of_layers = stepsizes.tolist() if on_host else stepsizes.unbind()
    for x, m, v, step, of_layer in zip(
        layers.params, layers.exp_avgs, layers.exp_avg_sqs, layers.steps, of_layers, strict=True
    ):
        correction1, _ = rule.bias_corrections(step)
        if rule.suppresses_range:
            unit, inner, outer = of_layer
            _move_suppressed(x, m, v, unit * -rule.lr / correction1, inner, outer, rule)
            continue
        scale = of_layer * -rule.lr / correction1
        for _, xb, mb in _blocks(rule, None, x, m):
            mb = mb.clone() if rule.differentiable else _to(mb, v.dtype)
            move_by(xb, mb, None, scale, rule)


def _momentum_of_layer(
    x: Tensor, g: Tensor, m: Tensor, dtype: torch.dtype, rule: UpdateRule, sums: list[Tensor]
) -> int:
    """Update the momentum, add the sums over each block, and return the number of blocks."""
    changes = rule.maximize or rule.coupled_weight_decay or rule.layer_mean == "statistic"
    blocks = 0
    for scratch, xb, gb, mb in _blocks(rule, dtype if changes else None, x, g, m):
        gb = gradient(xb, gb, dtype, rule, scratch)
        mb = update_momentum(mb, gb, rule)
        sums += _sums(mb, gb, rule, scratch)
        blocks += 1
    return blocks


def _sums(m: Tensor, g: Tensor, rule: UpdateRule, scratch: Tensor | None) -> list[Tensor]:
    """Take the sums that the rule's coefficients and mean depend on, and 0 for the others."""
    if not rule.track.of_momentum:
        zero = m.new_zeros(())
        return [zero, _inner(g, g), zero, zero, zero]
    if rule.track.is_constant:
        of_pair = [m.new_zeros(())] * 3
    else:
        of_pair = [_inner(m, m), _inner(g, g), _inner(m, g)]
    if rule.layer_mean != "statistic":
        return of_pair
    r = torch.sub(m, g, out=scratch)  # may overwrite g, so that <r, g> is taken by m
    r_sq = _inner(r, r)
    return [*of_pair, r_sq, of_pair[0] if rule.track.is_constant else _inner(r, m) - r_sq]


def _update_layer(
    x: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    step: Tensor,
    coefficients: Coefficients,
    rule: UpdateRule,
    *,
    has_momentum: bool,
) -> list[Tensor]:
    """Update v and x, or v alone; return then what the stepsizes depend on, of each block."""
    correction1, correction2 = rule.bias_corrections(step)
    # 1 / (sqrt(v / c) + eps) = sqrt(c) / (sqrt(v) + sqrt(c) eps), and sqrt(c) joins the scale.
    unit = correction2**0.5
    second_eps = rule.eps * unit if rule.eps_in_denominator else 0.0
    eps = torch.scalar_tensor(rule.eps_in_state, dtype=v.dtype, device="cpu")
    totals = []
    for scratch, xb, gb, mb, vb in _blocks(rule, v.dtype, x, g, m, v):
        gb = gradient(xb, gb, v.dtype, rule, scratch)
        mb = _to(mb, v.dtype) if has_momentum else update_momentum(mb, gb, rule)
        if rule.differentiable:
            mb = mb.clone()  # the next step changes it in place, and autograd keeps this one
        d, factor = _tracked_vector(gb, mb, coefficients, rule, scratch)
        if factor > LARGEST:  # which no operation takes as a number
            d, factor = torch.mul(d, min(factor**0.5, LARGEST), out=scratch), 1.0
        if scratch is not None and rule.beta2:
            torch.add(eps, vb, alpha=rule.beta2, out=vb)
        else:  # not by 0, which would make NaN of a statistic that overflowed
            (vb.mul_(rule.beta2) if rule.beta2 else vb.zero_()).add_(rule.eps_in_state)
        vb.addcmul_(d, d, value=factor * (1 - rule.beta2))
        if rule.suppresses_range:  # the next step changes v in place, and autograd keeps this one
            totals += partial_sums(vb.clone() if rule.differentiable else vb, scratch)
            continue
        s = reciprocal_root(vb, second_eps, out=scratch)
        if rule.layer_mean == "stepsize":
            totals.append(s.sum() * unit)
        else:
            move_by(xb, mb, s, unit * -rule.lr / correction1, rule)
    return totals


def _move_suppressed(
    x: Tensor,
    m: Tensor,
    v: Tensor,
    scale: Scalar,
    inner: Scalar,
    outer: Scalar,
    rule: UpdateRule,
) -> None:
    """Move x by the stepsizes that a layer's three numbers make of v."""
    for scratch, xb, mb, vb in _blocks(rule, v.dtype, x, m, v):
        mb = mb.clone() if rule.differentiable else _to(mb, v.dtype)
        move_by(xb, mb, suppressed_stepsize(vb, inner, outer, scratch), scale, rule)


def _average_statistics(layers: Layers, rule: UpdateRule, sums: Tensor) -> Tensor:
    """Update the one statistic of every layer and return the stepsizes, of shape ``(n,)``."""
    stepsizes = []
    means = layers.mean(rule.squares(sums), on_device=rule.on_device)
    for v, step, mean in zip(layers.exp_avg_sqs, layers.steps, means, strict=True):
        _, correction2 = rule.bias_corrections(step)
        if rule.differentiable:
            v = _noticed(v)
        v.mul_(rule.beta2) if rule.beta2 else v.zero_()
        v.add_(mean * (1 - rule.beta2) + rule.eps)
        stepsizes.append(adaptive_stepsize(v, correction2, 0.0))
    return torch.stack(stepsizes)


def gradient(
    x: Tensor, g: Tensor, dtype: torch.dtype, rule: UpdateRule, scratch: Tensor | None
) -> Tensor:
    """Compute the gradient of what is minimized, in scratch unless it is the user's tensor."""
    g = _to(g, dtype)
    if rule.maximize:
        g = torch.neg(g, out=scratch)
    if decay := rule.coupled_weight_decay:
        g = torch.add(g, _to(x, dtype), alpha=decay, out=scratch)
    return g


def update_momentum(m: Tensor, g: Tensor, rule: UpdateRule) -> Tensor:
    """Update m in place and return it in g's dtype, as it was rounded to its own."""
    if m.dtype == g.dtype:
        m.lerp_(g, 1 - rule.beta1)
        return m.clone() if rule.differentiable else m
    return m.copy_(m.to(g.dtype).lerp_(g, 1 - rule.beta1)).to(g.dtype)


def _tracked_vector(
    g: Tensor, m: Tensor, coefficients: Coefficients, rule: UpdateRule, scratch: Tensor | None
) -> tuple[Tensor, float]:
    """Return a vector, and the factor that makes its square that of the tracked vector."""
    alpha, beta = coefficients
    if not rule.track.of_momentum:
        return g, 1.0
    if isinstance(alpha, Tensor):
        if not rule.track.of_gradient:
            return torch.mul(m, alpha, out=scratch), 1.0
        return torch.mul(g, beta, out=scratch).addcmul_(m, alpha), 1.0
    assert isinstance(beta, float)
    if not rule.track.of_gradient:
        return m, alpha**2
    # alpha m + beta g, divided by the larger of the two.
    if abs(alpha) > abs(beta):
        return torch.add(m, g, alpha=beta / alpha, out=scratch), alpha**2
    return torch.add(g, m, alpha=alpha / (beta or 1.0), out=scratch), beta**2


def move_by(x: Tensor, m: Tensor, s: Tensor | None, scale: Scalar, rule: UpdateRule) -> None:
    """Decay x where the decay is decoupled, and add the update; s may be overwritten."""
    wide = _to(x, m.dtype)
    if rule.decoupled_weight_decay and rule.weight_decay:
        wide.mul_(1 - rule.lr * rule.weight_decay)
    if isinstance(scale, Tensor):
        scale = scale.to(m.dtype)
        factor = scale if s is None else s * scale if rule.differentiable else s.mul_(scale)
        wide.addcmul_(m, factor)
    elif s is None:
        wide.add_(m, alpha=scale)
    else:
        wide.addcmul_(m, s, value=scale)
    if wide is not x:
        x.copy_(wide)


def _coefficients(n: int, rule: UpdateRule, sums: Tensor | None) -> Sequence[Coefficients]:
    """Compute alpha and beta of each layer: floats on the CPU, elsewhere 0-dim tensors."""
    if sums is None:
        return [rule.coefficients(0.0, 0.0, 0.0)] * n
    if sums.is_cpu and not (rule.differentiable or rule.on_device):
        rows = sums.tolist()
        if any(isinf(number) for row in rows for number in row):
            rows = finite_sums(sums).tolist()
        return [rule.coefficients(*row[:3]) for row in rows]
    return [rule.coefficients(*row[:3].unbind()) for row in finite_sums(sums).unbind()]


def _blocks(rule: UpdateRule, dtype: torch.dtype | None, *tensors: Tensor) -> Iterator[Any]:
    """Yield scratch of this dtype and the tensors of a layer, block by block.

    There is no scratch without a dtype, or where autograd would notice that it is overwritten.
    """
    if rule.differentiable:
        yield None, *map(_noticed, tensors)
        return
    if torch.compiler.is_compiling():
        yield None, *tensors
        return
    blocks = _cut(tensors)
    scratch = None if dtype is None else torch.empty_like(blocks[0][0], dtype=dtype)
    for x, *others in blocks:
        if scratch is not None and scratch.shape != x.shape:  # the last block is smaller
            scratch = scratch[: x.numel()]
        yield scratch, x, *others


def _cut(tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """Cut a layer's tensors alike into blocks, of which the first is the largest."""
    x = tensors[0]
    n = max(round(x.numel() / BLOCK), 1) if x.is_cpu else 1
    if n == 1 and x.is_contiguous():
        return [tensors]
    flat = flattened(tensors)  # also one block: of another layout the sums would take copies
    return [*zip(*(vector.chunk(n) for vector in flat), strict=True)] if flat else [tensors]


def flattened(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """View the tensors as vectors in memory order; None if their orders differ or have gaps."""
    x = tensors[0]
    if all(tensor.is_contiguous() for tensor in tensors):
        return [tensor.view(-1) for tensor in tensors]
    if any(tensor.is_neg() or tensor.stride() != x.stride() for tensor in tensors):
        return None
    dense = torch.empty_like(x, device="meta", memory_format=torch.preserve_format).stride()
    return [t.as_strided((x.numel(),), (1,)) for t in tensors] if x.stride() == dense else None


def _noticed(tensor: Tensor) -> Tensor:
    """Return a tensor that has noticed what autograd recorded of the tensor that it is a view of.

    Until a view is asked for its function, autograd takes it for a leaf if its base was one when
    it was made, and refuses to change it.
    """
    _ = tensor.grad_fn
    return tensor


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Compute the inner product of two layers as a 0-dim tensor."""
    return torch.dot(a, b) if a.ndim == 1 else torch.dot(a.reshape(-1), b.reshape(-1))
