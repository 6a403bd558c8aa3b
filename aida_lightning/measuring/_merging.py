"""The measures of layers that processes share, taken of each part and merged over processes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aida_lightning.measuring._layer import LayerStep, Row, source_of, take_measures
from aida_lightning.optim._sharding import (
    aligned,
    counts_here,
    is_distributed,
    local_part,
    split_dimensions,
    whole_of,
)

# The measures that are taken of each part and merged, in this order, with their values for no
# elements.
_OF_NO_ELEMENTS = {
    "count": 0.0,
    "mean": 0.0,
    "variance": 0.0,
    "min": torch.inf,
    "max": -torch.inf,
    "ceiling_share": 0.0,
    "update_norm": 0.0,
    "param_norm": 0.0,
    "weight_norm": 0.0,
    "gradient_norm": 0.0,
    "momentum_norm": 0.0,
    "gradient_cosine": 0.0,
    "v_count": 0.0,
    "v_mean": 0.0,
    "v_relative_variance": 0.0,
    "v_row_count": 0.0,
    "v_row_ratio": 0.0,
}
# These measures do not depend on the elements. All others are taken of the whole layer, which each
# process gathers.
_OF_THE_STEP = ("ceiling", "learning_rate", "step", "beta2")
# The other measures of each part that are needed to merge a measure.
_WEIGHTS = {
    **dict.fromkeys(("mean", "ceiling_share"), ("count",)),
    "variance": ("count", "mean"),
    "gradient_cosine": ("gradient_norm", "momentum_norm"),
    "v_mean": ("v_count",),
    "v_relative_variance": ("v_count", "v_mean"),
    "v_row_ratio": ("v_row_count",),
}


def measure_shared(
    layers: Mapping[Tensor, LayerStep | None], names: Collection[str]
) -> dict[Tensor, Row]:
    """Measure layers that processes share, in one all-gather per mesh dimension.

    All processes must call this function, with the same layers in the same order.

    Args:
        layers: layers by parameter; None for a parameter that has not taken a step.
        names: names of measures.
    """
    needed = {name for of in names for name in (of, *_WEIGHTS.get(of, ()))}
    columns = [name for name in _OF_NO_ELEMENTS if name in needed]
    parts: dict[Tensor, Row] = {}
    rows: dict[Tensor, Row] = {}
    for param, layer in layers.items():
        if layer is not None:
            merged = [name for name in columns if _can_merge(layer, name)]
            parts[param] = _measure_part(layer, merged)
            rows[param] = _measure_whole(layer, [name for name in names if name not in merged])
    for param, numbers in _merge([*layers], parts, columns).items():
        rows[param] |= {name: numbers[name] for name in names if name in numbers}
    return rows


def _can_merge(layer: LayerStep, name: str) -> bool:
    """Tell whether a layer's measure follows from those of its parts."""
    if name not in _OF_NO_ELEMENTS:
        return False
    source = source_of(name)
    if source in (
        "stepsizes",
        "ceiling",
    ):  # Adafactor's state has a number per row and one per column.
        if getattr(layer.optimizer, "suppresses_range", False):  # They depend on the whole layer.
            return False
        shared = filter(is_distributed, layer.state.values())
        return all(value.shape == layer.param.shape for value in shared)
    if source == "rows":  # If there are any, each process must hold whole rows.
        placements = layer.param.placements  # type: ignore[attr-defined]
        split = (placements[dimension] for dimension in split_dimensions(layer.param))
        return not layer.has(source) or all(placement.dim == 0 for placement in split)
    # Without a copy, the update follows from stepsizes that may be averaged over the layer.
    return source != "update" or layer.before is not None


def _measure_part(layer: LayerStep, names: Collection[str]) -> Row:
    """Take the measures that can be merged, of the part of a layer that this process holds."""
    gradient = layer.gradient
    part = replace(
        layer,
        state={key: local_part(value) for key, value in layer.state.items()},
        param=local_part(layer.param.detach()),
        gradient=None if gradient is None else local_part(aligned(gradient, layer.param)),
        before=local_part(layer.before),
    )
    if not part.param.numel():
        there = [name for name in names if part.has(source_of(name))]
        return {name: _OF_NO_ELEMENTS[name] for name in there}
    return take_measures(part, names)


