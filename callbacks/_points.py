"""What was sampled, on the host: the points to log."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aida_lightning.callbacks._statistics import Number, Statistic, finish, to_host
from aida_lightning.callbacks._watched import Sample
from aida_lightning.logs import tags


@dataclass(frozen=True)
class Point:
    """One layer at one step.

    Attributes:
        optimizer: its name, empty where there is only one.
        layer: its name.
        numbers: what was measured, by name.
        statistics: what is logged, by tag.
    """

    optimizer: str
    layer: str
    numbers: dict[str, Any]
    statistics: dict[str, float]

    def path(self, tag: str) -> tuple[str, ...]:
        """Give the parts of the name that a number of the layer is logged as."""
        return (self.optimizer, tag, self.layer) if self.optimizer else (tag, self.layer)


def points_of(samples: Sequence[Sample], statistics: Iterable[Statistic]) -> list[Point]:
    """Bring samples to the host, in one transfer a device; steps that were left out are left out.

    Args:
        samples: one an optimizer.
        statistics: the statistics to finish.
    """
    statistics = list(statistics)
    layers = [(sample, layer, row) for sample in samples for layer, row in sample.rows.items()]
    flags: list[dict[str, Number]] = [
        {} if sample.skipped is None else {"skipped": sample.skipped.reshape(())}
        for sample in samples
    ]
    host = to_host([*flags, *(row for _, _, row in layers)])
    left_out = {
        sample.optimizer for sample, flag in zip(samples, host, strict=False) if any(flag.values())
    }
    points = []
    for (sample, layer, _), numbers in zip(layers, host[len(flags) :], strict=True):
        if sample.optimizer not in left_out:
            finished = {statistic.tag: finish(statistic, numbers) for statistic in statistics}
            known = {tag: number for tag, number in finished.items() if number is not None}
            points.append(Point(sample.optimizer, layer, numbers, known))
    return points


def scalars_of(points: Iterable[Point], margins: bool = False) -> dict[tuple[str, ...], float]:
    """Name the numbers to log; with ``margins`` mean - std and mean + std are among them."""
    scalars = {}
    for point in points:
        for tag, number in point.statistics.items():
            scalars[point.path(tag)] = number
        if margins and {tags.MEAN, tags.STD} <= point.statistics.keys():
            mean, std = point.statistics[tags.MEAN], point.statistics[tags.STD]
            for tag, edge in zip(tags.MARGINS, (mean - std, mean + std), strict=True):
                scalars[point.path(tag)] = edge
    return scalars
