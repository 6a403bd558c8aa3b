"""The result of a run, read from its event files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aida_lightning.compare.experiment import Target
from aida_lightning.logs import tags
from aida_lightning.logs.curves import Curve, epochs_at, read_scalars
from aida_lightning.logs.metric import Better, Metric

Status = Literal["completed", "interrupted", "diverged", "failed"]


@dataclass(frozen=True)
class RunResult:
    """One trained run.

    Args:
        label: the optimizer's label.
        method: the label of the method that it is a point of the grid of; else the same.
        optimizer: the optimizer's name.
        options: the optimizer's options.
        seed: the seed of initialisation and data order.
        metric: what the values are of: the experiment's metric, or a proxy of it.
        best: the best value; None if there was none.
        last: the last one.
        floor: the best value that can be expected, where the run measured it.
        wall_time_s: seconds of training, those before an interruption included.
        optimizer_state_bytes: the size of all tensors in the optimizer's state.
        epochs: how many epochs were finished.
        status: how the run ended.
        message: why, if it did not complete.
        better: which values the best one is chosen by, the greatest or the least.
        target: the value of the metric that the next three are about; None if none was asked for.
        steps_to_target: the optimizer's steps until the metric was first as good; None if never.
        epochs_to_target: the same in epochs.
        seconds_to_target: the same in seconds of training and validation.
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
    target: float | None = None
    steps_to_target: int | None = None
    epochs_to_target: float | None = None
    seconds_to_target: float | None = None


def measure_run(folder: Path, metric: Metric, target: Target | None = None) -> dict[str, Any]:
    """Read from a run's event files what they say of it, whichever process wrote them.

    Where the metric was not logged but a proxy of it was, `<name>_proxy`, the values are the
    proxy's, and so is the name.

    Returns:
        the fields of `RunResult` that follow from them; the status is that of a run that was
        trained to its end.
    """
    scalars = read_scalars(folder)
    name = metric.name
    if name not in scalars and name + tags.PROXY in scalars:
        name += tags.PROXY
    values = scalars[name].values if name in scalars else np.empty(0)
    finite = values[np.isfinite(values)]
    best = finite.max if metric.better == "max" else finite.min
    floor, state = scalars.get(name + tags.FLOOR), scalars.get(tags.STATE_BYTES)
    losses = [curve.values[-1] for tag, curve in scalars.items() if tags.is_loss(tag)]
    status, message = "completed", ""
    if tags.DIVERGED in scalars or not np.isfinite(losses).all():
        status, message = "diverged", "the loss is not finite"
    elif np.isnan(values).any():
        status, message = "diverged", f"{name!r} is not a number"
    elif not len(values):
        # What could have been the metric: the tags of the stepsizes have a layer after a slash.
        others = ", ".join(tag for tag in scalars if "/" not in tag)
        known = f"; there are {others}" if others else ", nor was any other"
        status, message = "failed", f"{name!r} was not logged{known}"
    return {
        "metric": name,
        "best": float(best()) if len(finite) else None,
        "last": float(values[-1]) if len(values) else None,
        "floor": None if floor is None else float(floor.values[-1]),
        "optimizer_state_bytes": None if state is None else int(state.values[-1]),
        "status": status,
        "message": message,
        "better": metric.better,
        **_way_to(target, scalars, metric),
    }


def measured_by(result: RunResult, metric: Metric) -> bool:
    """Return whether a result has values of a metric or its proxy, chosen as the metric says."""
    names = (metric.name, metric.name + tags.PROXY)
    return result.last is not None and result.metric in names and result.better == metric.better


def _way_to(
    target: Target | None, scalars: Mapping[str, Curve], metric: Metric
) -> dict[str, float | None]:
    """Return how long it took to reach a target, which a proxy of the metric does not reach."""
    if target is None:
        return {}
    steps = epochs = seconds = None
    if (curve := scalars.get(metric.name)) is not None:
        compare = np.greater_equal if metric.better == "max" else np.less_equal
        # Metrics are logged in float32, in which 0.9 is a little less.
        reached = compare(np.float32(curve.values), np.float32(target.value))
        if reached.any():
            first = int(reached.argmax())
            steps, seconds = int(curve.steps[first]) + 1, float(curve.seconds[first])
            if (epoch := scalars.get(tags.EPOCH)) is not None:
                epochs = float(epochs_at(curve.steps, epoch)[first])
    return {
        "target": target.value,
        "steps_to_target": steps,
        "epochs_to_target": epochs,
        "seconds_to_target": seconds,
    }
