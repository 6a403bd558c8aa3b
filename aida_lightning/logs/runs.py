"""Runs found below folders, with their labels and the stepsizes that the monitor logged."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from aida_lightning.logs import tags
from aida_lightning.logs.curves import Curve, read_scalars
from aida_lightning.logs.events import EventsError

_SEED_FOLDER = re.compile(r"seed_-?\d+")


@dataclass(frozen=True)
class LoggedRun:
    """One run and all its scalars.

    Args:
        label: label of the run, which the seeds of one optimizer share.
        path: folder of the run's event files.
        scalars: curve of each tag.
    """

    label: str
    path: Path
    scalars: dict[str, Curve]

    @property
    def epoch(self) -> Curve | None:
        """The "epoch" that Lightning logs beside its metrics, if it was logged."""
        return self.scalars.get(tags.EPOCH)


@dataclass(frozen=True)
class MonitoredRun:
    """The adaptive stepsizes of one optimizer in one run, as ``StepsizeMonitor`` logged them.

    Args:
        label: label of the run, which the seeds of one optimizer share.
        path: folder of the run's event files.
        statistics: curve of each layer, by the statistic's tag, such as ``stepsize_mean``.
        epoch: curve of the "epoch" that Lightning logs beside its metrics; None if it was not
            logged.
    """

    label: str
    path: Path
    statistics: dict[str, dict[str, Curve]] = field(default_factory=dict)
    epoch: Curve | None = None

    @property
    def mean(self) -> dict[str, Curve]:
        """The mean of each layer's adaptive stepsizes; the layers go from input to output."""
        return self.statistics.get(tags.MEAN, {})

    @property
    def std(self) -> dict[str, Curve]:
        """The standard deviation of each layer's adaptive stepsizes, in the same order."""
        return self.statistics.get(tags.STD, {})

    @property
    def layers(self) -> list[str]:
        """The names of the monitored layers, from input to output."""
        return list(dict.fromkeys(name for curves in self.statistics.values() for name in curves))


def find_runs(logdirs: Iterable[str | Path]) -> dict[Path, str]:
    """Find every folder that holds event files, and derive its label from its path alone.

    A comparison writes ``<label>/seed_<n>``, with underscores for spaces. Such runs get this label,
    preceded by the folders above it if two comparisons share it. The label of any other run, such
    as ``lightning_logs/version_3``, is its path relative to the given folder.

    Args:
        logdirs: folders to search, at any depth.

    Returns:
        The label of each run's folder, in the order of the given folders, then of the paths.

    Raises:
        EventsError: a folder does not exist or holds no event files.
    """
    groups: dict[Path, Path] = {}  # by run: the folder that its seeds share, or its own
    names: dict[Path, tuple[str, ...]] = {}  # by group: its names, from short to unambiguous
    for logdir in map(Path, logdirs):
        if not logdir.is_dir():
            raise EventsError(f"{logdir}: no such folder")
        root = logdir.resolve()
        folders = {file.parent for file in root.glob("**/*tfevents*") if file.is_file()}
        # Folders whose names begin with a dot hold runs that were set aside.
        shown = (f for f in folders if not any(p[0] == "." for p in f.relative_to(root).parts))
        runs = sorted(shown, key=_natural_key)
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
            names.setdefault(group, (short, path, f"{root.name}/{path}", group.as_posix()))
    taken = [Counter(level) for level in zip(*names.values(), strict=True)]
    labels = {
        group: next(
            (name for name, count in zip(levels, taken, strict=True) if count[name] == 1),
            levels[-1],
        )
        for group, levels in names.items()
    }
    return {run: labels[group] for run, group in groups.items()}


def folder_titles(folders: Iterable[str | Path]) -> dict[Path, str]:
    """Name folders by the ends of their paths, as long as necessary to tell them apart.

    Example:
        >>> [*folder_titles(["a/runs", "b/runs"]).values()]
        ['a/runs', 'b/runs']
    """
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    return {path: Path(*path.parts[-length:]).as_posix() for path in paths}


def read_runs(logdirs: Sequence[str | Path]) -> list[LoggedRun]:
    """Read all runs below some folders.

    Raises:
        EventsError: a folder does not exist or holds no event files.
    """
    return [
        LoggedRun(label, folder, read_scalars(folder))
        for folder, label in find_runs(logdirs).items()
    ]


def read_monitored_runs(logdirs: Sequence[str | Path]) -> list[MonitoredRun]:
    """Read all runs below some folders that had the ``StepsizeMonitor``.

    Args:
        logdirs: folders to search, at any depth.

    Returns:
        The runs, in the order in which ``find_runs`` finds them.

    Raises:
        EventsError: a folder does not exist or holds no event files, or no run has the monitor's
            tags.
    """
    return monitored_runs(read_runs(logdirs))


def monitored_runs(runs: Sequence[LoggedRun]) -> list[MonitoredRun]:
    """Select the scalars that the ``StepsizeMonitor`` logged.

    If several optimizers of a run share a layer, each of them counts as a separate run, with the
    optimizer's name in its label. Optimizers that share no layer, such as those of a GAN's two
    networks, count as one run together.

    Raises:
        EventsError: no run has the monitor's tags.
    """
    monitored: list[MonitoredRun] = []
    for run in runs:
        by_optimizer: dict[str | None, MonitoredRun] = {}
        for tag, curve in run.scalars.items():
            if parts := tags.parse_monitor_tag(tag):
                name = parts.optimizer
                label = f"{run.label} {name}" if name else run.label
                found = by_optimizer.setdefault(
                    name, MonitoredRun(label, run.path, epoch=run.epoch)
                )
                found.statistics.setdefault(parts.statistic, {})[parts.layer] = curve
        monitored += _joined(run, [*by_optimizer.values()])
    if not monitored:
        raise EventsError(
            f"none of the {len(runs)} run(s), the first in {runs[0].path}, has a scalar "
            f"{tags.MEAN}/<layer> or {tags.STD}/<layer>; the callback "
            "aida_lightning.callbacks.StepsizeMonitor() writes them during training, by default at "
            "every log_every_n_steps-th step"
        )
    return monitored


def choose_labels(labels: Iterable[str], globs: Sequence[str] | None) -> list[str]:
    """Select labels by globs, in any case, with spaces or underscores; None selects all.

    Raises:
        EventsError: a glob matches none of the labels.
    """
    labels = list(dict.fromkeys(labels))
    if globs is None:
        return labels
    chosen: set[str] = set()
    for glob in globs:
        pattern = _plain(glob)
        matching = {x for x in labels if _plain(x) == pattern or fnmatchcase(_plain(x), pattern)}
        if not matching:
            raise EventsError(f"optimizers: {glob!r} matches none of {', '.join(labels)}")
        chosen |= matching
    return [label for label in labels if label in chosen]


def _plain(label: str) -> str:
    return label.lower().replace("_", " ")


def _joined(run: LoggedRun, parts: Sequence[MonitoredRun]) -> Sequence[MonitoredRun]:
    layers = [layer for part in parts for layer in part.layers]
    if not parts or len(set(layers)) < len(layers):
        return parts
    whole = MonitoredRun(run.label, run.path, epoch=run.epoch)
    for part in parts:
        for statistic, curves in part.statistics.items():
            whole.statistics.setdefault(statistic, {}).update(curves)
    return [whole]


def _natural_key(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
