"""A comparison of optimizers as data: one YAML file says all of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from aida_lightning._lightning import Callback, LightningDataModule, LightningModule, Trainer
from aida_lightning.compare.methods import Method
from aida_lightning.figures import FigureName
from aida_lightning.logs.metric import Metric

Built = TypeVar("Built", covariant=True)


class ModelFactory(Protocol[Built]):
    """What builds the module of a run; what a file says of it is filled in already."""

    def __call__(
        self, *, optimizer: str, optimizer_options: dict[str, Any], vocab_size: int = ...
    ) -> Built:
        """Build a new module that trains with an optimizer.

        A module that has a vocabulary is told the size of the data module's.
        """
        ...


class TrainerFactory(Protocol[Built]):
    """What builds the Trainer of a run; what a file says of it is filled in already."""

    def __call__(self, *, logger: Any, callbacks: list[Any]) -> Built:
        """Build a new Trainer."""
        ...


# What builds the parts whose classes are Lightning's, of whichever distribution.
FACTORIES: dict[str, Any] = {
    "model": ModelFactory,
    "data": Callable[[], Built],
    "trainer": TrainerFactory,
    "callbacks": list[Callable[[], Built]],
}


@dataclass(frozen=True)
class Paper:
    """Where the numbers beside the methods are from.

    Args:
        source: the table or figure, and the paper.
        epochs: the epochs that each run was trained for.
    """

    source: str
    epochs: int


@dataclass(frozen=True)
class Target:
    """A value of the metric, of which a comparison says how long it took each method to reach it.

    Args:
        value: the value as it is logged, a fraction where tables have percent. It is reached by
            what is as good or better, as the metric says.
    """

    value: float


@dataclass(frozen=True)
class Experiment:
    """What an experiment's file holds, with classes by class_path as LightningCLI takes them.

    Args:
        description: one line for the list of experiments.
        model: the LightningModule, without its optimizer.
        data: the LightningDataModule.
        trainer: arguments of the Trainer.
        optimizers: the methods to compare.
        optimizer_options: options for every optimizer that takes them and has none of its own.
        sample: keys of the file, dotted, and their values for a small first try without download.
        callbacks: callbacks that each run gets anew.
        seeds: seeds of initialisation and data order; every optimizer trains once with each.
        tune_seeds: seeds that choose the best setting of each grid, and are not reported. The
            chosen setting alone trains with ``seeds`` then. Without any, ``seeds`` choose, too.
        metric: the number to compare.
        baseline: the method that the others are compared with, by its label or by an optimizer's
            name that it alone has; by default the first.
        target: a value of the metric, for the steps, epochs and seconds to it.
        figures: the paper's figures to draw.
        paper: where the paper's numbers are from, if there are any.
        changes: what differs from the file by the command line; a comparison notes it itself.
    """

    description: str
    model: "ModelFactory[LightningModule]"
    data: Callable[[], LightningDataModule]
    trainer: "TrainerFactory[Trainer]"
    optimizers: list[Method]
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)
    callbacks: list[Callable[[], Callback]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    tune_seeds: list[int] = field(default_factory=list)
    metric: Metric = field(default_factory=Metric)
    baseline: str | None = None
    target: Target | None = None
    figures: list[FigureName] = field(default_factory=list)
    paper: Paper | None = None
    changes: dict[str, str] = field(default_factory=dict)
