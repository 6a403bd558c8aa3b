"""What one run gave, read from its event files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aida_lightning.logs import tags
from aida_lightning.logs.curves import read_scalars
from aida_lightning.logs.metric import Better, Metric

Status = Literal["completed", "interrupted", "diverged", "failed"]


@dataclass(frozen=True)
class RunResult:
    """One trained run.

    Args:
        label: The optimizer's label.
        method: The label of the method that it is a point of the grid of; else the same.
        optimizer: The optimizer's name.
        options: The optimizer's options.
        seed: The seed of initialisation and data order.
        metric: What the values are of: the experiment's metric, or a proxy of it.
        best: The best value; None if there was none.
        last: The last one.
        floor: The best value that can be expected, where the run measured it.
        wall_time_s: Seconds of training, those before an interruption included.
        optimizer_state_bytes: The size of all tensors in the optimizer's state.
        epochs: How many epochs were finished.
        status: How the run ended.
        message: Why, if it did not complete.
        better: Which values the best one is chosen by, the greatest or the least.
    """

    label: str
    method: str
    optimizer: str
    options: dict[str, Any]
    seed: int
    metric: str
    best: float | None
    last: float | None
    floor: float | None
    wall_time_s: float
    optimizer_state_bytes: int | None
    epochs: int
    status: Status
    message: str = ""
    better: Better = "max"


@dataclass(frozen=True)
class Measurements:
    """What the event files of one run say about it; the fields are those of `RunResult`.

    Of others it has the names, but for the adaptive stepsizes: what could have been the metric.
    """

    metric: str
    best: float | None = None
    last: float | None = None
    floor: float | None = None
    optimizer_state_bytes: int | None = None
    diverged: bool = False
    others: Sequence[str] = field(default=(), compare=False)

    @property
    def values(self) -> dict[str, Any]:
        """Those fields of a `RunResult` that are measured."""
        names = ("metric", "best", "last", "floor", "optimizer_state_bytes")
        return {name: getattr(self, name) for name in names}

    @property
    def outcome(self) -> tuple[Status, str]:
        """The status and the message of a run that was trained to its end."""
        if self.diverged:
            return "diverged", "the loss is not finite"
        if self.last is None:
            others = (
                f"; there are {', '.join(self.others)}" if self.others else ", nor was any other"
            )
            return "failed", f"{self.metric!r} was not logged{others}"
        return "completed", ""


def measure(folder: Path, metric: Metric) -> Measurements:
    """Reads a run's results from its event files, whichever process wrote them.

    Where the metric was not logged but a proxy of it was, `<name>_proxy`, the values are the
    proxy's, and so is the name.
    """
    scalars = read_scalars(folder)
    name = metric.name
    if name not in scalars and name + tags.PROXY in scalars:
        name += tags.PROXY
    values = scalars[name].values if name in scalars else np.empty(0)
    finite = values[np.isfinite(values)]
    floor, state = scalars.get(name + tags.FLOOR), scalars.get(tags.STATE_BYTES)
    best = finite.max if metric.better == "max" else finite.min
    return Measurements(
        metric=name,
        best=float(best()) if len(finite) else None,
        last=float(values[-1]) if len(values) else None,
        floor=None if floor is None else float(floor.values[-1]),
        optimizer_state_bytes=None if state is None else int(state.values[-1]),
        others=[tag for tag in scalars if "/" not in tag],
        diverged=any(
            not np.isfinite(curve.values[-1]) for tag, curve in scalars.items() if tags.is_loss(tag)
        ),
    )


def measured_by(result: RunResult, metric: Metric) -> bool:
    """Whether a result has values of a metric, or of its proxy, that are chosen as it says."""
    names = (metric.name, metric.name + tags.PROXY)
    return result.last is not None and result.metric in names and result.better == metric.better
