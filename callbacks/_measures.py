"""What is measured of a layer on its device, and the points to log that the host makes of it."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from operator import mul
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from aida_lightning._lightning import MisconfigurationException
from aida_lightning.callbacks._adapters import last_update, stepsize, stepsize_ceiling
from aida_lightning.diagnostics import effective_learning_rate, reductions
from aida_lightning.logs import tags

# Stepsizes at the ceiling differ by what v rounds, which adds up over 1 / (1 - beta2) steps.
AT_THE_CEILING = 1 - 1e-3
HISTOGRAM_BINS = 64

Number: TypeAlias = Tensor | float
Row: TypeAlias = dict[str, Number]  # the measures of one layer, by name


@dataclass
class LayerStep:
    """One layer right after a step; several measures share what is cached."""

    optimizer: Optimizer
    group: dict[str, Any]
    state: dict[str, Any]
    param: Tensor
    lr: Number
    before: Tensor | None = None  # the parameter before the step, where it was kept

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
    def update(self) -> Tensor | None:
        if self.before is not None:
            return self.param.detach() - self.before
        return last_update(self.optimizer, self.group, self.state, self.param.detach(), self.lr)

    def ceiling(self) -> float | None:
        return stepsize_ceiling(self.optimizer, self.group)

    def ceiling_share(self) -> Tensor | None:
        if (ceiling := self.ceiling()) is None:
            return None
        return reductions.share_at_least(self.stepsizes, AT_THE_CEILING * ceiling)

    def learning_rate(self) -> Number:
        return effective_learning_rate(self.group, self.state, self.lr)

    def update_norm(self) -> Tensor | None:
        return None if self.update is None else reductions.norm(self.update)

    def param_norm(self) -> Tensor | None:
        if self.before is not None:
            return reductions.norm(self.before)
        if self.update is None:
            return None
        # A complex parameter's update is a real tensor.
        return reductions.norm(reductions.real(self.param.detach()) - self.update)

    def gradient_cosine(self) -> Tensor | None:
        m, g = self.state.get("exp_avg"), self.param.grad
        if m is None or g is None or g.is_sparse or m.shape != g.shape:
            return None
        return reductions.cosine(m, -g if self.group.get("maximize") else g)


# Each gives a tensor that is left on the device, or a float; None where there is none to be had.
# "q01" to "q99", the quantiles, are measures as well.
MEASURES: dict[str, Callable[[LayerStep], Number | None]] = {
    "mean": lambda layer: layer.moments[0],
    "variance": lambda layer: layer.moments[1],
    "min": lambda layer: layer.extremes[0],
    "max": lambda layer: layer.extremes[1],
    "step": lambda layer: layer.state.get("step"),
    "beta2": lambda layer: layer.group["betas"][1] if "betas" in layer.group else None,
    "ceiling": LayerStep.ceiling,
    "ceiling_share": LayerStep.ceiling_share,
    "learning_rate": LayerStep.learning_rate,
    "update_norm": LayerStep.update_norm,
    "param_norm": LayerStep.param_norm,
    "gradient_cosine": LayerStep.gradient_cosine,
    "count": lambda layer: float(layer.stepsizes.numel()),
    "histogram": lambda layer: reductions.histogram(layer.stepsizes, HISTOGRAM_BINS),
}


def take_measures(layer: LayerStep, names: Collection[str]) -> Row:
    """Take measures of one layer without a wait for the device, leaving out those it has not."""
    taken = {name: MEASURES[name](layer) for name in names if name in MEASURES}
    # All quantiles at once, for they sort the layer.
    if probabilities := {name: int(name[1:]) / 100 for name in names if name not in MEASURES}:
        found = reductions.quantiles(layer.stepsizes, [*probabilities.values()])
        taken |= zip(probabilities, found, strict=True)
    return {name: number for name, number in taken.items() if number is not None}


def to_host(rows: Iterable[Mapping[str, Number]]) -> list[dict[str, Any]]:
    """Bring measures to the host in one transfer per device: floats, and lists of 1-dim tensors.

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


