"""Pictures of the stepsizes, which not every logger supports: histograms and figures."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from aida_lightning._lightning import Logger, MisconfigurationException, Trainer
from aida_lightning.logs import tags
from aida_lightning.logs.pictures import Histogram, Picture, takers, writer_of
from aida_lightning.measuring._statistics import Point

if TYPE_CHECKING:
    from aida_lightning.logs.runs import MonitoredRun

HISTOGRAM_MEASURES = ("mean", "variance", "min", "max", "histogram")
# Relative to the stepsizes. Those that are closer differ by what v rounds.
NARROWEST_BIN = 1e-3
FIGURE_MEASURES = ("mean", "variance")
# A picture is some hundred pixels wide.
MOST_STEPS = 2048


def check_loggers(trainer: Trainer) -> None:
    """Raise if the Trainer has no logger."""
    if not trainer.loggers:
        raise MisconfigurationException(
            "Cannot use `StepsizeMonitor` callback with `Trainer` that has no logger."
        )


def to_be_drawn(trainer: Trainer, **wanted: bool) -> list[str]:
    """Return the wanted pictures that some logger supports, and report the loggers that do not.

    Args:
        trainer: the Trainer.
        wanted: whether histograms and figures are wanted, by the name of the monitor's argument.
    """
    names = [name for name in wanted if wanted[name]]
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return names  # A logger that writes nothing replaces the user's.
    drawn = []
    for name in names:
        takes = {logger: getattr(writer_of(logger), name) is not None for logger in trainer.loggers}
        without = dict.fromkeys(type(logger).__name__ for logger in takes if not takes[logger])
        message = (
            f"StepsizeMonitor({name}=True): only the scalars go to {', '.join(without)}, where "
            f"no {name} can be logged."
        )
        if any(takes.values()):
            drawn.append(name)
            if without:
                rank_zero_info(message)
        else:
            rank_zero_warn(f"{message} Loggers that support {name}: {', '.join(takers(name))}.")
    return drawn


def log_histograms(logger: Logger, points: Iterable[Point], step: int) -> None:
    """Log the stepsizes' histograms, as ``stepsizes/<layer>``, to a logger that supports them.

    Args:
        logger: the logger.
        points: points that hold ``HISTOGRAM_MEASURES``. A point with a measure that is not finite,
            or with a stepsize that is not positive, has no histogram.
        step: step at which to log them.
    """
    write = writer_of(logger).histograms
    found = {point.path(tags.STEPSIZES): _histogram(point.numbers) for point in points}
    named = {logger.group_separator.join(path): h for path, h in found.items() if h is not None}
    if write and named:
        write(logger, named, step)


def _histogram(numbers: Mapping[str, Any]) -> Histogram | None:
    """Give the bins with elements and the gaps between them, none narrower than allowed."""
    low, high, mean, variance = (numbers[n] for n in ("min", "max", "mean", "variance"))
    if not (low > 0 and np.isfinite([high, mean, variance]).all()):
        return None
    counts = np.array(numbers["histogram"], dtype=int)
    edges = np.geomspace(low, high, len(counts) + 1)
    allowed = max(int((math.log(high) - math.log(low)) / NARROWEST_BIN), 1)
    starts = np.arange(0, len(counts), math.ceil(len(counts) / allowed))
    counts, edges = np.add.reduceat(counts, starts), np.append(edges[starts], high)
    # Empty bins that follow each other are one.
    starts = np.flatnonzero(np.append(True, counts[1:] + counts[:-1]))
    counts, edges = np.add.reduceat(counts, starts), np.append(edges[starts], high)
    if len(counts) == 1:
        edges += edges * NARROWEST_BIN * [-0.5, 0.5]
    return Histogram(edges.tolist(), counts.tolist(), mean, variance)


@dataclass
class History:
    """The logged means and standard deviations, thinned to evenly spaced steps in a long run."""

    steps: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    # At each step, by optimizer and layer: the mean and the standard deviation.
    moments: list[dict[tuple[str, str], tuple[float, float]]] = field(default_factory=list)
    added: int = 0
    stride: int = 1

    def add(self, points: Iterable[Point], step: int, epoch: int) -> None:
        """Keep the points of one step, or of every second, fourth, … step once there are many."""
        self.added += 1
        if (self.added - 1) % self.stride:
            return
        self.steps.append(step)
        self.epochs.append(epoch)
        self.moments.append(
            {
                (p.optimizer, p.layer): (p.numbers["mean"], p.numbers["variance"] ** 0.5)
                for p in points
                if "mean" in p.numbers  # which is there if the optimizer has adaptive stepsizes
            }
        )
        if len(self.steps) == MOST_STEPS:
            self.stride *= 2
            for kept in (self.steps, self.epochs, self.moments):
                del kept[1::2]

    def log_figures(self, loggers: Iterable[Logger], labels: dict[str, str], step: int) -> None:
        """Draw all layers' stepsizes as ``stepsizes/std``, ``stepsizes/mean`` and a heatmap.

        The first two are Figures 1 and 2 of arXiv:2203.13273; ``stepsizes/heatmap`` shows both.

        Args:
            loggers: the loggers; those that support figures receive them.
            labels: labels of the optimizers, by their names in the points.
            step: step at which to log them.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from aida_lightning.figures.heatmap import heatmap
        from aida_lightning.figures.stepsizes import fig1, fig2

        writers = [(logger, write) for logger in loggers if (write := writer_of(logger).figures)]
        if not writers or not (runs := self._runs(labels)):
            return  # Nothing has been sampled so far.
        pictures: dict[str, Picture] = {}
        for name, draw in (("std", fig1), ("mean", fig2), ("heatmap", heatmap)):
            canvas = FigureCanvasAgg(draw(runs))
            canvas.draw()  # type: ignore[no-untyped-call]
            pictures[name] = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
        for logger, write in writers:
            separator = logger.group_separator
            named = {f"{tags.STEPSIZES}{separator}{name}": pictures[name] for name in pictures}
            write(logger, named, step)

    def _runs(self, labels: dict[str, str]) -> "list[MonitoredRun]":
        from aida_lightning.logs.curves import Curve
        from aida_lightning.logs.runs import MonitoredRun

        curves: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
        for step, moments in zip(self.steps, self.moments, strict=True):
            for key, (mean, std) in moments.items():
                curves.setdefault(key, []).append((step, mean, std))
        epoch = Curve(np.array(self.steps), np.array(self.epochs, dtype=float))
        runs: dict[str, MonitoredRun] = {}
        for (optimizer, layer), points in curves.items():
            label = labels[optimizer]
            run = runs.setdefault(optimizer, MonitoredRun(label, Path(label), epoch=epoch))
            steps, means, stds = map(np.array, zip(*points, strict=True))
            for tag, values in ((tags.MEAN, means), (tags.STD, stds)):
                run.statistics.setdefault(tag, {})[layer] = Curve(steps, values)
        return [*runs.values()]
