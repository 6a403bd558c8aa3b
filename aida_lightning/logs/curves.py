"""Scalars read back from TensorBoard's event files: every point, one clean curve per tag."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.util.tensor_util import make_ndarray

from aida_lightning.logs import tags
from aida_lightning.logs.events import attempt_of, event_files, read_events

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Lightning writes these at every start, or beside every other metric, so a repetition at an earlier
# step does not show that a run was resumed.
_ACCOMPANYING_TAGS = {tags.HYPERPARAMETER_METRIC, tags.EPOCH}

_Points: TypeAlias = list[tuple[int, float, float]]  # step, value, seconds


@dataclass(frozen=True)
class Curve:
    """The points of one tag, by increasing step.

    Args:
        steps: distinct optimizer steps at which a value was logged, of shape (n,).
        values: values logged at these steps, of shape (n,), which may include NaN and infinities.
        seconds: seconds since the run began, of shape (n,), less the time between an interruption
            and the run's resumption; empty where they are not known.
    """

    steps: IntArray
    values: FloatArray
    seconds: FloatArray = field(default_factory=lambda: np.empty(0))


def read_scalars(folder: str | Path) -> dict[str, Curve]:
    """Read all scalars of one run, without sampling any away.

    If a run logged a step twice, the later value counts. A run that was resumed from an earlier
    step replaces everything that the abandoned part had logged from that step on, in every tag.
    That step is the one that the run noted for TensorBoard or, without a note, the first repeated
    step. A last record that was cut off when the run was killed is omitted.

    Args:
        folder: folder that holds the run's event files.

    Returns:
        The curve of each tag, in the order in which the tags first appear.
    """
    merged: dict[str, _Points] = {}
    files = [_read_file(path) for path in event_files(folder)]
    origin = None
    for file in sorted(files, key=lambda file: (attempt_of(file.name), file.started, file.name)):
        resumed_at = file.restart
        if resumed_at is None:
            again = file.points.keys() & merged.keys() - _ACCOMPANYING_TAGS
            resumed_at = min((file.points[tag][0][0] for tag in again), default=None)
        if resumed_at is not None:
            for curve in merged.values():
                while curve and curve[-1][0] >= resumed_at:
                    curve.pop()
        if origin is None or resumed_at is not None:
            before = max((curve[-1][2] for curve in merged.values() if curve), default=0.0)
            origin = file.started - before
        for tag, curve in file.points.items():
            into = merged.setdefault(tag, [])
            for step, number, time in curve:
                _append(into, (step, number, time - origin))
    return {
        tag: Curve(
            np.array([step for step, _, _ in curve], dtype=np.int64),
            np.array([number for _, number, _ in curve], dtype=np.float64),
            np.array([seconds for _, _, seconds in curve], dtype=np.float64),
        )
        for tag, curve in merged.items()
        if curve
    }


def epochs_at(steps: IntArray, epoch: Curve) -> FloatArray:
    """Compute the number of epochs, including fractions, that were done after some optimizer steps.

    Lightning numbers both from 0: if an epoch has ``n`` steps, a metric logged at step ``s`` is
    logged beside ``epoch = s // n``, and ``(s + 1) / n`` epochs are done at this point.

    Args:
        steps: indices of optimizer steps, of shape (n,).
        epoch: curve of the "epoch" that Lightning logged beside its metrics.

    Returns:
        The numbers of epochs, of shape (n,).
    """
    done = epoch.steps + 1.0
    index = np.floor(epoch.values)
    # All epochs of n steps agree with every point where (s + 1) / (e + 1) <= n <= s / e. Metrics
    # logged at the end of an epoch meet the first bound, which makes n exact.
    fewest = float(np.max(done / (index + 1.0)))
    later = index > 0
    most = float(np.min(epoch.steps[later] / index[later])) if later.any() else math.inf
    length = math.ceil(fewest) if math.ceil(fewest) <= most else fewest
    if length <= most:
        return np.asarray((steps + 1.0) / length, dtype=np.float64)
    # Epochs of different lengths: straight lines between the last points of each epoch.
    last = np.append(np.flatnonzero(np.diff(index) > 0), len(index) - 1)
    ends = np.concatenate([[0.0], done[last]])
    numbers = np.concatenate([[0.0], index[last] + 1.0])
    if len(last) > 1:  # The last epoch may have been cut short, so it gets its predecessor's pace.
        pace = (numbers[-2] - numbers[-3]) / (ends[-2] - ends[-3])
        numbers[-1] = min(numbers[-1], numbers[-2] + (ends[-1] - ends[-2]) * pace)
    return np.asarray(np.interp(steps + 1.0, ends, numbers), dtype=np.float64)


@dataclass
class _File:
    name: str
    started: float = math.inf
    restart: int | None = None  # the step from which it replaces what the run had logged
    points: dict[str, _Points] = field(default_factory=dict)


def _read_file(path: str) -> _File:
    file = _File(Path(path).name)
    for event in read_events(path):
        file.started = min(file.started, event.wall_time)
        if event.session_log.status == SessionLog.START:
            file.restart = event.step if file.restart is None else min(file.restart, event.step)
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            points = file.points.setdefault(value.tag, [])
            if kind == "simple_value":
                _append(points, (event.step, value.simple_value, event.wall_time))
            elif kind == "tensor" and value.metadata.plugin_data.plugin_name == "scalars":
                number = float(make_ndarray(value.tensor).item())
                _append(points, (event.step, number, event.wall_time))
    file.points = {tag: points for tag, points in file.points.items() if points}
    return file


def _append(points: _Points, point: tuple[int, float, float]) -> None:
    while points and points[-1][0] >= point[0]:
        points.pop()
    points.append(point)
