"""Which kernel takes which layers in one call, and the order of the calls that are a step."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from aida_lightning.optim._kernels import foreach, fused, loop, stacked, triton
from aida_lightning.optim._kernels.layers import Layers, Parts
from aida_lightning.optim._kernels.memory import lie_alike, overlap, slices_lie_together
from aida_lightning.optim._kernels.rule import Kernel, LayerMean, UpdateRule

# Elements of a layer from which on it is worth operations of its own.
_SMALL = 1 << 16


class Batch(NamedTuple):
    """The layers that one kernel takes in one call, and the tensors that hold them."""

    kernel: Kernel
    layers: Layers
    rule: UpdateRule
    tensors: list[Tensor]
    counts: list[int]  # the layers in each tensor


def batches_of(kernel: Kernel, layers: Layers, rule: UpdateRule) -> Iterator[Batch]:
    """Batch layers for a kernel, as tensors of their own if it does not go by addresses."""
    if kernel is fused or kernel is triton or not any(layers.parts):
        yield Batch(kernel, layers, rule, layers.params, layers.counts)
        return
    averaged = rule.layer_mean == "statistic"
    matrices: list[int] = []
    others: list[int] = []
    for index, (*layer, parts) in enumerate(zip(*layers.tensors(), layers.parts, strict=True)):
        stacks = not rule.differentiable and _is_stackable(layer, parts, averaged=averaged)
        (matrices if stacks else others).append(index)
    if matrices:
        part = layers.take(matrices)
        yield Batch(stacked, part.stack(averaged=averaged), rule, part.params, part.counts)
    if others:
        part = layers.take(others)
        yield Batch(kernel, part.split(averaged=averaged), rule, part.params, part.counts)


def _is_stackable(layer: Sequence[Tensor], parts: Parts | None, *, averaged: bool) -> bool:
    """Tell whether a tensor is a matrix with a row per layer, of which there are several small."""
    if parts is None or parts.number < 2 or not isinstance(parts.rows, int):
        return False
    x, g, m, v, _ = layer
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in (x, g, m, v)):
        return False
    if x.numel() > parts.number * _SMALL or not x.numel():
        return False
    return slices_lie_together(x) and lie_alike([x, g, m] if averaged else [x, g, m, v])


# (batches, sums over the local parts of their layers, those over no elements) -> sums over whole
# layers. Over no elements a sum is 0; where it is infinite, it is no sum but the least element.
Complete: TypeAlias = Callable[[Sequence[Batch], list[Tensor], tuple[float, ...]], list[Tensor]]


def dispatch(kernel: str, layers: Layers, rule: UpdateRule) -> list[Batch]:
    """Split layers into batches for ``"loop"``, ``"foreach"`` or ``"fused"``.

    All layers of a batch are on one device and have the same dtypes. Layers that no compiled code
    can take go to the loop on the CPU, and to foreach on other devices.
    """
    groups = defaultdict(list)
    compiles = kernel == "fused" and not torch.compiler.is_compiling()
    all_parts = layers.parts or [None] * len(layers.params)
    for index, (x, g, m, v, step, parts) in enumerate(
        zip(*layers.tensors(), all_parts, strict=True)
    ):
        if parts and not parts.number:
            continue  # other processes hold all of it
        compiled = compiles and _compiled(x, g, m, v, step, rule.layer_mean, parts)
        groups[compiled, x.device, x.dtype, m.dtype, v.dtype, step.dtype].append(index)
    batches: list[Batch] = []
    for (compiled, device, *_), indices in groups.items():
        part = layers if len(indices) == len(layers.params) else layers.take(indices)
        on_host = device.type == "cpu"
        if compiled and not overlap(part):
            batches += batches_of(fused if on_host else triton, part, rule)
        elif kernel == "foreach" or (kernel == "fused" and not on_host):
            batches += batches_of(foreach, part, rule)
        else:
            for run in _runs(part.params):
                batches += batches_of(loop, part.take(run), rule)
    return batches


def _runs(params: Sequence[Tensor]) -> Iterator[list[int]]:
    """Cut layers into runs of about one block, which the second sweep finds in a cache."""
    run: list[int] = []
    size = 0
    for index, param in enumerate(params):
        if run and size + param.numel() > loop.BLOCK:
            yield run
            run, size = [], 0
        run.append(index)
        size += param.numel()
    yield run


def _compiled(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    layer_mean: LayerMean,
    parts: Parts | None = None,
) -> bool:
    """Tell whether compiled code can take the layer; where there is none, warn."""
    if param.is_cpu:
        layer = (param, grad, exp_avg, exp_avg_sq, step)
        return fused.is_available() and fused.takes(*layer, layer_mean, parts)
    try:
        return triton.takes(param, grad, exp_avg, exp_avg_sq, step, layer_mean, parts)
    except ImportError as error:
        _warn_once(f"fused=True falls back to foreach: {error}")
        return False


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def update(batches: Sequence[Batch], rule: UpdateRule, complete: Complete | None = None) -> None:
    """Take one step of layers whose steps have been counted.

    Args:
        batches: all layers to update.
        rule: the rule of any of their groups; it says which sums the member takes.
        complete: completes sums where layers are spread over processes, which all call it in turn.
    """
    if complete is not None:
        alone = [batch for batch in batches if not batch.rule.takes_any_sums]
        _sweep([batch for batch in batches if batch.rule.takes_any_sums], rule, complete)
        batches = alone
    for batch in batches:  # one after the other, while the caches hold it
        if batch.kernel is fused:
            fused.step(batch.layers, batch.rule)
        else:
            _sweep([batch], batch.rule, lambda _, sums, __: sums)


def _sweep(batches: Sequence[Batch], rule: UpdateRule, complete: Complete) -> None:
    sums: Sequence[Tensor | None] = [None] * len(batches)
    if rule.takes_sums:
        momenta = [batch.kernel.momentum(batch.layers, batch.rule) for batch in batches]
        sums = complete(batches, momenta, (0.0,) * (5 if rule.layer_mean == "statistic" else 3))
    totals = [
        batch.kernel.update(batch.layers, batch.rule, of_batch)
        for batch, of_batch in zip(batches, sums, strict=True)
    ]
    if rule.of_no_elements:
        whole = complete(batches, [t for t in totals if t is not None], rule.of_no_elements)
        for (kernel, layers, of_group, *_), total in zip(batches, whole, strict=True):
            kernel.move(layers, of_group, of_group.stepsizes(layers, total))
