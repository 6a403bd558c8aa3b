"""Histograms and figures, logged by the calls of each logger's client, if it has any."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aida_lightning._lightning import (
    CometLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from aida_lightning._private import prefix_of
from aida_lightning.logs.names import kept_names
from aida_lightning.logs.writing import tags_of

Picture: TypeAlias = NDArray[np.uint8]  # of shape (height, width, 3)


@dataclass(frozen=True)
class Histogram:
    """The numbers of a layer's elements in bins.

    Attributes:
        edges: limits of the bins, one more than there are bins.
        counts: number of elements in each bin.
        mean: mean of the elements.
        variance: population variance of the elements.
    """

    edges: Sequence[float]
    counts: Sequence[int]
    mean: float
    variance: float


class Writer(NamedTuple):
    """The functions that log a step's histograms and figures by name; None if not supported."""

    histograms: Callable[[Any, Mapping[str, Histogram], int], None] | None = None
    figures: Callable[[Any, Mapping[str, Picture], int], None] | None = None


def writer_of(logger: Logger) -> Writer:
    """Return the functions that log histograms and figures; an unknown logger supports neither."""
    return next((writer for cls, writer in WRITERS.items() if isinstance(logger, cls)), Writer())


def takers(what: str) -> list[str]:
    """Return the names of the loggers that support histograms, or figures.

    Example:
        >>> takers("histograms")
        ['TensorBoardLogger', 'WandbLogger', 'CometLogger']
    """
    return [cls.__name__ for cls, writer in WRITERS.items() if getattr(writer, what)]


def _tensorboard_histograms(logger: Any, named: Mapping[str, Histogram], step: int) -> None:
    for tag, histogram in zip(tags_of(logger, named), named.values(), strict=True):
        count, limits = sum(histogram.counts), histogram.edges
        if len(limits) == 2:
            # It would fill the chart, above ticks that differ in the fifth digit. A bin of no width
            # is drawn as a peak.
            limits = [float(f"{histogram.mean:.4g}")] * 2
        logger.experiment.add_histogram_raw(
            tag,
            min=limits[0],
            max=limits[-1],
            num=count,
            sum=histogram.mean * count,
            sum_squares=(histogram.variance + histogram.mean * histogram.mean) * count,
            bucket_limits=limits[1:],
            bucket_counts=histogram.counts,
            global_step=step,
        )


def _tensorboard_figures(logger: Any, named: Mapping[str, Picture], step: int) -> None:
    for tag, picture in zip(tags_of(logger, named), named.values(), strict=True):
        logger.experiment.add_image(tag, picture, step, dataformats="HWC")


# A client's package is imported only where its logger, which has imported it before, is in use.


def _wandb_histograms(logger: Any, named: Mapping[str, Histogram], step: int) -> None:
    import wandb

    histograms = {
        name: wandb.Histogram(np_histogram=(np.array(h.counts), np.array(h.edges)))
        for name, h in named.items()
    }
    logger.log_metrics(histograms, step)


def _wandb_figures(logger: Any, named: Mapping[str, Picture], step: int) -> None:
    import wandb

    logger.log_metrics({name: wandb.Image(picture) for name, picture in named.items()}, step)


def _mlflow_figures(logger: Any, named: Mapping[str, Picture], step: int) -> None:
    for key, picture in zip(_prefixed(logger, named, "-"), named.values(), strict=True):
        logger.experiment.log_image(logger.run_id, picture, key=key, step=step)


def _comet_histograms(logger: Any, named: Mapping[str, Histogram], step: int) -> None:
    from comet_ml.data_structure import Histogram as CometHistogram

    for name, histogram in zip(_prefixed(logger, named, "_"), named.values(), strict=True):
        # Comet uses its own bins, each 1.1 times as wide as the one before.
        edges, its = np.array(histogram.edges), CometHistogram()
        its.add((edges[1:] + edges[:-1]) / 2, histogram.counts)
        logger.experiment.log_histogram_3d(its, name, step=step)


def _comet_figures(logger: Any, named: Mapping[str, Picture], step: int) -> None:
    from PIL import Image

    for name, picture in zip(_prefixed(logger, named, "_"), named.values(), strict=True):
        # Comet first treats an array as a file name, which os.stat deprecates.
        logger.experiment.log_image(Image.fromarray(picture), name, step=step)


def _prefixed(logger: Logger, names: Mapping[str, Any], join: str) -> list[str]:
    """Return names that the client keeps, with the prefix that the logger adds to metrics."""
    prefix = f"{prefix}{join}" if (prefix := prefix_of(logger)) else ""
    return [*kept_names(logger, [f"{prefix}{name}" for name in names]).values()]


WRITERS: dict[Any, Writer] = {
    TensorBoardLogger: Writer(_tensorboard_histograms, _tensorboard_figures),
    WandbLogger: Writer(_wandb_histograms, _wandb_figures),
    MLFlowLogger: Writer(figures=_mlflow_figures),  # MLflow has no histograms.
    CometLogger: Writer(_comet_histograms, _comet_figures),
}
