"""The reference kernel: one layer after the other, with torch's elementwise operations.

Letters, as in the paper: x parameter, g gradient, m and v the moving averages of the gradient and
of the squared tracked vector d, s the adaptive stepsize.
"""

import torch
from torch import Tensor

from aida_lightning._kernels.rule import Layers, UpdateRule, adaptive_stepsize, finite_sums
from aida_lightning.optim.tracking import (
    Coefficients,
    gradient,
    needs_inner_products,
    projected_gradient,
)


def single_tensor(layers: Layers, rule: UpdateRule) -> None:
    """Update every layer in place, in a loop."""
    for param, grad, exp_avg, v, step in zip(*layers, strict=True):
        step += 1
        # v is float32 where the parameter is float16 or bfloat16, and its dtype that of all sums.
        x, m = param.to(v.dtype), exp_avg.to(v.dtype)
        g = grad.to(v.dtype)
        update_layer(x, g, m, v, step, rule, owns_gradient=g is not grad)
        if x is not param:
            param.copy_(x)
            exp_avg.copy_(m)


def update_layer(
    x: Tensor, g: Tensor, m: Tensor, v: Tensor, step: Tensor, rule: UpdateRule, owns_gradient: bool
) -> None:
    """Update one layer's x, m, v in place; g is scratch if it is ours, else left as it is."""
    if rule.maximize:
        g, owns_gradient = -g, True
    if rule.weight_decay != 0:
        if rule.decoupled_weight_decay:
            x.mul_(1 - rule.lr * rule.weight_decay)
        else:
            g, owns_gradient = g.add(x, alpha=rule.weight_decay), True

    m.lerp_(g, 1 - rule.beta1)
    if rule.differentiable:
        m = m.clone()  # the next step changes it in place, and autograd keeps this one
    track(g, m, v, rule, scratch=owns_gradient and not rule.differentiable)

    del g  # where it was scratch, its memory serves the stepsizes
    correction1, correction2 = rule.bias_corrections(step)
    s = adaptive_stepsize(v, correction2, rule.eps if rule.eps_in_denominator else 0.0)
    if rule.layer_mean == "stepsize":
        s = s.sum() / max(s.numel(), 1)
    scale = -rule.lr / correction1
    if isinstance(scale, Tensor):
        x.addcmul_(m, s * scale if rule.differentiable else s.mul_(scale))
    else:
        x.addcmul_(m, s, value=scale)


def track(g: Tensor, m: Tensor, v: Tensor, rule: UpdateRule, scratch: bool) -> None:
    """Update v in place by the vector tracked; at most one tensor of g's size is made."""
    alpha, beta = layer_coefficients(g, m, rule)
    if rule.track is gradient:
        d = g
    elif rule.track is projected_gradient:
        d = torch.mul(m, alpha, out=g if scratch else None)
    else:
        d = g.mul_(beta) if scratch else g * beta
        d = d.addcmul_(m, alpha) if isinstance(alpha, Tensor) else d.add_(m, alpha=alpha)
    # Not by 0, which would make NaN of a statistic that overflowed.
    v.mul_(rule.beta2) if rule.beta2 else v.zero_()
    if rule.layer_mean == "statistic":
        v.add_(inner(d, d) * ((1 - rule.beta2) / max(d.numel(), 1)))
    else:
        v.addcmul_(d, d, value=1 - rule.beta2)
    v.add_(rule.eps)


def layer_coefficients(g: Tensor, m: Tensor, rule: UpdateRule) -> Coefficients:
    """Give the tracked vector's coefficients: floats on the CPU, elsewhere 0-dim tensors."""
    if not needs_inner_products(rule.track):
        return rule.coefficients(0.0, 0.0, 0.0)
    sums = finite_sums(torch.stack((inner(m, m), inner(g, g), inner(m, g))))
    if sums.device.type == "cpu" and not (rule.differentiable or rule.on_device):
        return rule.coefficients(*sums.tolist())
    return rule.coefficients(*sums.unbind())


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Give the inner product of two layers as a 0-dim tensor."""
    return torch.dot(a.reshape(-1), b.reshape(-1))
