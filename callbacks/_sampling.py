"""What is sampled: the optimizers' steps are counted and, now and then, their layers measured."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from aida_lightning._lightning import Trainer
from aida_lightning._private import steps_taken
from aida_lightning.measuring._hooks import StepHooks
from aida_lightning.measuring._layer import Row
from aida_lightning.measuring._statistics import Statistic
from aida_lightning.measuring._step import StepMeasures


@dataclass
class OptimizerSampler(ABC):
    """Counts the steps of one optimizer that had a gradient to take, and samples some of them.

    Every process counts and samples at the same steps, so that a sample may merge over processes
    what each has of a layer.

    Args:
        trainer: the Trainer.
        name: the optimizer's name.
        optimizer: the optimizer.
        find_layers: gives the names of the parameters to watch, of all optimizers.
        statistics: what is computed of the samples.
        measures: names of what to measure.
        steps: how many were taken so far; None until the first batch if no count was restored.

    Attributes:
        prefix: the name that goes first in tags, empty where there is only one optimizer.
    """

    trainer: Trainer
    name: str
    optimizer: Optimizer
    find_layers: Callable[[], dict[Tensor, str]]
    statistics: list[Statistic]
    measures: list[str]
    steps: int | None = None
    prefix: str = ""
    _left_out: Tensor | None = None  # how many of those were not taken, where the device knows
    _sample: dict[str, Row] | None = None

    def __post_init__(self) -> None:
        self._measures = StepMeasures(self.optimizer, self.measures)
        self._hooks = StepHooks(
            self.optimizer, self._begin_step, self._copy_gradients, self.end_step
        )

    @abstractmethod
    def is_due(self) -> bool:
        """Tell whether the step that is under way is one to sample."""

    @abstractmethod
    def sample(self, took: Collection[Tensor]) -> None:
        """Take the measures, on the device. Of several steps in one batch the last one counts."""

    def attach(self) -> None:
        self._hooks.attach()

    def detach(self) -> None:
        self._hooks.detach()

    def begin_batch(self) -> None:
        if self.steps is None:
            self.steps = steps_taken(self.trainer)

    def settle(self) -> None:
        """Take the steps off the count that were left out, which waits for the device."""
        if self._left_out is not None:
            self.steps = (self.steps or 0) - int(self._left_out)
        self._left_out = None

    def end_step(self, took: Collection[Tensor]) -> None:
        """Count a step that took gradients of some parameters, and sample it if it is due.

        A gradient scaler leaves it to torch's fused optimizers to skip a step, and whether they did
        is known on the device only. It is read where a step is due if none before it was skipped:
        at those that are logged, and once more for each time that some were skipped.
        """
        if not took:
            self._measures.forget()
            return
        flag = self._flag
        if flag is not None and self.is_due():
            self.settle()
            if flag.item():
                self._measures.forget()
                return
        elif flag is not None:
            skips = (flag != 0).long()
            self._left_out = skips if self._left_out is None else self._left_out + skips
        if self.is_due():
            self.sample(took)
        self.steps = 1 + (self.steps or 0)

    def take_sample(self) -> dict[str, Row] | None:
        """Hand over what was measured of each layer, by name; None if nothing was since."""
        sample, self._sample = self._sample, None
        return sample

    def _begin_step(self) -> None:
        if self._measures.needs_copies and self.is_due():
            self._measures.copy(self.find_layers())

    def _copy_gradients(self) -> None:
        if self._measures.needs_gradients and self.is_due():
            self._measures.copy_gradients(self.find_layers())

    @property
    def _flag(self) -> Tensor | None:
        """Not 0 where the step that is under way is skipped; None where that is known not to be."""
        flag: Tensor | None = getattr(self.optimizer, "found_inf", None)
        return flag


@dataclass
class StepSampler(OptimizerSampler):
    """Samples every n-th step."""

    every_n_steps: int = field(kw_only=True)

    def is_due(self) -> bool:
        return (1 + (self.steps or 0)) % self.every_n_steps == 0

    def sample(self, took: Collection[Tensor]) -> None:
        self._sample = self._measures.take(self.find_layers(), took)


@dataclass
class LastStepSampler(OptimizerSampler):
    """Samples the last step of each interval, and notes what it has to know of others.

    Args:
        ends_interval: tells whether the batch that is under way ends an interval.

    Of steps that a fused optimizer may have skipped some are noted, of which one was taken: a
    gradient scaler that has halved its scale as often as this has none left.
    """

    ends_interval: Callable[[Trainer], bool] = field(kw_only=True)
    _notes: deque["_Note"] = field(default_factory=lambda: deque(maxlen=32))
    _has_told: bool = False

    def is_due(self) -> bool:
        return self.ends_interval(self.trainer)

    def end_step(self, took: Collection[Tensor]) -> None:
        if took:
            self._note(took)
        super().end_step(took)

    def _note(self, took: Collection[Tensor]) -> None:
        if self._flag is None:
            self._notes.clear()
        # A scheduler may change rates before the interval's end, and a tensor in place; anyone may
        # change gradients.
        lrs = {
            id(group): lr.clone() if isinstance(lr := group.get("lr"), Tensor) else lr
            for group in self.optimizer.param_groups
        }
        self._notes.append(_Note(self._flag, lrs, took))

    def sample(self, took: Collection[Tensor]) -> None:
        self._sample_last(with_gradient=True)

    def take_sample(self) -> dict[str, Row] | None:
        if self._sample is None:  # The interval's last batch took no step.
            self._measures.forget()
            if self._notes:
                self._tell_of_late_step()
            self._sample_last(with_gradient=False)  # which may have changed since
        self._notes.clear()
        return super().take_sample()

    def _tell_of_late_step(self) -> None:
        absent = [s.tag for s in self.statistics if self._measures.is_lost_after_step(s.measures)]
        if absent and not self._has_told:
            self._has_told = True
            rank_zero_info(
                f"StepsizeMonitor has no {', '.join(absent)} of a step of {self.name} that is not "
                "in the batch that the Trainer logs at, and logs what else there is; "
                "every_n_steps=n logs every n-th step of each optimizer. This is said once."
            )

    def _sample_last(self, with_gradient: bool) -> None:
        while self._notes and (note := self._notes[-1]).skipped is not None and note.skipped.item():
            self._notes.pop()
        # An interval without a step has none to sample.
        note = self._notes[-1] if self._notes else _Note(None, {}, ())
        self._sample = self._measures.take(
            self.find_layers(), note.took, note.lrs, with_gradient=with_gradient
        )


class _Note(NamedTuple):
    """What is to be known of a step later: whether it was skipped, its rates, and its gradients."""

    skipped: Tensor | None
    lrs: dict[int, Any]
    took: Collection[Tensor]
