"""The result of a run, read from its event files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aida_lightning.compare.experiment import Experiment, Target
from aida_lightning.compare.methods import OptimizerChoice
from aida_lightning.logs import tags
from aida_lightning.logs.curves import Curve, epochs_at, read_scalars
from aida_lightning.logs.metric import Better, Metric

Status = Literal["completed", "interrupted", "diverged", "failed"]


@dataclass(frozen=True)
class RunResult:
    """One trained run.

    Args:
        label: label of the optimizer.
        method: label of the method whose grid includes the run; without a grid, equal to `label`.
        optimizer: name of the optimizer.
        options: options of the optimizer.
        seed: seed of the initialisation and data order.
        metric: name of the values: the experiment's metric, or a proxy of it.
        best: best value; None if there is no value.
        last: last value; None if there is no value.
        floor: best value that can be expected; None if the run did not measure it.
        wall_time_s: seconds of training, including those before an interruption.
        optimizer_state_bytes: size of all tensors in the optimizer's state, in bytes.
        epochs: number of finished epochs.
        status: how the run ended.
        message: why the run did not complete; empty if it did.
        better: whether the best value is the greatest ("max") or the least ("min").
        target: target value of the metric; None if there is no target.
        steps_to_target: the optimizer's steps until the metric first reached the target; None if it
            never did.
        epochs_to_target: epochs until then.
        seconds_to_target: seconds of training and validation until then.
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


def run_result(
    folder: Path,
    optimizer: OptimizerChoice,
    seed: int,
    experiment: Experiment,
    seconds: float,
    epochs: int,
    failure: Mapping[str, str],
) -> RunResult:
    """Read the result of a run from its event files.

    Args:
        folder: the run's own folder.
        optimizer: optimizer of the run.
        seed: seed of the run.
        experiment: experiment, whose metric and target are read.
        seconds: seconds of training.
        epochs: number of finished epochs.
        failure: the `status` and the `message` of a run that did not complete; empty otherwise.
    """
    measured = measure_run(folder, experiment.metric, experiment.target)
    return RunResult(
        label=optimizer.label,
        method=optimizer.method,
        optimizer=optimizer.name,
        options=optimizer.options,
        seed=seed,
        wall_time_s=seconds,
        epochs=epochs,
        **{**measured, **failure},
    )


def measure_run(folder: Path, metric: Metric, target: Target | None = None) -> dict[str, Any]:
    """Read a run's results from its event files, whichever process wrote them.

    If a proxy of the metric, `<name>_proxy`, was logged instead of the metric, the values and the
    name are the proxy's.

    Returns:
        The fields of `RunResult` that follow from the files. The status assumes that the run was
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
        # Tags that could be the metric; those of the stepsizes have a layer after a slash.
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
    """Return whether a result has values of a metric or its proxy, and the same direction."""
    names = (metric.name, metric.name + tags.PROXY)
    return result.last is not None and result.metric in names and result.better == metric.better


def _way_to(
    target: Target | None, scalars: Mapping[str, Curve], metric: Metric
) -> dict[str, float | None]:
    """Return how long it took to reach a target; a proxy of the metric never reaches it."""
    if target is None:
        return {}
    steps = epochs = seconds = None
    if (curve := scalars.get(metric.name)) is not None:
        compare = np.greater_equal if metric.better == "max" else np.less_equal
        # Metrics are logged in float32, in which 0.9 is slightly less than 0.9.
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
