"""The samplers, which count an optimizer's steps and measure its layers at some of them."""

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
from aida_lightning.measuring._parts import Layer
from aida_lightning.measuring._statistics import Statistic
from aida_lightning.measuring._step import StepMeasures


@dataclass
class OptimizerSampler(ABC):
    """Count the steps of one optimizer that used a gradient, and sample some of them.

    Every process counts and samples at the same steps, so that a sample can merge the parts of a
    layer that the processes hold.

    Args:
        trainer: the Trainer.
        name: name of the optimizer.
        optimizer: the optimizer.
        find_layers: function that maps the layers to watch, of all optimizers, to their names.
        statistics: statistics to compute from the samples.
        measures: names of the measures to take.
        steps: number of steps taken so far; None until the first batch if no count was restored.

    Attributes:
        prefix: name that comes first in tags, empty if there is only one optimizer.
    """

    trainer: Trainer
    name: str
    optimizer: Optimizer
    find_layers: Callable[[], dict[Layer, str]]
    statistics: list[Statistic]
    measures: list[str]
    steps: int | None = None
    prefix: str = ""
    _left_out: Tensor | None = None  # how many of these were skipped, as the device knows it
    _sample: dict[str, Row] | None = None

    def __post_init__(self) -> None:
        self._measures = StepMeasures(self.optimizer, self.measures)
        self._hooks = StepHooks(
            self.optimizer, self._begin_step, self._copy_gradients, self.end_step
        )

    @abstractmethod
    def is_due(self) -> bool:
        """Tell whether to sample the current step."""

    @abstractmethod
    def sample(self, took: Collection[Tensor]) -> None:
        """Take the measures on the device. Of several steps in one batch, the last one counts."""

    def attach(self) -> None:
        self._hooks.attach()

    def detach(self) -> None:
        self._hooks.detach()

    def begin_batch(self) -> None:
        if self.steps is None:
            self.steps = steps_taken(self.trainer)

    def settle(self) -> None:
        """Subtract the skipped steps from the count, which waits for the device."""
        if self._left_out is not None:
            self.steps = (self.steps or 0) - int(self._left_out)
        self._left_out = None

    def end_step(self, took: Collection[Tensor]) -> None:
        """Count a step that used the gradients of some parameters, and sample it if it is due.

        A gradient scaler leaves it to torch's fused optimizers to skip a step, and only the device
        knows whether they did. This method reads it where a step is due if none before it was
        skipped: at the logged steps, and once more each time that some were skipped.
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
        """Return and clear each layer's measures by name; None if there are no new ones."""
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
        """Not 0 if the current step is skipped; None if it is known not to be."""
        flag: Tensor | None = getattr(self.optimizer, "found_inf", None)
        return flag


@dataclass
class StepSampler(OptimizerSampler):
    """Sample every n-th step."""

    every_n_steps: int = field(kw_only=True)

    def is_due(self) -> bool:
        return (1 + (self.steps or 0)) % self.every_n_steps == 0

    def sample(self, took: Collection[Tensor]) -> None:
        self._sample = self._measures.take(self.find_layers(), took)


@dataclass
class LastStepSampler(OptimizerSampler):
    """Sample the last step of each interval, and note what is needed about the steps before it.

    Args:
        ends_interval: function that tells whether the current batch ends an interval.

    If a fused optimizer may have skipped steps, the sampler notes so many that one of them was
    taken: a gradient scaler that halves its scale that often has none left.
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
        # A scheduler may change rates before the interval ends (a tensor in place), and anyone may
        # change gradients.
        lrs = {
            id(group): lr.clone() if isinstance(lr := group.get("lr"), Tensor) else lr
            for group in self.optimizer.param_groups
        }
        self._notes.append(_Note(self._flag, lrs, took))

    def sample(self, took: Collection[Tensor]) -> None:
        self._sample_last(with_gradient=True)

    def take_sample(self) -> dict[str, Row] | None:
        if self._sample is None:  # The optimizer took no step in the interval's last batch.
            self._measures.forget()
            if self._notes:
                self._tell_of_late_step()
            self._sample_last(with_gradient=False)  # The gradient may have changed since.
        self._notes.clear()
        return super().take_sample()

    def _tell_of_late_step(self) -> None:
        absent = [s.tag for s in self.statistics if self._measures.is_lost_after_step(s.measures)]
        if absent and not self._has_told:
            self._has_told = True
            rank_zero_info(
                f"StepsizeMonitor logs no {', '.join(absent)} for a step that {self.name} did not "
                "take in the batch at which the Trainer logs; it logs the other statistics. "
                "every_n_steps=n logs every n-th step of each optimizer. This message appears once."
            )

    def _sample_last(self, with_gradient: bool) -> None:
        while self._notes and (note := self._notes[-1]).skipped is not None and note.skipped.item():
            self._notes.pop()
        # In an interval without a step, there is none to sample.
        note = self._notes[-1] if self._notes else _Note(None, {}, ())
        self._sample = self._measures.take(
            self.find_layers(), note.took, note.lrs, with_gradient=with_gradient
        )


class _Note(NamedTuple):
    """A step's record: whether it was skipped, its rates, and the parameters that it updated."""

    skipped: Tensor | None
    lrs: dict[int, Any]
    took: Collection[Tensor]
