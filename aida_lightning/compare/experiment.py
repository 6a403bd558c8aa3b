"""A comparison of optimizers as data, which one YAML file describes completely."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from aida_lightning._lightning import Callback, LightningDataModule, LightningModule, Trainer
from aida_lightning.compare.methods import Method
from aida_lightning.figures import FigureName
from aida_lightning.logs.metric import Metric

Built = TypeVar("Built", covariant=True)


class ModelFactory(Protocol[Built]):
    """A function that builds the module of a run, with the arguments of the file filled in."""

    def __call__(
        self, *, optimizer: str, optimizer_options: dict[str, Any], vocab_size: int = ...
    ) -> Built:
        """Build a new module that trains with an optimizer.

        A module with a vocabulary receives the size of the data module's vocabulary.
        """
        ...


class TrainerFactory(Protocol[Built]):
    """A function that builds the Trainer of a run, with the arguments of the file filled in."""

    def __call__(self, *, logger: Any, callbacks: list[Any]) -> Built:
        """Build a new Trainer."""
        ...


# The types of the parts whose classes are Lightning's, of either distribution.
FACTORIES: dict[str, Any] = {
    "model": ModelFactory,
    "data": Callable[[], Built],
    "trainer": TrainerFactory,
    "callbacks": list[Callable[[], Built]],
}


@dataclass(frozen=True)
class Paper:
    """The source of the published numbers beside the methods.

    Args:
        source: table or figure, and the paper.
        epochs: number of epochs for which each run was trained.
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
    """The content of an experiment's file, with classes by class_path as in LightningCLI.

    Args:
        description: one line for the list of experiments.
        model: LightningModule, without its optimizer.
        data: LightningDataModule.
        trainer: Trainer and its arguments.
        optimizers: methods to compare.
        optimizer_options: options for every optimizer that accepts them and does not set them.
        sample: dotted keys of the file, with values for a small first try without a download.
        callbacks: callbacks, of which each run gets new instances.
        seeds: seeds of initialisation and data order; every optimizer trains once with each.
        tune_seeds: seeds that choose the best setting of each grid, and that are not reported. Only
            the chosen setting then trains with ``seeds``. Without any, ``seeds`` choose too.
        metric: number by which to compare the runs.
        baseline: method that the others are compared with, named by its label, or by an optimizer's
            name that it alone has; the first method by default.
        target: value of the metric to which the steps, epochs and seconds are reported.
        figures: the paper's figures to draw.
        paper: source of the paper's numbers, if there are any.
        changes: differences from the file, as made on the command line; a comparison writes them.
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
