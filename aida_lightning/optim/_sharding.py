"""Layers that processes share as DTensors: each process's part, and sums over whole layers.

FSDP2, hybrid sharding and tensor parallelism are one case here: a layer lies on a mesh of
processes, and each dimension of the mesh either splits or repeats it.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import isinf
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aida_lightning._private import chunks_of, is_flattened
from aida_lightning.optim._kernels.dispatch import Batch


def is_distributed(param: Tensor) -> bool:
    """Return whether the tensor is a DTensor, split or repeated over a mesh."""
    return hasattr(param, "placements")


def check_whole(optimizer: object, param: Any) -> None:
    """Raise an error if a sum over the layer cannot find the layer's other parts."""
    name = type(optimizer).__name__
    if param.ndim == 1 and type(param) is Tensor and "deepspeed" in sys.modules:
        raise RuntimeError(
            f"{name} was given a flat tensor of {param.numel()} elements that is no nn.Parameter: "
            "DeepSpeed's ZeRO replaces layers by such partitions, but sums run over whole layers. "
            "Shard with FSDP2, or use AdaBelief or AdamPlus, which take no such sums. If the "
            "tensor is a whole layer, make it an nn.Parameter"
        )
    if is_flattened(param):
        raise RuntimeError(
            f"{name} does not support FSDP1, which flattens and joins layers: its sums run over "
            "whole layers. Shard with FSDP2 (torch.distributed.fsdp.fully_shard, in Lightning the "
            "ModelParallelStrategy), or use AdaBelief or AdamPlus, which take no such sums"
        )
    if is_distributed(param) and any(placement.is_partial() for placement in param.placements):
        raise RuntimeError(
            f"{name} does not support parameters with the placements {param.placements}: each must "
            "be Shard or Replicate"
        )


def local_part(tensor: Any) -> Tensor:
    """Return this process's part of a DTensor, or any other tensor unchanged."""
    part: Tensor = tensor.to_local() if is_distributed(tensor) else tensor
    return part


def local_rows(tensor: Any) -> Tensor:
    """Return which rows of a DTensor this process holds, in order, as indices on the host."""
    rows = torch.arange(len(tensor), device="cpu").reshape(-1, *[1] * (tensor.ndim - 1))
    return _local(rows, tensor).reshape(-1)


def whole_of(tensor: Any) -> Tensor:
    """Gather a whole DTensor, in a call that all processes make, or return any other tensor."""
    whole: Tensor = tensor.full_tensor() if is_distributed(tensor) else tensor
    return whole


