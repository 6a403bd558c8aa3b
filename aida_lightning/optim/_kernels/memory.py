"""Which tensors compiled code may be given the addresses of; every address passes through here."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from aida_lightning.optim._kernels.layers import Layers, Parts
from aida_lightning.optim._kernels.rule import LayerMean


def is_safe(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    dtypes: Mapping[torch.dtype, torch.dtype],
    layer_mean: LayerMean,
    parts: Parts | None,
) -> bool:
    """Tell whether a layer's memory is what compiled code takes it for.

    State may have been put in by hand, a parameter may have been enlarged after its gradient was
    computed, and a tensor may be of a class whose elements are not where its address says.

    Args:
        param: the parameter.
        grad: its gradient.
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the statistic, of the parameter's shape, or a number per layer if it is
            averaged.
        step: the number of steps taken, a scalar on the host or beside the parameter.
        dtypes: the statistic's dtype, by that of the parameter.
        layer_mean: what the rule averages over a layer.
        parts: how the tensors are cut into layers, if they hold several.
    """
    # Only exact classes; and the layout first, for sparse tensors have no address.
    if not type(grad) is type(exp_avg) is type(exp_avg_sq) is type(step) is Tensor:
        return False
    if type(param) is not nn.Parameter and type(param) is not Tensor:
        return False
    strided = torch.strided
    if not param.layout is grad.layout is exp_avg.layout is exp_avg_sq.layout is strided:
        return False
    size, dtype, device = param.numel(), param.dtype, param.get_device()  # the host is -1
    if not grad.numel() == exp_avg.numel() == size or step.numel() != 1:
        return False
    averaged = layer_mean == "statistic"
    if exp_avg_sq.numel() != ((parts.number if parts else 1) if averaged else size):
        return False
    if parts and not (slices_lie_together(param) and (exp_avg_sq.is_contiguous() or not averaged)):
        return False
    if not dtype is grad.dtype is exp_avg.dtype or dtypes.get(dtype) is not exp_avg_sq.dtype:
        return False
    if step.dtype is not torch.float32 and step.dtype is not torch.float64:
        return False
    if param.is_meta or grad.is_meta or exp_avg.is_meta or exp_avg_sq.is_meta or step.is_meta:
        return False
    if not grad.get_device() == exp_avg.get_device() == exp_avg_sq.get_device() == device:
        return False
    if step.get_device() not in (-1, device):
        return False
    if exp_avg_sq.is_neg() or step.is_neg():  # memory that holds the negative of the values
        return False
    vectors = [param, grad, exp_avg]
    if not averaged:
        vectors.append(exp_avg_sq)
    return lie_alike(vectors)


def overlap(layers: Layers) -> bool:
    """Tell whether memory that is written to belongs to two tensors of some layers.

    Compiled code updates layers in no order, on several threads. Gradients, which are only read,
    may share their memory.
    """
    written = (*layers.params, *layers.exp_avgs, *layers.exp_avg_sqs)
    return _spans_overlap(
        tuple(map(Tensor.data_ptr, written)), tuple(tensor.nbytes for tensor in written)
    )


@lru_cache(maxsize=16)  # most steps find the addresses of the one before
def _spans_overlap(begins: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    spans = sorted((begin, size) for begin, size in zip(begins, sizes, strict=True) if size)
    return any(begin + size > after for (begin, size), (after, _) in pairwise(spans))


def slices_lie_together(param: Tensor) -> bool:
    """Tell whether a tensor without gaps has the slices of dimension 0 one after the other."""
    rows = param.shape[0]
    return rows < 2 or param.is_contiguous() or param.stride(0) * rows == param.numel()


def lie_alike(vectors: Sequence[Tensor]) -> bool:
    """Tell whether the elements of tensors of one shape lie in one order, without gaps."""
    if any(map(Tensor.is_neg, vectors)):
        return False
    if all(map(Tensor.is_contiguous, vectors)):
        return True
    dense = torch.empty_like(
        vectors[0], device="meta", memory_format=torch.preserve_format
    ).stride()
    return all(vector.stride() == dense for vector in vectors)
