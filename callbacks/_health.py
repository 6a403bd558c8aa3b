"""Signs that the adaptive stepsizes of a layer have stopped to adapt."""

import math
from collections.abc import Callable, Sequence

from lightning.pytorch.utilities import rank_zero_warn

from aida_lightning.callbacks._measures import AT_THE_CEILING, Point
from aida_lightning.logs import tags

# With n stepsizes of mean a and deviation c * a, one part in 1 + c^2 of them, equal and the rest
# zero, has the same two moments: at 10, a hundredth of the elements makes nearly all of the update.
LARGEST_SPREAD = 10.0

HEALTH_MEASURES = ("mean", "variance", "ceiling", "step", "beta2")


def at_the_ceiling(point: Point) -> bool:
    """Tell whether all stepsizes are at the ceiling: none is above it, and so is then the mean."""
    ceiling = point.numbers.get("ceiling")
    reached = ceiling is not None and point.numbers["mean"] >= AT_THE_CEILING * ceiling
    return bool(reached and _is_settled(point))


def is_spread(point: Point) -> bool:
    """Tell whether few elements of the layer have nearly all of its stepsizes."""
    mean, variance = point.numbers["mean"], point.numbers["variance"]
    spread = math.isfinite(variance) and math.sqrt(variance) > LARGEST_SPREAD * mean
    return spread and _is_settled(point)


def is_not_finite(point: Point) -> bool:
    """Tell whether a number is NaN or infinite; an update may be, relative to weights of zero."""
    others = [number for tag, number in point.statistics.items() if tag != tags.UPDATE_RATIO]
    return not all(map(math.isfinite, (point.numbers["mean"], point.numbers["variance"], *others)))


def _is_settled(point: Point) -> bool:
    """Tell whether v has averaged over the 1 / (1 - beta2) steps that it remembers.

    At the start of a training the gradients of healthy layers can be small enough to be outweighed.
    """
    step, beta2 = point.numbers.get("step"), point.numbers.get("beta2")
    return step is None or beta2 is None or round(step * (1 - beta2), 6) >= 1


SIGNS: dict[Callable[[Point], bool], str] = {
    at_the_ceiling: (
        "all adaptive stepsizes are at their ceiling sqrt((1 - beta2) / eps), so that the layers "
        "take steps of plain momentum; a smaller eps raises the ceiling, and layers whose gradient "
        "is zero are there always"
    ),
    is_spread: (
        f"the adaptive stepsizes' std is more than {LARGEST_SPREAD:g} times their mean: less than "
        "one element in a hundred makes nearly all of the update; a larger eps limits them"
    ),
    is_not_finite: "a statistic of the adaptive stepsizes is not finite",
}


class Health:
    """Warns once of each sign, with the names of the layers that show it at that step.

    The points that it looks at have ``HEALTH_MEASURES`` among their numbers.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def check(self, points: Sequence[Point], step: int) -> None:
        """Look at the points of one step."""
        for sign, meaning in SIGNS.items():
            if meaning in self._warned:
                continue
            layers = [f"{p.optimizer} {p.layer}".strip() for p in points if sign(p)]
            if layers:
                self._warned.add(meaning)
                rank_zero_warn(
                    f"StepsizeMonitor, at step {step}: {meaning}. Layers: {', '.join(layers)}. "
                    "This is said once; StepsizeMonitor(health=False) looks for no such signs."
                )