def shard_like(whole: Tensor, param: Any) -> Tensor:
    """Return the shards of a whole tensor that lie where a DTensor's do, without communication.

    Dimensions of size 1 in ``whole`` are not split. For any other ``param`` this is ``whole``.
    """
    if not is_distributed(param):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    placements = [p if _splits(p, whole, param) else Replicate() for p in param.placements]
    return DTensor.from_local(
        _local(whole, param),
        param.device_mesh,
        placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def _local(whole: Tensor, param: Any) -> Tensor:
    """Cut out of a tensor what a process holds of a DTensor; dimensions of size 1 stay."""
    local, mesh = whole, param.device_mesh
    for dimension, placement in enumerate(param.placements):
        if _splits(placement, whole, param):
            chunks = chunks_of(placement, local, mesh.size(dimension))
            local = chunks[mesh.get_local_rank(dimension)]
    return local


def _splits(placement: Any, whole: Tensor, param: Any) -> bool:
    dim = getattr(placement, "dim", None)
    return dim is not None and whole.shape[dim] == param.shape[dim]


def aligned(grad: Any, param: Any) -> Any:
    """Return a gradient with its parameter's layout over the mesh."""
    if is_distributed(grad) and grad.placements != param.placements:
        return grad.redistribute(param.device_mesh, param.placements)
    return grad


class SharedLayers:
    """The layers of an optimizer that are split over processes.

    All processes must request the same sums in the same order, even those without any gradient. The
    sums of all layers of a mesh are one tensor, in which every layer has a place, updated or not.

    Args:
        params: all parameters that a step may update, in the same order in every process, with the
            number of layers that each holds; 0 for those that need no sums of other processes.
        whole: parameters of the layers that this process updates, by their local parts.
    """

    def __init__(self, params: Iterable[tuple[Any, int]], whole: Mapping[Tensor, Tensor]) -> None:
        self._whole = whole
        self._on_mesh: defaultdict[Any, list[tuple[Any, int]]] = defaultdict(list)
        for param, count in params:
            if count and is_distributed(param) and split_dimensions(param):
                self._on_mesh[param.device_mesh].append((param, count))

    def complete(
        self, batches: Sequence[Batch], sums: Sequence[Tensor], of_none: tuple[float, ...]
    ) -> list[Tensor]:
        """Add up the sums over the parts of each layer.

        This takes one all-reduce per mesh and dimension of it that splits layers.

        Args:
            batches: layers that this process updates.
            sums: sums over the layers' local parts, of shape ``(n, columns)`` for a batch of n
                layers; the tensors of the batch hold one or several of them.
            of_none: sums over no elements, one per column: 0, or infinity in the last column if it
                holds the smallest element instead of a sum.

        Returns:
            ``sums`` for whole layers, including those that are not split.
        """
        names = [[self._whole.get(p, p) for p in batch.tensors] for batch in batches]
        rows = {
            param: of_param
            for params, batch, of_batch in zip(names, batches, sums, strict=True)
            for param, of_param in zip(
                params, torch.split(of_batch.double(), batch.counts), strict=True
            )
        }
        for mesh, held in self._on_mesh.items():
            if mesh.get_coordinate() is None:  # this process is outside the mesh
                continue
            dimensions = sorted({d for param, _ in held for d in split_dimensions(param)})
            none = torch.zeros(1, len(of_none), dtype=torch.float64, device=held[0][0].device)
            none[:, -1].fill_(of_none[-1])
            whole = torch.cat(
                [
                    rows[param]
                    if param in rows and counts_here(param, dimensions)
                    else none.expand(count, -1)
                    for param, count in held
                ]
            )
            # One by one: a flattened mesh would change how DTensor gathers the user's tensors.
            for dimension in dimensions:
                whole = _completed(whole, mesh, dimension, least=isinf(of_none[-1]))
            params, counts = map(list, zip(*held, strict=True))
            rows |= zip(params, torch.split(whole, counts), strict=True)
        return [torch.cat([rows[param] for param in params]) for params in names]


def _completed(sums: Tensor, mesh: Any, dimension: int, *, least: bool) -> Tensor:
    """Add up sums over one dimension of a mesh; with ``least``, take the last column's minimum."""
    group = mesh.get_group(dimension)
    if not least:
        dist.all_reduce(sums, group=group)
        return sums
    # Each process fills a column of its own, so one all-reduce is enough.
    columns = sums.new_zeros(len(sums), mesh.size(dimension))
    columns[:, mesh.get_local_rank(dimension)] = sums[:, -1]
    wide = torch.cat((sums[:, :-1], columns), 1)
    dist.all_reduce(wide, group=group)
    others = sums.shape[1] - 1
    return torch.cat((wide[:, :others], wide[:, others:].amin(1, keepdim=True)), 1)


def split_dimensions(param: Any) -> list[int]:
    """List the dimensions of the mesh, not of the tensor, that split the layer."""
    # Not is_shard(), which is False for the strided shards of FSDP2 beside tensor parallel.
    return [d for d, placement in enumerate(param.placements) if not placement.is_replicate()]


def counts_here(param: Any, dimensions: list[int]) -> bool:
    """Return whether this process, of all that hold the same part, contributes its sums."""
    split = split_dimensions(param)
    return all(d in split or param.device_mesh.get_local_rank(d) == 0 for d in dimensions)
