"""The points of one step, given to the Trainer's loggers."""

from collections.abc import Collection

from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.pytorch import Trainer

from aida_lightning.callbacks._measures import Point, scalars_of
from aida_lightning.callbacks._pictures import log_histograms
from aida_lightning.logs.custom_scalars import show
from aida_lightning.logs.writing import log_scalars


def write_points(
    trainer: Trainer,
    points: Collection[Point],
    step: int,
    custom_scalars: bool,
    histograms: bool,
) -> None:
    """Log points of one step.

    Args:
        trainer: the Trainer, whose loggers write.
        points: the points.
        step: the step to log them at.
        custom_scalars: give TensorBoard the Custom Scalars layout and its bands' edges too.
        histograms: give TensorBoard the histograms too.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger):
            log_scalars(logger, scalars_of(points), step)
            continue
        scalars = scalars_of(points, margins=custom_scalars)
        log_scalars(logger, scalars, step)
        if custom_scalars:
            show(logger, scalars)
        if histograms:
            log_histograms(logger, points, step)
