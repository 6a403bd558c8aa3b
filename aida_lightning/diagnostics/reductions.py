"""Statistics of one layer's tensors: pure functions that never make the host wait for a device."""

from collections.abc import Sequence

import torch
from torch import Tensor

# With fewer elements, one call of torch.var_mean takes less time than several calls.
_FEW = 4096
# A population whose standard deviation is below 0.1 % of its mean counts as constant.
LARGEST_RATIO = 1e6


def mean_and_variance(values: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and the population variance over all elements.

    Args:
        values: real tensor of any shape with at least one element.

    Returns:
        Two 0-dim tensors on the device of ``values``, in its dtype or, for half precision, in
        float32. The variance is computed from the differences from the mean, so that a spread far
        below the mean is not lost.

    Example:
        >>> import torch
        >>> mean_and_variance(torch.tensor([1.0, 3.0]))
        (tensor(2.), tensor(1.))
    """
    values = at_least_float32(values)
    if values.device.type != "cpu" or values.numel() < _FEW:
        variance, mean = torch.var_mean(values, correction=0)
        return mean, variance
    # On a CPU, torch.var_mean takes the elements one by one; several sums with vector instructions
    # are much faster. The error of the rounded mean corrects both results.
    mean = values.mean()
    differences = values - mean
    off = differences.mean()
    variance = differences.square_().mean() - off.square()
    return mean + off, variance.clamp_(min=0)  # Rounding could make it negative.


def mean_and_relative_variance(values: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean, and the population variance divided by the square of the mean.

    Args:
        values: real tensor of any shape with at least one element, none of which is negative.

    Returns:
        Two 0-dim tensors in the dtype of ``mean_and_variance``; both are 0 if all elements are. The
        values are first scaled by the largest, so that squares neither overflow nor vanish.

    Example:
        >>> import torch
        >>> mean, variance = mean_and_relative_variance(torch.tensor([1e-30, 3e-30]))
        >>> round(variance.item(), 6)
        0.25
    """
    values = at_least_float32(values)
    largest = values.amax()
    mean, variance = mean_and_variance(values / torch.where(largest == 0, 1.0, largest))
    return mean * largest, torch.where(mean == 0, 0.0, variance / mean.square())


def row_ratio(values: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean over the rows of each row's squared mean, divided by its variance.

    A row is a slice of dimension 0. Its variance is that of the population. Rows whose elements are
    all alike (a standard deviation of at most 0.1 % of the mean) have no finite ratio, and are left
    out.

    Args:
        values: real tensor of 1 or more dimensions with at least one element, none of which is
            negative.

    Returns:
        Two 0-dim tensors: the mean, and the number of rows that it is taken over. If all rows are
        left out, the former is ``LARGEST_RATIO``, or 0 if all elements are 0.

    Example:
        >>> import torch
        >>> row_ratio(torch.tensor([[1.0, 3.0], [0.0, 2.0], [5.0, 5.0]]))
        (tensor(2.5000), tensor(2.))
    """
    rows = at_least_float32(values).flatten(1) if values.ndim > 1 else values.unsqueeze(1)
    largest = rows.amax(1, keepdim=True)
    rows = rows / torch.where(largest == 0, 1.0, largest)
    mean = rows.mean(1, keepdim=True)
    variance, signal = (rows - mean).square_().mean(1), mean.square().squeeze(1)
    varies = ~(variance * LARGEST_RATIO <= signal)  # as does a row with NaN
    count = varies.sum().to(rows.dtype)
    total = torch.where(varies, signal / variance, 0.0).sum()
    of_constants = LARGEST_RATIO * largest.any()
    return torch.where(count == 0, of_constants, total / count.clamp(min=1)), count


def quantiles(values: Tensor, probabilities: Sequence[float]) -> list[Tensor]:
    """Compute quantiles over all elements, by linear interpolation between the nearest two.

    The numbers are those of ``torch.quantile``, which refuses more than 2^24 elements in torch 2.6.

    Args:
        values: real tensor of any shape and size with at least one element.
        probabilities: probabilities in [0, 1].

    Returns:
        One 0-dim tensor per probability; NaN if any of the values is NaN.

    Example:
        >>> import torch
        >>> quantiles(torch.tensor([4.0, 1.0, 2.0]), [0.5, 0.75])
        [tensor(2.), tensor(3.)]
    """
    ordered = at_least_float32(values).flatten().sort().values  # NaN is sorted to the end
    found = []
    for probability in probabilities:
        position = probability * (ordered.numel() - 1)
        below = int(position)
        quantile = ordered[below]
        if position > below:
            quantile = quantile.lerp(ordered[below + 1], position - below)
        found.append(torch.where(ordered[-1].isnan(), ordered[-1], quantile))
    return found


def share_at_least(values: Tensor, bound: float) -> Tensor:
    """Compute the share of elements, in [0, 1], that are at or above a bound.

    Args:
        values: real tensor of any shape with at least one element.
        bound: smallest value that counts.

    Returns:
        A 0-dim tensor in float32.

    Example:
        >>> import torch
        >>> share_at_least(torch.tensor([1.0, 2.0, 3.0, 4.0]), 2.0)
        tensor(0.7500)
    """
    return (values >= bound).sum().float() / values.numel()


def norm(values: Tensor) -> Tensor:
    """Compute the Euclidean norm over all elements, in float32 or, for float64, in float64.

    Args:
        values: real or complex tensor of any shape.

    Returns:
        A 0-dim real tensor, which is infinite if the sum of squares exceeds the dtype's range.

    Example:
        >>> import torch
        >>> norm(torch.tensor([[3.0], [4.0]]))
        tensor(5.)
    """
    length: Tensor = torch.linalg.vector_norm(at_least_float32(real(values)))
    return length


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Compute the cosine of the angle between two tensors, each taken as one vector.

    Args:
        a: real or complex tensor with at least one element.
        b: tensor of the same shape.

    Returns:
        A 0-dim tensor in [-1, 1], which is 0 if either vector is zero. Each vector is first scaled
        by its largest element, so that squares neither overflow nor vanish.

    Example:
        >>> import torch
        >>> cosine(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 2.0]))
        tensor(0.7071)
    """
    a, b = _scaled(a), _scaled(b)
    product = torch.dot(a, b)
    lengths = norm(a) * norm(b)
    return torch.where(lengths == 0, 0.0, product / lengths).clamp(-1.0, 1.0)


def histogram(values: Tensor, bins: int) -> Tensor:
    """Count the elements in bins of equal width from the smallest element to the largest.

    Args:
        values: real tensor of any shape and size with at least one element.
        bins: number of bins.

    Returns:
        The counts, an int64 tensor of shape (bins,). An element at an inner edge belongs to the bin
        above it. If all elements are equal, they belong to the first bin. If some values are not
        finite, no bins of equal width exist, and only the sum of the counts is meaningful.

    Example:
        >>> import torch
        >>> histogram(torch.tensor([0.0, 1.0, 4.0]), 2)
        tensor([2, 1])
    """
    values = at_least_float32(values).flatten()
    low, high = values.aminmax()
    # This is 0 / 0 if all elements are equal.
    places = ((values - low) * (bins / (high - low))).nan_to_num(nan=0.0).long()
    # Not torch.histc, which reads the range on the host and has no deterministic form on a GPU.
    counts, one = places.new_zeros(bins), places.new_ones(1)
    return counts.scatter_add_(0, places.clamp(0, bins - 1), one.expand_as(places))


def at_least_float32(values: Tensor) -> Tensor:
    """Return a half-precision tensor in float32, and any other tensor unchanged.

    Example:
        >>> import torch
        >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def real(values: Tensor) -> Tensor:
    """Return a complex tensor as a real one with a last dimension of 2, and any other unchanged.

    Example:
        >>> import torch
        >>> real(torch.ones(3, dtype=torch.complex64)).shape
        torch.Size([3, 2])
    """
    return torch.view_as_real(values) if values.is_complex() else values


def dense(values: Tensor) -> Tensor:
    """Return a quantized tensor's values, and any other tensor unchanged.

    Example:
        >>> import torch
        >>> dense(torch.ones(1))
        tensor([1.])
    """
    quantized = type(values).dequantize is not Tensor.dequantize
    return values.dequantize() if quantized else values


def _scaled(values: Tensor) -> Tensor:
    values = at_least_float32(real(values)).flatten()
    largest = values.abs().amax()
    return values / torch.where(largest == 0, 1.0, largest)
