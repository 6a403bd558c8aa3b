"""What is measured of layers that processes share: of each part, then merged over the processes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aida_lightning.callbacks._statistics import LayerStep, Number, measure
from aida_lightning.optim._sharding import (
    counts_here,
    is_distributed,
    local_part,
    split_dimensions,
)

# Measured of each part, and merged in this order. What is not of the elements needs no merging, and
# anything else is measured of the whole layer, which each process gathers.
MERGED = ("count", "mean", "variance", "min", "max", "ceiling_share")
_NOTHING = (0.0, 0.0, 0.0, torch.inf, -torch.inf, 0.0)
_OF_NO_ELEMENT = ("ceiling", "learning_rate", "step", "beta2")


def measure_part(layer: LayerStep, names: tuple[str, ...]) -> dict[str, Number]:
    """Measure of a layer that processes share what can be merged, of the part that is here."""
    wanted = tuple(name for name in MERGED if name in {"count", "mean", *names})
    part = replace(
        layer,
        state={key: local_part(value) for key, value in layer.state.items()},
        param=local_part(layer.param),
    )
    if not part.stepsizes.numel():
        return {
            name: nothing for name, nothing in zip(MERGED, _NOTHING, strict=True) if name in wanted
        }
    return measure(part, wanted)


def measure_whole(layer: LayerStep, names: tuple[str, ...]) -> dict[str, Number]:
    """Measure of a layer that processes share what cannot be merged; all have to call it."""
    names = tuple(name for name in names if name not in MERGED)
    if not {*names}.difference(_OF_NO_ELEMENT):
        return measure(layer, names)
    param = _gathered(layer.param.detach())
    if layer.param.grad is not None:
        param.grad = _gathered(layer.param.grad)
    whole = replace(
        layer,
        state={key: _gathered(value) for key, value in layer.state.items()},
        param=param,
        before=None if layer.before is None else _gathered(layer.before),
    )
    return measure(whole, names)


def _gathered(tensor: Any) -> Any:
    return tensor.full_tensor() if is_distributed(tensor) else tensor


def merge(
    layers: Sequence[Any], rows: Mapping[Any, Mapping[str, Any]]
) -> dict[Any, dict[str, Tensor]]:
    """Merge what each process has measured of its parts, in one all-gather a mesh dimension.

    Args:
        layers: all parameters that are watched and shared, in the same order in every process.
        rows: of each that this process has a part of, measurements with names in ``MERGED``:
            0-dim tensors or floats, of the elements that are here, ``"count"`` of them.

    Returns:
        The same measurements of the whole layers. They are merged as (n, mean, M2), so that a
        spread far below the mean is not lost.
    """
    merged = {}
    for mesh in dict.fromkeys(layer.device_mesh for layer in layers):
        if mesh.get_coordinate() is None:  # this process is outside of the mesh
            continue
        of_mesh = [layer for layer in layers if layer.device_mesh == mesh]
        dimensions = sorted({d for layer in of_mesh for d in split_dimensions(layer)})
        nothing = torch.tensor(_NOTHING, dtype=torch.float64, device=of_mesh[0].device)
        parts = torch.stack(
            [
                _row(rows[layer], nothing)
                if layer in rows and counts_here(layer, dimensions)
                else nothing
                for layer in of_mesh
            ]
        )
        for dimension in dimensions:
            group = mesh.get_group(dimension)
            of_processes = [torch.empty_like(parts) for _ in range(mesh.size(dimension))]
            dist.all_gather(of_processes, parts, group=group)
            parts = _merged(torch.stack(of_processes))
        for layer, numbers in zip(of_mesh, parts, strict=True):
            named = zip(MERGED, numbers.unbind(), strict=True)
            if layer in rows:
                merged[layer] = {name: number for name, number in named if name in rows[layer]}
    return merged


def _row(row: Mapping[str, Any], nothing: Tensor) -> Tensor:
    numbers = [
        torch.as_tensor(row[name], dtype=torch.float64, device=nothing.device)
        if name in row
        else nothing[index]
        for index, name in enumerate(MERGED)
    ]
    return torch.stack(numbers)


def _merged(parts: Tensor) -> Tensor:
    """Merge the rows of parts, of shape ``(processes, layers, 6)``, into ``(layers, 6)``."""
    counts, means, variances, smallest, largest, shares = parts.unbind(2)
    count = counts.sum(0)
    weights = counts / count.clamp(min=1)
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean).square())).sum(0)
    return torch.stack(
        [
            count,
            mean,
            variance,
            smallest.amin(0),
            largest.amax(0),
            (weights * shares).sum(0),
        ],
        1,
    )