@dataclass(frozen=True)
class Statistic:
    """What is logged as ``<tag>/<layer>``, from which measures, and by which formula."""

    tag: str
    measures: tuple[str, ...]
    formula: Callable[..., float] = float

    def compute(self, numbers: Mapping[str, Any]) -> float | None:
        """Compute the statistic from measures on the host; None where one of them is missing."""
        needed = [numbers.get(name) for name in self.measures]
        return None if None in needed else self.formula(*needed)


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.copysign(math.inf, a) if a else math.nan


def _std_over_mean(variance: float, mean: float) -> float:
    return _ratio(math.sqrt(variance), mean)


def _effective_std(variance: float, learning_rate: float) -> float:
    return math.sqrt(variance) * learning_rate


STATISTICS: dict[str, Statistic] = {
    "mean": Statistic(tags.MEAN, ("mean",)),
    "std": Statistic(tags.STD, ("variance",), math.sqrt),
    "std_over_mean": Statistic(tags.STD_OVER_MEAN, ("variance", "mean"), _std_over_mean),
    "min": Statistic(tags.MIN, ("min",)),
    "max": Statistic(tags.MAX, ("max",)),
    "ceiling_share": Statistic(tags.CEILING_SHARE, ("ceiling_share",)),
    "effective_mean": Statistic(tags.EFFECTIVE_MEAN, ("mean", "learning_rate"), mul),
    "effective_std": Statistic(tags.EFFECTIVE_STD, ("variance", "learning_rate"), _effective_std),
    "update_ratio": Statistic(tags.UPDATE_RATIO, ("update_norm", "param_norm"), _ratio),
    "gradient_cosine": Statistic(tags.GRADIENT_COSINE, ("gradient_cosine",)),
}
_QUANTILE = re.compile(r"q(?!00)\d{2}|median")


def choose_statistics(names: Iterable[str]) -> list[Statistic]:
    """Look the names up, in their order; ``"median"`` and ``"q01"`` to ``"q99"`` are quantiles.

    Raises:
        MisconfigurationException: there is no statistic of a name.
    """
    chosen = []
    for name in names:
        if _QUANTILE.fullmatch(name):
            chosen.append(Statistic(f"stepsize_{name}", ("q50" if name == "median" else name,)))
        elif name in STATISTICS:
            chosen.append(STATISTICS[name])
        else:
            raise MisconfigurationException(
                f"there is no statistic {name!r}; there are {', '.join(STATISTICS)}, median, and "
                "q01 to q99 for quantiles"
            )
    return chosen


@dataclass(frozen=True)
class Point:
    """One layer at one step, on the host: its measures by name, and its statistics by tag.

    ``optimizer`` is empty where there is only one.
    """

    optimizer: str
    layer: str
    numbers: dict[str, Any]
    statistics: dict[str, float]

    def path(self, tag: str) -> tuple[str, ...]:
        """Return the parts of the name that a number of the layer is logged as."""
        return (self.optimizer, tag, self.layer) if self.optimizer else (tag, self.layer)


def points_of(
    samples: Mapping[str, Mapping[str, Row]], statistics: Collection[Statistic]
) -> list[Point]:
    """Bring samples to the host, in one transfer per device, and compute statistics of them.

    Args:
        samples: the rows of layers, by optimizer and layer.
        statistics: the statistics to compute.
    """
    names = [(optimizer, layer) for optimizer, rows in samples.items() for layer in rows]
    on_host = to_host(row for rows in samples.values() for row in rows.values())
    points = []
    for (optimizer, layer), numbers in zip(names, on_host, strict=True):
        computed = {statistic.tag: statistic.compute(numbers) for statistic in statistics}
        known = {tag: number for tag, number in computed.items() if number is not None}
        points.append(Point(optimizer, layer, numbers, known))
    return points


def scalars_of(points: Iterable[Point], margins: bool = False) -> dict[tuple[str, ...], float]:
    """Name the numbers to log; with ``margins`` mean - std and mean + std are among them."""
    scalars: dict[tuple[str, ...], float] = {}
    for point in points:
        statistics = dict(point.statistics)
        if margins and {tags.MEAN, tags.STD} <= statistics.keys():
            mean, std = statistics[tags.MEAN], statistics[tags.STD]
            statistics |= zip(tags.MARGINS, (mean - std, mean + std), strict=True)
        scalars |= {point.path(tag): number for tag, number in statistics.items()}
    return scalars
