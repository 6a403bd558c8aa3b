"""The measures of one layer right after a step, on its device."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from aida_lightning.diagnostics import effective_learning_rate, has_stepsize, reductions
from aida_lightning.measuring._registered import (
    last_update,
    momentum,
    second_moment,
    stepsize,
    stepsize_ceiling,
)

# Stepsizes at the ceiling differ by v's rounding errors, which add up over 1 / (1 - beta2) steps.
AT_THE_CEILING = 1 - 1e-3
HISTOGRAM_BINS = 128

Number: TypeAlias = Tensor | float
Row: TypeAlias = dict[str, Number]  # the measures of one layer, by name
Source: TypeAlias = Literal[
    "stepsizes",
    "ceiling",
    "update",
    "weights",
    "gradient",
    "momentum",
    "second_moment",
    "rows",
    "group",
]


@dataclass
class LayerStep:
    """One layer right after a step, with cached tensors that several measures share."""

    optimizer: Optimizer
    group: dict[str, Any]
    state: dict[str, Any]
    param: Tensor
    gradient: Tensor | None  # the gradient that the optimizer received, if it is still there
    lr: Number
    before: Tensor | None = None  # the parameter before the step, if a copy was kept

    @cached_property
    def stepsizes(self) -> Tensor:
        return reductions.at_least_float32(stepsize(self.optimizer, self.group, self.state))

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        return reductions.mean_and_variance(self.stepsizes)

    @cached_property
    def extremes(self) -> tuple[Tensor, Tensor]:
        return self.stepsizes.aminmax()

    @cached_property
    def momentum(self) -> Tensor | None:
        found = momentum(self.optimizer, self.group, self.state)
        g = self.gradient
        there = found is not None and g is not None and not g.is_sparse and found.shape == g.shape
        return found if there else None

    @cached_property
    def second_moment(self) -> Tensor | None:
        found = second_moment(self.optimizer, self.group, self.state)
        each = found is not None and found.shape == self.param.shape
        return reductions.real(found) if found is not None and each else None

    @cached_property
    def rows(self) -> Tensor | None:
        """The second moment of a layer whose rows have several elements."""
        v = self.second_moment
        return v if v is not None and prod(v.shape[1:]) > 1 else None

    @cached_property
    def second_moments(self) -> tuple[Tensor, Tensor]:
        return reductions.mean_and_relative_variance(self.of("second_moment"))

    @cached_property
    def row_ratio(self) -> tuple[Tensor, Tensor]:
        return reductions.row_ratio(self.of("rows"))

    @cached_property
    def update(self) -> Tensor | None:
        if self.before is not None:
            after, before = self.param.detach(), self.before
            return reductions.at_least_float32(after) - reductions.at_least_float32(before)
        param = self.param.detach()
        update = last_update(self.optimizer, self.group, self.state, param, self.lr)
        if update is not None and update.shape != (shape := reductions.real(param).shape):
            raise TypeError(
                f"The function that is registered with `last_update.register` for "
                f"{type(self.optimizer).__name__} must return a tensor of the shape {[*shape]}, "
                f"got {[*update.shape]}"
            )
        return update

    @cached_property
    def coalesced(self) -> Tensor:
        g = self.of("gradient")
        return g.coalesce() if g.is_sparse else g

    @cached_property
    def elements(self) -> Tensor:
        """The elements of the gradient, without those that a sparse one lacks."""
        return self.coalesced.values() if self.coalesced.is_sparse else self.coalesced

    def has(self, source: Source) -> bool:
        """Tell whether the layer has the source of a measure."""
        if source in ("stepsizes", "ceiling"):
            known = bool(self.state) and has_stepsize(self.optimizer)
            return known and (source == "stepsizes" or self.ceiling() is not None)
        if source in ("update", "gradient", "momentum", "second_moment", "rows"):
            return getattr(self, source) is not None
        return True

    def of(self, source: Source) -> Tensor:
        """Return the tensor of a source that the layer has."""
        tensor: Tensor = getattr(self, source)
        return tensor

    def ceiling(self) -> float | None:
        return stepsize_ceiling(self.optimizer, self.group)

    def ceiling_share(self) -> Tensor:
        ceiling = self.ceiling()
        assert ceiling is not None
        return reductions.share_at_least(self.stepsizes, AT_THE_CEILING * ceiling)

    def learning_rate(self) -> Number:
        return effective_learning_rate(self.group, self.state, self.lr, self.optimizer)

    def param_norm(self) -> Tensor:
        if self.before is not None:
            return reductions.norm(self.before)
        # A complex parameter's update is a real tensor.
        return reductions.norm(reductions.real(self.param.detach()) - self.of("update"))

    def gradient_norm(self) -> Tensor:
        return reductions.norm(self.elements)

    def gradient_cosine(self) -> Tensor:
        m, g = self.of("momentum"), self.elements
        return reductions.cosine(m, -g if self.group.get("maximize") else g)


@dataclass
class PartStep(LayerStep):
    """A part of a layer right after a step: rows of what was computed for the whole layer."""

    whole: LayerStep = field(kw_only=True)
    span: slice = field(kw_only=True)

    @cached_property
    def stepsizes(self) -> Tensor:
        s, n = self.whole.stepsizes, len(self.whole.param)
        if s.numel() == 1 or len(s) == 1:  # all rows have the same
            return s
        if len(s) != n:
            raise TypeError(
                f"The parts of a layer of {n} rows need stepsizes with a first dimension of {n} or "
                f"1; the function that is registered with `stepsize.register` for "
                f"{type(self.optimizer).__name__} returned the shape {[*s.shape]}"
            )
        return s[self.span]

    @cached_property
    def momentum(self) -> Tensor | None:
        m = self.whole.momentum
        return None if m is None else m[self.span]

    @cached_property
    def second_moment(self) -> Tensor | None:
        v = self.whole.second_moment
        return None if v is None else v[self.span]

    @cached_property
    def update(self) -> Tensor | None:
        update = self.whole.update
        return None if update is None else update[self.span]

    @cached_property
    def elements(self) -> Tensor:
        g, values = self.whole.coalesced, self.whole.elements
        if not g.is_sparse:
            return g[self.span]
        # A choice of the elements would wait for the device, to learn how many there are.
        row = g.indices()[0].view(-1, *[1] * (values.ndim - 1))
        return values.where((row >= self.span.start) & (row < self.span.stop), 0)


def step_of(whole: LayerStep, rows: Sequence[int] | None) -> LayerStep:
    """Return the step of a part, from a first row to before a last; None stands for the whole."""
    if rows is None:
        return whole
    part = slice(*rows)
    return PartStep(
        whole.optimizer,
        whole.group,
        whole.state,
        whole.param.detach()[part],
        whole.gradient,
        whole.lr,
        None if whole.before is None else whole.before[part],
        whole=whole,
        span=part,
    )


class Measure(NamedTuple):
    """A measure: its source, and the function that takes it.

    The function returns a float, a tensor that stays on the device, or None if there is no measure.
    """

    source: Source
    take: Callable[[LayerStep], Number | None]


# "q01" to "q99", the quantiles of the stepsizes, are measures as well.
MEASURES: dict[str, Measure] = {
    "mean": Measure("stepsizes", lambda layer: layer.moments[0]),
    "variance": Measure("stepsizes", lambda layer: layer.moments[1]),
    "min": Measure("stepsizes", lambda layer: layer.extremes[0]),
    "max": Measure("stepsizes", lambda layer: layer.extremes[1]),
    "count": Measure("stepsizes", lambda layer: float(layer.stepsizes.numel())),
    # In bins of equal width in the logarithm, each wider than the one below by the same factor.
    "histogram": Measure(
        "stepsizes", lambda layer: reductions.histogram(layer.stepsizes.log(), HISTOGRAM_BINS)
    ),
    "ceiling": Measure("ceiling", LayerStep.ceiling),
    "ceiling_share": Measure("ceiling", LayerStep.ceiling_share),
    "step": Measure("group", lambda layer: layer.state.get("step")),
    "beta2": Measure(
        "group", lambda layer: layer.group["betas"][1] if "betas" in layer.group else None
    ),
    "learning_rate": Measure("stepsizes", LayerStep.learning_rate),
    "update_norm": Measure("update", lambda layer: reductions.norm(layer.of("update"))),
    "param_norm": Measure("update", LayerStep.param_norm),
    "weight_norm": Measure("weights", lambda layer: reductions.norm(layer.param.detach())),
    "gradient_norm": Measure("gradient", LayerStep.gradient_norm),
    "momentum_norm": Measure("momentum", lambda layer: reductions.norm(layer.of("momentum"))),
    "gradient_cosine": Measure("momentum", LayerStep.gradient_cosine),
    "v_count": Measure("second_moment", lambda layer: float(layer.of("second_moment").numel())),
    "v_mean": Measure("second_moment", lambda layer: layer.second_moments[0]),
    "v_relative_variance": Measure("second_moment", lambda layer: layer.second_moments[1]),
    "v_row_count": Measure("rows", lambda layer: layer.row_ratio[1]),
    "v_row_ratio": Measure("rows", lambda layer: layer.row_ratio[0]),
}


def source_of(measure: str) -> Source:
    """Return the source of a measure."""
    return MEASURES[measure].source if measure in MEASURES else "stepsizes"


def take_measures(layer: LayerStep, names: Collection[str]) -> Row:
    """Take those measures that a layer has, without waiting for the device."""
    names = [name for name in names if layer.has(source_of(name))]
    taken = {name: MEASURES[name].take(layer) for name in names if name in MEASURES}
    # All quantiles are taken at once, because they need the layer sorted.
    if probabilities := {name: int(name[1:]) / 100 for name in names if name not in MEASURES}:
        found = reductions.quantiles(layer.stepsizes, [*probabilities.values()])
        taken |= zip(probabilities, found, strict=True)
    return {name: number for name, number in taken.items() if number is not None}


def to_host(rows: Iterable[Mapping[str, Number]]) -> list[dict[str, Any]]:
    """Bring measures to the host in one transfer per device, as floats or, for vectors, lists.

    Example:
        >>> to_host([{"mean": torch.tensor(2.0), "learning_rate": 0.5}])
        [{'mean': 2.0, 'learning_rate': 0.5}]
    """
    by_device: dict[torch.device, list[tuple[dict[str, Any], str, Tensor]]] = {}
    on_host: list[dict[str, Any]] = [dict(row) for row in rows]
    for row in on_host:
        for name, number in row.items():
            if isinstance(number, Tensor):
                by_device.setdefault(number.device, []).append((row, name, number))
    for entries in by_device.values():
        numbers = iter(torch.cat([number.reshape(-1) for _, _, number in entries]).tolist())
        for row, name, number in entries:
            row[name] = [*islice(numbers, len(number))] if number.ndim else next(numbers)
    return on_host
