"""The statistics of a layer's step: their names, formulas and tags, and the points to log."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from operator import mul
from typing import Any

from torch.optim import Optimizer

from aida_lightning.diagnostics import has_stepsize
from aida_lightning.diagnostics.reductions import LARGEST_RATIO
from aida_lightning.logs import tags
from aida_lightning.measuring._layer import Row, source_of, to_host


@dataclass(frozen=True)
class Statistic:
    """A number logged as ``<tag>/<layer>``, with the measures and the formula that give it."""

    tag: str
    measures: tuple[str, ...]
    formula: Callable[..., float] = float

    @property
    def of_stepsizes(self) -> bool:
        """Whether an optimizer needs adaptive stepsizes to have this statistic."""
        return any(source_of(name) in ("stepsizes", "ceiling") for name in self.measures)

    def compute(self, numbers: Mapping[str, Any]) -> float | None:
        """Compute the statistic from measures on the host; None if one of them is missing."""
        needed = [numbers.get(name) for name in self.measures]
        return None if None in needed else self.formula(*needed)


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.copysign(math.inf, a) if a else math.nan


def _std_over_mean(variance: float, mean: float) -> float:
    return _ratio(math.sqrt(variance), mean)


def _effective_std(variance: float, learning_rate: float) -> float:
    return math.sqrt(variance) * learning_rate


def _snr(mean: float, relative_variance: float) -> float:
    return 1 / max(relative_variance, 1 / LARGEST_RATIO) if mean else 0.0


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
    "update_norm": Statistic(tags.UPDATE_NORM, ("update_norm",)),
    "weight_norm": Statistic(tags.WEIGHT_NORM, ("weight_norm",)),
    "gradient_norm": Statistic(tags.GRADIENT_NORM, ("gradient_norm",)),
    "gradient_cosine": Statistic(tags.GRADIENT_COSINE, ("gradient_cosine",)),
    "snr": Statistic(tags.SNR, ("v_mean", "v_relative_variance"), _snr),
    "snr_rows": Statistic(tags.SNR_ROWS, ("v_row_ratio",)),
}
# The statistics that are logged if an optimizer has none of the requested ones.
WITHOUT_STEPSIZES = [
    STATISTICS[name]
    for name in ("update_ratio", "update_norm", "weight_norm", "gradient_norm", "gradient_cosine")
]
_QUANTILE = re.compile(r"q(?!00)\d{2}|median")


def choose_statistics(names: Iterable[str]) -> list[Statistic]:
    """Look up statistics by name; ``"median"`` and ``"q01"`` to ``"q99"`` are quantiles.

    Raises:
        ValueError: a name is unknown, or there are no names.
    """
    chosen = []
    for name in names:
        if _QUANTILE.fullmatch(name):
            chosen.append(Statistic(f"stepsize_{name}", ("q50" if name == "median" else name,)))
        elif name in STATISTICS:
            chosen.append(STATISTICS[name])
        else:
            raise ValueError(
                f"Unknown statistic {name!r}; the statistics are {', '.join(STATISTICS)}, median, "
                "and q01 to q99 for quantiles"
            )
    if not chosen:
        raise ValueError("statistics must name at least one statistic")
    return chosen


def to_be_had(statistics: Collection[Statistic], optimizer: Optimizer) -> list[Statistic]:
    """Return the requested statistics that an optimizer has or, without any, the default ones."""
    if has_stepsize(optimizer):
        return [*statistics]
    return [s for s in statistics if not s.of_stepsizes] or WITHOUT_STEPSIZES


@dataclass(frozen=True)
class Point:
    """One layer at one step, on the host: its measures by name, and its statistics by tag.

    ``optimizer`` is empty if there is only one.
    """

    optimizer: str
    layer: str
    numbers: dict[str, Any]
    statistics: dict[str, float]

    def path(self, tag: str) -> tuple[str, ...]:
        """Return the parts of the name under which a number of the layer is logged."""
        return (self.optimizer, tag, self.layer) if self.optimizer else (tag, self.layer)


def points_of(
    samples: Mapping[str, Mapping[str, Row]], statistics: Mapping[str, Collection[Statistic]]
) -> list[Point]:
    """Bring samples to the host, in one transfer per device, and compute their statistics.

    Args:
        samples: rows of measures, by optimizer and layer.
        statistics: statistics to compute, by optimizer.
    """
    names = [(optimizer, layer) for optimizer, rows in samples.items() for layer in rows]
    on_host = to_host(row for rows in samples.values() for row in rows.values())
    points = []
    for (optimizer, layer), numbers in zip(names, on_host, strict=True):
        computed = {s.tag: s.compute(numbers) for s in statistics[optimizer]}
        known = {tag: number for tag, number in computed.items() if number is not None}
        points.append(Point(optimizer, layer, numbers, known))
    return points


def scalars_of(points: Iterable[Point]) -> dict[tuple[str, ...], float]:
    """Map the name of each number to log, in parts, to the number."""
    return {point.path(tag): number for point in points for tag, number in point.statistics.items()}
