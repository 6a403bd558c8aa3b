"""What TensorBoard alone shows of the stepsizes: histograms, and Figures 1 and 2 as images."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aida_lightning._lightning import MisconfigurationException, TensorBoardLogger, Trainer
from aida_lightning.logs import tags
from aida_lightning.logs.writing import tags_of
from aida_lightning.measuring._statistics import Point

if TYPE_CHECKING:
    from aida_lightning.logs.runs import MonitoredRun

HISTOGRAM_MEASURES = ("mean", "variance", "min", "max", "count", "histogram")
FIGURE_MEASURES = ("mean", "variance")
# A picture is some hundred pixels wide.
MOST_STEPS = 2048


def tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """Return those of the Trainer's loggers that write to TensorBoard."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def check_loggers(trainer: Trainer, **wanted: bool) -> None:
    """Raise where there is no logger, or none of TensorBoard for what it alone shows.

    Args:
        trainer: the Trainer.
        wanted: what TensorBoard alone shows, by the monitor's argument.
    """
    if not trainer.loggers:
        raise MisconfigurationException(
            "Cannot use `StepsizeMonitor` callback with `Trainer` that has no logger."
        )
    # A fast run has a logger in the place of the user's, which writes nothing.
    if tensorboards(trainer) or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    for name in wanted:
        if wanted[name]:
            there = [type(logger).__name__ for logger in trainer.loggers]
            raise MisconfigurationException(
                f"StepsizeMonitor({name}=True) needs a TensorBoardLogger, there are: {there}"
            )


def log_histograms(logger: TensorBoardLogger, points: Iterable[Point], step: int) -> None:
    """Log the stepsizes' histograms, as ``stepsizes/<layer>``.

    Args:
        logger: the logger.
        points: the points, which have ``HISTOGRAM_MEASURES``. Where one of these is not finite,
            there is no histogram.
        step: the step to log them at.
    """
    for point in points:
        numbers = point.numbers
        low, high, mean, variance = (numbers[n] for n in ("min", "max", "mean", "variance"))
        if not np.isfinite([low, high, mean, variance]).all():
            continue
        counts, limits = numbers["histogram"], np.linspace(low, high, len(numbers["histogram"]) + 1)
        if low == high:
            counts, limits = [numbers["count"]], np.array([low, high])
        (tag,) = tags_of(logger, [logger.group_separator.join(point.path(tags.STEPSIZES))])
        logger.experiment.add_histogram_raw(
            tag,
            min=low,
            max=high,
            num=int(numbers["count"]),
            sum=mean * numbers["count"],
            sum_squares=(variance + mean**2) * numbers["count"],
            bucket_limits=limits[1:].tolist(),
            bucket_counts=counts,
            global_step=step,
        )


@dataclass
class History:
    """The means and the deviations that were logged; of a long run at evenly spaced steps."""

    steps: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    # At each step, by optimizer and layer: the mean and the standard deviation.
    moments: list[dict[tuple[str, str], tuple[float, float]]] = field(default_factory=list)
    added: int = 0
    stride: int = 1

    def add(self, points: Iterable[Point], step: int, epoch: int) -> None:
        """Keep the points of one step; of many steps keep only every second, fourth, … one."""
        self.added += 1
        if (self.added - 1) % self.stride:
            return
        self.steps.append(step)
        self.epochs.append(epoch)
        self.moments.append(
            {
                (p.optimizer, p.layer): (p.numbers["mean"], p.numbers["variance"] ** 0.5)
                for p in points
                if "mean" in p.numbers  # of the stepsizes, if the optimizer has any
            }
        )
        if len(self.steps) == MOST_STEPS:
            self.stride *= 2
            for kept in (self.steps, self.epochs, self.moments):
                del kept[1::2]

    def log_figures(self, logger: TensorBoardLogger, labels: dict[str, str], step: int) -> None:
        """Draw all layers' stepsizes, as ``stepsizes/std``, ``stepsizes/mean`` and so on.

        These two are Figures 1 and 2 of arXiv:2203.13273, and ``stepsizes/heatmap`` shows both.

        Args:
            logger: the logger.
            labels: what to call the optimizers, by their names in the points.
            step: the step to log them at.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from aida_lightning.figures.heatmap import heatmap
        from aida_lightning.figures.stepsizes import fig1, fig2

        if not (runs := self._runs(labels)):
            return  # nothing was sampled so far
        for name, draw in (("std", fig1), ("mean", fig2), ("heatmap", heatmap)):
            canvas = FigureCanvasAgg(draw(runs))
            canvas.draw()  # type: ignore[no-untyped-call]
            picture = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
            (tag,) = tags_of(logger, [logger.group_separator.join((tags.STEPSIZES, name))])
            logger.experiment.add_image(tag, picture, step, dataformats="HWC")

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
