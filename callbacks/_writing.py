"""The writing of one step's points to the Trainer's loggers, to each at most once."""

from collections.abc import Collection, Iterable
from weakref import WeakKeyDictionary

import torch

from aida_lightning._lightning import Logger, TensorBoardLogger, Trainer
from aida_lightning._private import callback_metrics_of
from aida_lightning.callbacks._bands import Bands
from aida_lightning.callbacks._pictures import log_histograms
from aida_lightning.logs import tags
from aida_lightning.logs.custom_scalars import show
from aida_lightning.logs.pictures import writer_of
from aida_lightning.logs.writing import log_scalars
from aida_lightning.measuring._statistics import Point, scalars_of

# The step at which each name was last given to a logger. Several monitors share this record, and so
# do several fits of one Trainer, which may count a step again that an exception interrupted.
_written: WeakKeyDictionary[Trainer, WeakKeyDictionary[Logger, dict[tuple[str, ...], int]]]
_written = WeakKeyDictionary()


def write_points(
    trainer: Trainer,
    points: Collection[Point],
    step: int,
    bands: Bands | None,
    histograms: bool,
) -> None:
    """Log points of one step, except those that another monitor has logged for the same layers.

    Args:
        trainer: the Trainer, whose loggers write.
        points: the points.
        step: step at which to log them.
        bands: bands whose edges, with the Custom Scalars layout, go to TensorBoard; None for none.
        histograms: whether to write histograms to the loggers that support them.
    """
    for logger in trainer.loggers:
        board = logger if isinstance(logger, TensorBoardLogger) else None
        scalars = scalars_of(points) | (bands.edges(points) if board and bands else {})
        new = _take_up(trainer, logger, scalars, step)
        log_scalars(logger, {path: scalars[path] for path in new}, step)
        if board and bands:
            show(board, scalars)
        if histograms and writer_of(logger).histograms:
            have = (point for point in points if "histogram" in point.numbers)
            by_path = {point.path(tags.STEPSIZES): point for point in have}
            new = _take_up(trainer, logger, by_path, step)
            log_histograms(logger, [by_path[path] for path in new], step)


def publish(trainer: Trainer, points: Iterable[Point]) -> None:
    """Add statistics to the ``callback_metrics``, with "/" between the parts of their names."""
    device = trainer.strategy.root_device
    scalars = {"/".join(path): x for path, x in scalars_of(points).items()}
    # The public property computes the Trainer's own metrics anew.
    callback_metrics_of(trainer).update(
        {name: torch.tensor(x, device=device) for name, x in scalars.items()}
    )


def forget(trainer: Trainer) -> None:
    """Let all steps be logged again, such as those after a checkpoint that is resumed from."""
    _written.pop(trainer, None)


def _take_up(
    trainer: Trainer, logger: Logger, paths: Iterable[tuple[str, ...]], step: int
) -> list[tuple[str, ...]]:
    """Return the names that were not yet written at the step, and mark them as written."""
    written = _written.setdefault(trainer, WeakKeyDictionary()).setdefault(logger, {})
    new = [path for path in paths if written.get(path) != step]
    written.update(dict.fromkeys(new, step))
    return new
