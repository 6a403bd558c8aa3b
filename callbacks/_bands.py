"""The choice of the layers whose bands TensorBoard shows, since a page cannot hold them all."""

from collections.abc import Iterable, Sequence

from aida_lightning.logs import tags
from aida_lightning.logs.custom_scalars import CHARTS_PER_CATEGORY
from aida_lightning.logs.spread import evenly
from aida_lightning.measuring._statistics import Point
from aida_lightning.registry import matches_layer


class Bands:
    """Choose the layers of each optimizer that have a band from mean - std to mean + std.

    Args:
        globs: globs of layer names. None chooses as many layers per optimizer as a category holds,
            evenly spread over the depth, including the first and the last. Layers that join later
            fill the places that are left.
    """

    def __init__(self, globs: Sequence[str] | None = None) -> None:
        self._globs = globs
        self._chosen: dict[str, set[str]] = {}

    def edges(self, points: Iterable[Point]) -> dict[tuple[str, ...], float]:
        """Map the tags of the bands' edges to their numbers."""
        banded = [p for p in points if {tags.MEAN, tags.STD} <= p.statistics.keys()]
        layers: dict[str, list[str]] = {}
        for point in banded:
            layers.setdefault(point.optimizer, []).append(point.layer)
        for optimizer, names in layers.items():
            self._choose(names, self._chosen.setdefault(optimizer, set()))
        found: dict[tuple[str, ...], float] = {}
        for point in banded:
            if point.layer in self._chosen[point.optimizer]:
                mean, std = point.statistics[tags.MEAN], point.statistics[tags.STD]
                for tag, edge in zip(tags.MARGINS, (mean - std, mean + std), strict=True):
                    found[point.path(tag)] = edge
        return found

    def _choose(self, names: Sequence[str], chosen: set[str]) -> None:
        if self._globs is not None:
            chosen.update(n for n in names if any(matches_layer(n, g) for g in self._globs))
            return
        others = [name for name in names if name not in chosen]
        places = evenly(len(others), CHARTS_PER_CATEGORY - len(chosen))
        chosen.update(others[place] for place in places)
