"""Signs that the adaptive stepsizes of a layer have stopped adapting."""

import math
from collections.abc import Callable, Sequence

from lightning_utilities.core.rank_zero import rank_zero_warn

from aida_lightning.logs import tags
from aida_lightning.measuring._layer import AT_THE_CEILING
from aida_lightning.measuring._statistics import Point

# If one in 1 + c^2 stepsizes is a (1 + c^2) and the others are 0, their mean is a and their
# standard deviation is c a. So at c = 10, 1 % of the elements make up nearly all of the update.
LARGEST_SPREAD = 10.0

HEALTH_MEASURES = ("mean", "variance", "ceiling", "step", "beta2")


def at_the_ceiling(point: Point) -> bool:
    """Tell whether all stepsizes are at the ceiling, which is so exactly if their mean is."""
    ceiling = point.numbers.get("ceiling")
    reached = ceiling is not None and point.numbers["mean"] >= AT_THE_CEILING * ceiling
    return bool(reached and _is_settled(point))


def is_spread(point: Point) -> bool:
    """Tell whether a few elements make up nearly the whole sum of the layer's stepsizes."""
    mean, variance = point.numbers.get("mean"), point.numbers.get("variance")
    if mean is None or variance is None:
        return False
    spread = math.isfinite(variance) and math.sqrt(variance) > LARGEST_SPREAD * mean
    return spread and _is_settled(point)


def is_not_finite(point: Point) -> bool:
    """Tell whether a number is NaN or infinite, other than an update relative to zero weights."""
    moments = [point.numbers[name] for name in ("mean", "variance") if name in point.numbers]
    others = [number for tag, number in point.statistics.items() if tag != tags.UPDATE_RATIO]
    return not all(map(math.isfinite, (*moments, *others)))


def _is_settled(point: Point) -> bool:
    """Tell whether v has averaged over the 1 / (1 - beta2) steps that it remembers.

    Before that, eps can outweigh the small first gradients of a healthy layer.
    """
    step, beta2 = point.numbers.get("step"), point.numbers.get("beta2")
    return step is None or beta2 is None or round(step * (1 - beta2), 6) >= 1


SIGNS: dict[Callable[[Point], bool], str] = {
    at_the_ceiling: (
        "all adaptive stepsizes are at their ceiling sqrt((1 - beta2) / eps), so the layers take "
        "steps of plain momentum; a smaller eps raises the ceiling. Layers whose gradient is zero "
        "are always at the ceiling"
    ),
    is_spread: (
        f"the adaptive stepsizes' std is more than {LARGEST_SPREAD:g} times their mean, so less "
        "than 1 % of the elements make up nearly all of the update; a larger eps limits them"
    ),
    is_not_finite: "a statistic is not finite",
}


class Health:
    """Warn once about each sign, with the names of the layers that show it at that step."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def check(self, points: Sequence[Point], step: int) -> None:
        """Look for signs in the points of one step, which hold ``HEALTH_MEASURES``."""
        for sign, meaning in SIGNS.items():
            if meaning in self._warned:
                continue
            layers = [f"{p.optimizer} {p.layer}".strip() for p in points if sign(p)]
            if layers:
                self._warned.add(meaning)
                rank_zero_warn(
                    f"StepsizeMonitor, at step {step}: {meaning}. Layers: {', '.join(layers)}. "
                    "This warning appears once; StepsizeMonitor(health=False) turns it off."
                )
