"""What is measured of layers that processes share: of each part, then merged over the processes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aida_lightning.callbacks._measures import LayerStep, Row, take_measures
from aida_lightning.optim._sharding import (
    counts_here,
    is_distributed,
    local_part,
    split_dimensions,
)

# What is measured of each part and merged, in this order, and what it is of no elements.
_OF_NO_ELEMENTS = {
    "count": 0.0,
    "mean": 0.0,
    "variance": 0.0,
    "min": torch.inf,
    "max": -torch.inf,
    "ceiling_share": 0.0,
}
# These are no measures of the elements. All others are measured of the whole layer, which each
# process gathers.
_OF_THE_STEP = ("ceiling", "learning_rate", "step", "beta2")


def measure_shared(
    layers: Mapping[Tensor, LayerStep | None], names: Collection[str]
) -> dict[Tensor, Row]:
    """Measure layers that processes share, in one all-gather per mesh dimension.

    All processes have to call it, with the same layers in the same order.

    Args:
        layers: by parameter; None for a parameter that has not taken a step.
        names: names of measures.
    """
    parts: dict[Tensor, Row] = {}
    rows: dict[Tensor, Row] = {}
    for param, layer in layers.items():
        if layer is not None:
            parts[param] = _measure_part(layer, names)
            rows[param] = _measure_whole(layer, names)
    for param, numbers in _merge([*layers], parts).items():
        rows[param] |= {name: numbers[name] for name in names if name in numbers}
    return rows


def _measure_part(layer: LayerStep, names: Collection[str]) -> Row:
    """Measure what can be merged, of the part of a layer that is here."""
    wanted = [name for name in _OF_NO_ELEMENTS if name in {"count", "mean", *names}]
    part = replace(
        layer,
        state={key: local_part(value) for key, value in layer.state.items()},
        param=local_part(layer.param),
    )
    if not part.stepsizes.numel():
        return {name: _OF_NO_ELEMENTS[name] for name in wanted}
    return take_measures(part, wanted)


def _measure_whole(layer: LayerStep, names: Collection[str]) -> Row:
    """Measure what cannot be merged, of a layer that all processes gather where that is needed."""
    names = [name for name in names if name not in _OF_NO_ELEMENTS]
    if {*names} <= {*_OF_THE_STEP}:
        return take_measures(layer, names)
    param = _gathered(layer.param.detach())
    if layer.param.grad is not None:
        param.grad = _gathered(layer.param.grad)
    whole = replace(
        layer,
        state={key: _gathered(value) for key, value in layer.state.items()},
        param=param,
        before=_gathered(layer.before),
    )
    return take_measures(whole, names)


def _gathered(tensor: Any) -> Any:
    return tensor.full_tensor() if is_distributed(tensor) else tensor


def _merge(params: Sequence[Any], parts: Mapping[Any, Row]) -> dict[Any, dict[str, Tensor]]:
    """Merge what each process has measured of its parts.

    Args:
        params: all parameters that are measured and shared, in the same order in every process.
        parts: measures of the elements that are here, of each parameter that has taken a step.

    Returns:
        The same measures of the whole layers. They are merged as (n, mean, M2), so that a spread
        far below the mean is not lost.
    """
    merged = {}
    for mesh in dict.fromkeys(param.device_mesh for param in params):
        if mesh.get_coordinate() is None:  # this process is outside of the mesh
            continue
        of_mesh = [param for param in params if param.device_mesh == mesh]
        dimensions = sorted({d for param in of_mesh for d in split_dimensions(param)})
        nothing = torch.tensor(
            [*_OF_NO_ELEMENTS.values()], dtype=torch.float64, device=of_mesh[0].device
        )
        stacked = torch.stack(
            [
                _vector(parts[param], nothing)
                if param in parts and counts_here(param, dimensions)
                else nothing
                for param in of_mesh
            ]
        )
        for dimension in dimensions:
            of_processes = [torch.empty_like(stacked) for _ in range(mesh.size(dimension))]
            dist.all_gather(of_processes, stacked, group=mesh.get_group(dimension))
            stacked = _merged(torch.stack(of_processes))
        for param, numbers in zip(of_mesh, stacked, strict=True):
            if param in parts:
                named = zip(_OF_NO_ELEMENTS, numbers.unbind(), strict=True)
                merged[param] = {name: number for name, number in named if name in parts[param]}
    return merged


def _vector(part: Row, nothing: Tensor) -> Tensor:
    numbers = dict(zip(_OF_NO_ELEMENTS, nothing.unbind(), strict=True)) | part
    as_nothing = partial(torch.as_tensor, dtype=nothing.dtype, device=nothing.device)
    return torch.stack([*map(as_nothing, numbers.values())])


def _merged(stacked: Tensor) -> Tensor:
    """Merge vectors of parts, of shape ``(processes, layers, 6)``, into ``(layers, 6)``."""
    counts, means, variances, smallest, largest, shares = stacked.unbind(2)
    count = counts.sum(0)
    weights = counts / count.clamp(min=1)
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean).square())).sum(0)
    share = (weights * shares).sum(0)
    return torch.stack([count, mean, variance, smallest.amin(0), largest.amax(0), share], 1)
