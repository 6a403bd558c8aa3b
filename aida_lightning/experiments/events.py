"""Runs read back from TensorBoard event files: every point, one clean curve a tag."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_MONITOR_TAG = re.compile(r"(?:(?P<optimizer>.+)/)?stepsize_(?P<statistic>mean|std)/(?P<layer>.+)")
_SEED_FOLDER = re.compile(r"seed_-?\d+")
# Lightning writes these at every start, or beside every other metric: that one of them comes again
# at an earlier step does not say that a run was resumed.
_ACCOMPANYING_TAGS = {"hp_metric", "epoch"}


class EventsError(ValueError):
    """No run that can be drawn was found; the message says what was looked for, and where."""


@dataclass(frozen=True)
class Curve:
    """The points of one tag, by increasing step.

    Args:
        steps: The optimizer steps at which a value was logged, each once.
        values: The values logged there; may hold NaN and infinities.
    """

    steps: IntArray
    values: FloatArray


@dataclass(frozen=True)
class MonitoredRun:
    """The adaptive stepsizes of one optimizer in one run, as `StepsizeMonitor` logged them.

    Args:
        label: What to call the run; the seeds of one optimizer share it.
        path: The folder of its event files.
        mean: The mean of each layer's adaptive stepsizes, layers from input to output.
        std: Their standard deviation, likewise.
        epoch: The "epoch" that Lightning logs beside its metrics, if it was logged.
    """

    label: str
    path: Path
    mean: dict[str, Curve] = field(default_factory=dict)
    std: dict[str, Curve] = field(default_factory=dict)
    epoch: Curve | None = None

    @property
    def layers(self) -> list[str]:
        """The names of the monitored layers, from input to output."""
        return list(dict.fromkeys([*self.mean, *self.std]))


def find_runs(logdirs: Iterable[str | Path]) -> dict[Path, str]:
    """Finds every folder that holds event files, and derives its label from its path alone.

    The seeds that `aida-lightning compare` writes, `<label>/seed_<n>` with underscores for the
    spaces, get the label (preceded by the folders above it where two comparisons share it); any
    other run, as `lightning_logs/version_3`, gets its path relative to the given folder.

    Args:
        logdirs: The folders to search, at any depth.

    Returns:
        The label of each run's folder, in the order of the folders given, then of their paths.

    Raises:
        EventsError: If a folder does not exist or holds no event files.
    """
    groups: dict[Path, Path] = {}  # of each run: the folder that its seeds share, or its own
    names: dict[Path, tuple[str, str, str]] = {}  # of each group: from short to unmistakable
    for logdir in map(Path, logdirs):
        if not logdir.is_dir():
            raise EventsError(f"{logdir}: no such folder")
        root = logdir.resolve()
        runs = sorted({file.parent for file in root.rglob("*tfevents*")}, key=_natural_key)
        if not runs:
            raise EventsError(
                f"{logdir}: no TensorBoard event files (*tfevents*) in it or in any folder below it"
            )
        for run in runs:
            is_seed = _SEED_FOLDER.fullmatch(run.name) is not None
            group = groups.setdefault(run, run.parent if is_seed else run)
            inside = group.is_relative_to(root) and group != root
            path = group.relative_to(root).as_posix() if inside else group.name
            if is_seed:
                path = path.replace("_", " ")
            short = path.rpartition("/")[2] if is_seed else path
            names.setdefault(group, (short, path, group.as_posix()))
    taken = [Counter(level) for level in zip(*names.values(), strict=True)]
    labels = {
        group: next(
            (name for name, count in zip(levels, taken, strict=True) if count[name] == 1),
            levels[-1],
        )
        for group, levels in names.items()
    }
    return {run: labels[group] for run, group in groups.items()}


def read_scalars(folder: str | Path) -> dict[str, Curve]:
    """Reads all scalars of one run, nothing sampled away, with TensorBoard's own reader.

    Of points that a run logged twice the later wins, and a run that was resumed from an earlier
    step replaces all that the abandoned stretch had logged from that step on, in every tag. A last
    record that was cut off when the run was killed is left out.

    Args:
        folder: The folder that holds the run's event files.

    Returns:
        The curve of each tag, tags in the order of their first appearance.
    """
    from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
        LegacyEventFileLoader,
    )
    from tensorboard.util.tensor_util import make_ndarray  # type: ignore[import-untyped]

    files: list[tuple[float, str, dict[str, list[tuple[int, float]]]]] = []
    for path in Path(folder).glob("*tfevents*"):
        started = math.inf
        points: dict[str, list[tuple[int, float]]] = {}
        for event in LegacyEventFileLoader(str(path)).Load():
            started = min(started, event.wall_time)
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                if kind == "simple_value":
                    _append(points.setdefault(value.tag, []), event.step, value.simple_value)
                elif kind == "tensor" and value.metadata.plugin_data.plugin_name == "scalars":
                    number = float(make_ndarray(value.tensor).item())
                    _append(points.setdefault(value.tag, []), event.step, number)
        files.append((started, path.name, points))

    merged: dict[str, list[tuple[int, float]]] = {}
    for _, _, points in sorted(files, key=lambda file: file[:2]):
        again = [points[tag][0][0] for tag in points.keys() & merged.keys() - _ACCOMPANYING_TAGS]
        if again:
            resumed_at = min(again)
            for curve in merged.values():
                while curve and curve[-1][0] >= resumed_at:
                    curve.pop()
        for tag, curve in points.items():
            into = merged.setdefault(tag, [])
            for step, number in curve:
                _append(into, step, number)
    return {
        tag: Curve(
            np.array([step for step, _ in curve], dtype=np.int64),
            np.array([number for _, number in curve], dtype=np.float64),
        )
        for tag, curve in merged.items()
        if curve
    }


def read_monitored_runs(logdirs: Sequence[str | Path]) -> list[MonitoredRun]:
    """Reads all runs that had the `StepsizeMonitor` below some folders.

    Of a run with several optimizers each counts as one, with the optimizer's name in its label.

    Args:
        logdirs: The folders to search, at any depth.

    Returns:
        The runs in the order in which `find_runs` finds them.

    Raises:
        EventsError: If a folder does not exist or holds no event files, or if no run in them has
            the monitor's tags.
    """
    runs: list[MonitoredRun] = []
    folders = find_runs(logdirs)
    for folder, label in folders.items():
        scalars = read_scalars(folder)
        by_optimizer: dict[str | None, MonitoredRun] = {}
        for tag, curve in scalars.items():
            if match := _MONITOR_TAG.fullmatch(tag):
                name = match["optimizer"]
                run = by_optimizer.setdefault(
                    name,
                    MonitoredRun(
                        f"{label} {name}" if name else label, folder, epoch=scalars.get("epoch")
                    ),
                )
                (run.mean if match["statistic"] == "mean" else run.std)[match["layer"]] = curve
        runs += by_optimizer.values()
    if not runs:
        raise EventsError(
            f"none of the {len(folders)} run(s) below {', '.join(map(str, logdirs))} has a scalar "
            "stepsize_mean/<layer> or stepsize_std/<layer>; the callback "
            "aida_lightning.callbacks.StepsizeMonitor() writes them during training"
        )
    return runs


def epochs_at(steps: IntArray, epoch: Curve) -> FloatArray:
    """The number of epochs done after some optimizer steps, fractions included.

    Lightning numbers both from 0: a metric logged at step `s` of an epoch of `n` steps stands
    beside `epoch = s // n`, and `(s + 1) / n` epochs are then done.

    Args:
        steps: Indices of optimizer steps.
        epoch: The "epoch" that Lightning logged beside its metrics.
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
    if len(last) > 1:  # The last epoch may have been cut short: as fast as the one before it.
        pace = (numbers[-2] - numbers[-3]) / (ends[-2] - ends[-3])
        numbers[-1] = min(numbers[-1], numbers[-2] + (ends[-1] - ends[-2]) * pace)
    return np.asarray(np.interp(steps + 1.0, ends, numbers), dtype=np.float64)


def _append(points: list[tuple[int, float]], step: int, value: float) -> None:
    while points and points[-1][0] >= step:
        points.pop()
    points.append((step, value))


def _natural_key(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