def _measure_whole(layer: LayerStep, names: Collection[str]) -> Row:
    """Take the measures that cannot be merged, of a layer that all processes gather if needed."""
    if {*names} <= {*_OF_THE_STEP}:
        return take_measures(layer, names)
    whole = replace(
        layer,
        state={key: whole_of(value) for key, value in layer.state.items()},
        param=whole_of(layer.param.detach()),
        gradient=whole_of(layer.gradient),
        before=whole_of(layer.before),
    )
    return take_measures(whole, names)


def _merge(
    params: Sequence[Any], parts: Mapping[Any, Row], columns: Sequence[str]
) -> dict[Any, dict[str, Tensor]]:
    """Merge the measures that each process has taken of its parts.

    Args:
        params: all measured parameters that are shared, in the same order in every process.
        parts: measures of this process's elements, for each parameter that has taken a step.
        columns: names of all measures that ``parts`` may hold.

    Returns:
        The same measures of the whole layers. They are merged as (n, mean, M2), so that a spread
        far below the mean is not lost.
    """
    merged = {}
    for mesh in dict.fromkeys(param.device_mesh for param in params if columns):
        if mesh.get_coordinate() is None:  # This process is outside the mesh.
            continue
        of_mesh = [param for param in params if param.device_mesh == mesh]
        dimensions = sorted({d for param in of_mesh for d in split_dimensions(param)})
        counted = {p: parts[p] for p in of_mesh if p in parts and counts_here(p, dimensions)}
        rows = [{**_OF_NO_ELEMENTS, **counted.get(param, {})} for param in of_mesh]
        as_number = partial(torch.as_tensor, dtype=torch.float64, device=of_mesh[0].device)
        stacked = torch.stack(
            [torch.stack([as_number(row[name]) for name in columns]) for row in rows]
        )
        for dimension in dimensions:
            of_processes = [torch.empty_like(stacked) for _ in range(mesh.size(dimension))]
            dist.all_gather(of_processes, stacked, group=mesh.get_group(dimension))
            by_name = zip(columns, torch.stack(of_processes).unbind(2), strict=True)
            whole = _merged(dict(by_name))
            stacked = torch.stack([whole[name] for name in columns], 1)
        for param, numbers in zip(of_mesh, stacked, strict=True):
            if param in parts:
                named = zip(columns, numbers.unbind(), strict=True)
                merged[param] = {name: number for name, number in named if name in parts[param]}
    return merged


def _merged(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge measures of parts by name, of shape ``(processes, layers)`` into ``(layers,)``."""
    whole: dict[str, Tensor] = {}
    if "count" in parts:
        whole["count"] = parts["count"].sum(0)
        weights = parts["count"] / whole["count"].clamp(min=1)
        whole |= {n: (weights * parts[n]).sum(0) for n in ("mean", "ceiling_share") if n in parts}
    if "variance" in parts:
        spread = parts["variance"] + (parts["mean"] - whole["mean"]).square()
        whole["variance"] = (weights * spread).sum(0)
    whole |= {n: getattr(parts[n], f"a{n}")(0) for n in ("min", "max") if n in parts}
    lengths = [name for name in parts if name.endswith("_norm")]
    whole |= {name: torch.linalg.vector_norm(parts[name], dim=0) for name in lengths}
    if "gradient_cosine" in parts:
        products = parts["gradient_cosine"] * parts["momentum_norm"] * parts["gradient_norm"]
        length = whole["momentum_norm"] * whole["gradient_norm"]
        whole["gradient_cosine"] = torch.where(length == 0, 0.0, products.sum(0) / length)
    if "v_mean" in parts:
        weights = parts["v_count"] / parts["v_count"].sum(0).clamp(min=1)
        means = parts["v_mean"]
        whole["v_count"], mean = parts["v_count"].sum(0), (weights * means).sum(0)
        whole["v_mean"] = mean
        if "v_relative_variance" in parts:
            spread = parts["v_relative_variance"] * means.square() + (means - mean).square()
            relative = (weights * spread).sum(0) / mean.square()
            whole["v_relative_variance"] = torch.where(mean == 0, 0.0, relative)
    if "v_row_ratio" in parts:
        counts, ratios = parts["v_row_count"], parts["v_row_ratio"]
        whole["v_row_count"] = counts.sum(0)
        of_rows = (counts * ratios).sum(0) / counts.sum(0)
        whole["v_row_ratio"] = torch.where(counts.sum(0) == 0, ratios.amax(0), of_rows)
    return whole
