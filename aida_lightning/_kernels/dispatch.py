"""Which kernel takes which layers in one call, and the order of the calls that are a step."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, cast

from torch import Tensor
from torch.optim.optimizer import Optimizer

from aida_lightning._kernels import foreach, fused, single_tensor
from aida_lightning._kernels.rule import Kernel, Layers, UpdateRule


class Batch(NamedTuple):
    """Layers that one kernel takes in one call."""

    kernel: Kernel
    layers: Layers
    rule: UpdateRule


# (batches, sums over what is here of their layers, columns) -> sums over the whole layers
Complete: TypeAlias = Callable[[Sequence[Batch], list[Tensor], int], list[Tensor]]


def dispatch(kernel: str, layers: Layers, rule: UpdateRule) -> list[Batch]:
    """Split layers into batches for ``"loop"``, ``"foreach"`` or ``"fused"``.

    Layers that the compiled code cannot take go to the loop.
    """
    if not layers.params:
        return []
    if kernel == "loop":
        # One layer at a time, which the second sweep may still find in the cache.
        every = range(len(layers.params))
        return [Batch(single_tensor, layers.take([index]), rule) for index in every]
    if kernel == "foreach":
        tensors = cast(list[list[Tensor | None]], list(layers[:5]))
        by_dtype = Optimizer._group_tensors_by_device_and_dtype(tensors, with_indices=True)
        return [Batch(foreach, layers.take(indices), rule) for _, indices in by_dtype.values()]
    groups = defaultdict(list)
    for index, vectors in enumerate(zip(*layers[:4], strict=True)):
        groups[fused.fused_dtype(*vectors) if fused.is_available() else None].append(index)
    batches = []
    for dtype, indices in groups.items():
        part = layers.take(indices)
        batches += dispatch("loop", part, rule) if dtype is None else [Batch(fused, part, rule)]
    return batches


def update(batches: Sequence[Batch], rule: UpdateRule, complete: Complete | None = None) -> None:
    """Take one step of layers whose steps have been counted.

    Args:
        batches: the layers.
        rule: of one of their groups, which says what sums its member takes.
        complete: is given where layers are spread over processes, which all call it in turn.
    """

    def whole(sums: list[Tensor], columns: int) -> list[Tensor]:
        return sums if complete is None else complete(batches, sums, columns)

    sums: Sequence[Tensor | None] = [None] * len(batches)
    if rule.takes_sums:
        momenta = [batch.kernel.momentum(batch.layers, batch.rule) for batch in batches]
        sums = whole(momenta, 5 if rule.layer_mean == "statistic" else 3)
    totals = [
        batch.kernel.update(batch.layers, batch.rule, of_batch)
        for batch, of_batch in zip(batches, sums, strict=True)
    ]
    if rule.layer_mean == "stepsize":
        stepsizes = whole([total.unsqueeze(1) for total in totals if total is not None], 1)
        for batch, total in zip(batches, stepsizes, strict=True):
            batch.kernel.move(batch.layers, batch.rule, batch.layers.mean(total.squeeze(1)))
