"""The measures of layers that processes share, taken of each part and merged over processes."""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aida_lightning.measuring._layer import LayerStep, Row, source_of, step_of, take_measures
from aida_lightning.measuring._parts import Layer
from aida_lightning.optim._sharding import (
    aligned,
    counts_here,
    local_part,
    local_rows,
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
    layers: Mapping[Layer, LayerStep | None], names: Collection[str]
) -> dict[Layer, Row]:
    """Measure layers that processes share, in one all-gather per mesh dimension.

    All processes must call this function, with the same layers in the same order.

    Args:
        layers: layers, each next to its parts, with the step of the whole parameter; None for a
            parameter that has not taken a step.
        names: names of measures.
    """
    needed = {name for of in names for name in (of, *_WEIGHTS.get(of, ()))}
    columns = [name for name in _OF_NO_ELEMENTS if name in needed]
    parts: dict[Layer, Row] = {}
    rows: dict[Layer, Row] = {}
    for _, of_param in groupby(layers, key=lambda each: id(each.param)):
        together = [*of_param]
        layer = layers[together[0]]
        if layer is not None:
            merged = [name for name in columns if _can_merge(layer, name)]
            parts |= _measure_here(layer, together, merged)
            others = [name for name in names if name not in merged]
            rows |= _measure_whole(layer, together, others)
    for each, numbers in _merge([*layers], parts, columns).items():
        rows[each] |= {name: numbers[name] for name in names if name in numbers}
    return rows


def _can_merge(layer: LayerStep, name: str) -> bool:
    """Tell whether a layer's measure follows from those of its parts."""
    if name not in _OF_NO_ELEMENTS:
        return False
    source = source_of(name)
    if source in ("stepsizes", "ceiling"):
        if getattr(layer.optimizer, "suppresses_range", False):  # They depend on the whole layer.
            return False
        # Adafactor's state has a number per row and one per column, and an averaged statistic may
        # have one per part.
        vectors = (v for v in layer.state.values() if isinstance(v, Tensor) and v.ndim)
        return all(value.shape == layer.param.shape for value in vectors)
    if source == "rows":  # If there are any, each process must hold whole rows.
        placements = layer.param.placements  # type: ignore[attr-defined]
        split = (placements[dimension] for dimension in split_dimensions(layer.param))
        return not layer.has(source) or all(placement.dim == 0 for placement in split)
    # Without a copy, the update follows from stepsizes that may be averaged over the layer.
    return source != "update" or layer.before is not None


def _measure_here(
    layer: LayerStep, together: Sequence[Layer], names: Collection[str]
) -> dict[Layer, Row]:
    """Take the measures that can be merged, of what this process holds of a layer and its parts."""
    gradient = layer.gradient
    here = replace(
        layer,
        state={key: local_part(value) for key, value in layer.state.items()},
        param=local_part(layer.param.detach()),
        gradient=None if gradient is None else local_part(aligned(gradient, layer.param)),
        before=local_part(layer.before),
    )
    # The rows are in order, so those of a part are neighbours here as well.
    held = local_rows(layer.param).tolist() if any(each.rows for each in together) else []
    found: dict[Layer, Row] = {}
    for each in together:
        part = step_of(here, each.rows and [bisect_left(held, row) for row in each.rows])
        if part.param.numel():
            found[each] = take_measures(part, names)
        else:
            there = [name for name in names if part.has(source_of(name))]
            found[each] = {name: _OF_NO_ELEMENTS[name] for name in there}
    return found


def _measure_whole(
    layer: LayerStep, together: Sequence[Layer], names: Collection[str]
) -> dict[Layer, Row]:
    """Take the other measures, of a layer that all processes gather if needed, and its parts."""
    if {*names} <= {*_OF_THE_STEP}:
        return {each: take_measures(layer, names) for each in together}
    whole = replace(
        layer,
        state={key: whole_of(value) for key, value in layer.state.items()},
        param=whole_of(layer.param.detach()),
        gradient=whole_of(layer.gradient),
        before=whole_of(layer.before),
    )
    return {each: take_measures(step_of(whole, each.rows), names) for each in together}


def _merge(
    layers: Sequence[Any], parts: Mapping[Any, Row], columns: Sequence[str]
) -> dict[Any, dict[str, Tensor]]:
    """Merge the measures that each process has taken of its parts.

    Args:
        layers: all measured layers that are shared, in the same order in every process.
        parts: measures of this process's elements, for each layer that has taken a step.
        columns: names of all measures that ``parts`` may hold.

    Returns:
        The same measures of the whole layers. They are merged as (n, mean, M2), so that a spread
        far below the mean is not lost.
    """
    merged = {}
    for mesh in dict.fromkeys(each.param.device_mesh for each in layers if columns):
        if mesh.get_coordinate() is None:  # This process is outside the mesh.
            continue
        of_mesh = [each for each in layers if each.param.device_mesh == mesh]
        dimensions = sorted({d for each in of_mesh for d in split_dimensions(each.param)})
        counted = {e: parts[e] for e in of_mesh if e in parts and counts_here(e.param, dimensions)}
        rows = [{**_OF_NO_ELEMENTS, **counted.get(each, {})} for each in of_mesh]
        as_number = partial(torch.as_tensor, dtype=torch.float64, device=of_mesh[0].param.device)
        stacked = torch.stack(
            [torch.stack([as_number(row[name]) for name in columns]) for row in rows]
        )
        for dimension in dimensions:
            of_processes = [torch.empty_like(stacked) for _ in range(mesh.size(dimension))]
            dist.all_gather(of_processes, stacked, group=mesh.get_group(dimension))
            by_name = zip(columns, torch.stack(of_processes).unbind(2), strict=True)
            whole = _merged(dict(by_name))
            stacked = torch.stack([whole[name] for name in columns], 1)
        for each, numbers in zip(of_mesh, stacked, strict=True):
            if each in parts:
                named = zip(columns, numbers.unbind(), strict=True)
                merged[each] = {name: number for name, number in named if name in parts[each]}
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
