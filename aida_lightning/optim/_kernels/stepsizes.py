"""How the adaptive stepsizes of a layer follow from its statistic v.

All members' are ``s = unit / (sqrt(v + inner) + outer)``, with three numbers per layer. For most of
them those are known beforehand. Where the range of the stepsizes is suppressed they depend on the
whole layer, by three numbers more: the sum of v, the sum of its squares, and its least element. The
functions here take these of a tensor and turn them into the three that make the stepsizes.
"""

import torch
from torch import Tensor

from aida_lightning.optim._kernels.tracking import Scalar

LARGEST, TINY = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny
# What the sums over a layer without elements are: the sum of v, that of its squares, the least.
OF_NO_ELEMENTS = (0.0, 0.0, torch.inf)


def adaptive_stepsize(v: Tensor, correction2: Scalar, eps: float) -> Tensor:
    """Compute ``1 / (sqrt(v / (1 - beta2^t)) + eps)``, elementwise, in a new tensor."""
    v_hat = v / correction2
    return reciprocal_root(v_hat, eps, out=None if v_hat.requires_grad else v_hat)


def reciprocal_root(v: Tensor, eps: Scalar, out: Tensor | None) -> Tensor:
    """Compute ``1 / (sqrt(v) + eps)``, elementwise, in ``out`` or in a new tensor."""
    if isinstance(eps, float) and not eps:
        return torch.rsqrt(v, out=out)
    # Autograd keeps the root, which therefore may change only in a tensor of our own.
    return torch.add(torch.sqrt(v, out=out), eps, out=out).reciprocal_()


def suppressed_stepsize(
    v: Tensor, inner: Scalar, outer: Scalar, out: Tensor | None = None
) -> Tensor:
    """Compute ``1 / (sqrt(v + inner) + outer)``, elementwise, in ``out`` or in a new tensor."""
    # A number in float64 would make a v without dimensions one too.
    inner, outer = (n.to(v.dtype) if isinstance(n, Tensor) else n for n in (inner, outer))
    root = torch.add(v, inner, out=out)
    return reciprocal_root(root, outer, out=None if root.requires_grad else root)


def partial_sums(v: Tensor, out: Tensor | None = None) -> list[Tensor]:
    """Take what ``joined_sums`` makes the sums over a layer of, from a part of it.

    Returns:
        0-dim tensors: the sum and the sum of squares of ``v / largest``, the largest element and
        the least. Squares of v itself would not be in the range of float32. ``v / largest`` is
        computed in ``out`` or in a new tensor.
    """
    if not v.numel():
        return [v.new_full((), number) for number in (0.0, 0.0, TINY, torch.inf)]
    least, largest = v.amin(), v.amax().clamp(min=TINY)
    scaled = torch.div(v, largest, out=out).reshape(-1)
    return [scaled.sum(), torch.dot(scaled, scaled), largest, least]


def joined_sums(parts: Tensor) -> Tensor:
    """Join the sums over parts of a layer, of shape ``(parts, 4)``, into one row of three.

    What overflowed is infinite.
    """
    total, square, largest, least = parts.double().unbind(-1)
    sums = torch.stack((total * largest, square * largest.square()), -1)
    sums = torch.where(largest.isinf().unsqueeze(-1), torch.inf, sums).sum(-2)
    return torch.cat((sums, least.amin(-1, keepdim=True)), -1)


def suppression(
    mean: Tensor, mean_square: Tensor, least: Tensor, correction2: Tensor, eps: float, tau: float
) -> Tensor:
    r"""Compute the numbers that make suppressed stepsizes of a layer's statistic.

    With :math:`c^2 = \operatorname{mean}(v)^2 / \operatorname{mean}(v^2)`, the squared cosine of
    the angle between v and the vector of ones, and :math:`w = \sqrt{c^2 v / (1 - \beta_2^t) +
    \epsilon}`, the stepsizes are :math:`s = 1 / (w - \tau \min w)`. The cosine of what is all
    zeros, or overflowed, counts as 1.

    Args:
        mean: of v, over each whole layer, of shape ``(n,)`` as the next three.
        mean_square: the mean of its squares.
        least: its least element.
        correction2: ``1 - beta2^t``.
        eps: added to the scaled v.
        tau: the fraction of the least root that is taken away.

    Returns:
        ``unit``, ``inner`` and ``outer`` of each layer, of shape ``(n, 3)``, in double precision.
    """
    ratio = (mean / mean_square.sqrt()).square()
    cosine_sq = ratio.masked_fill((mean_square == 0) | mean_square.isinf(), 1.0)
    unscale = correction2 / cosine_sq
    inner = eps * unscale
    # An infinite v has the stepsize 0, also where no element is finite.
    finite = torch.nan_to_num(least, nan=torch.nan, posinf=LARGEST)
    return torch.stack((unscale.sqrt(), inner, -tau * (finite + inner).sqrt()), -1)
