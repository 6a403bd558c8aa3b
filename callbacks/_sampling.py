"""What is sampled: the optimizers' steps are counted and, now and then, their layers measured."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from aida_lightning._lightning import Trainer
from aida_lightning.callbacks._measures import LayerStep, Number, Row, take_measures
from aida_lightning.callbacks._merging import measure_shared
from aida_lightning.diagnostics import last_update
from aida_lightning.optim._sharding import is_distributed


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
        measures: names of what to measure.
        steps: how many were taken so far; None until the first batch if no count was restored.
    """

    trainer: Trainer
    name: str
    optimizer: Optimizer
    find_layers: Callable[[], dict[Tensor, str]]
    measures: list[str]
    steps: int | None = None
    _left_out: Tensor | None = None  # how many of those were not taken, where the device knows
    _depth: int = 0  # of the steps that are under way, a subclass's and that of its base
    _sample: dict[str, Row] | None = None
    _before: dict[Tensor, Tensor] = field(default_factory=dict)
    _lrs: dict[int, Number] = field(default_factory=dict)
    _handles: list[RemovableHandle] = field(default_factory=list)

    @property
    def prefix(self) -> str:
        """The name that goes first in tags, empty where there is only one optimizer."""
        return self.name if len(self.trainer.optimizers) > 1 else ""

    @abstractmethod
    def is_due(self) -> bool:
        """Tell whether the step that is under way is one to sample."""

    def attach(self) -> None:
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin_batch(self) -> None:
        self._depth = 0  # which it is not where a step raised
        if self.steps is None:
            self.steps = self.trainer.fit_loop.epoch_loop._batches_that_stepped

    def settle(self) -> None:
        """Take the steps off the count that were left out, which waits for the device."""
        if self._left_out is not None:
            self.steps = (self.steps or 0) - int(self._left_out)
        self._left_out = None

    def end_step(self) -> None:
        """Count a step, and sample it if it is due.

        A gradient scaler leaves it to torch's fused optimizers to skip a step, and whether they did
        is known on the device only. It is read where a step is due if none before it was skipped:
        at those that are logged, and once more for each time that some were skipped.
        """
        flag = self._flag
        if flag is not None and self.is_due():
            self.settle()
            if flag.item():
                return
        elif flag is not None:
            skips = (flag != 0).long()
            self._left_out = skips if self._left_out is None else self._left_out + skips
        if self.is_due():
            self.sample()
        self.steps = 1 + (self.steps or 0)

    def took(self, param: Tensor) -> bool:
        """Tell whether the step that is sampled took the parameter's gradient."""
        return param.grad is not None

    @torch.no_grad()
    def sample(self, without: str | None = None) -> None:
        """Take the measures, on the device. Of several steps in one batch the last one counts."""
        measures = [name for name in self.measures if name != without]
        groups = {p: group for group in self.optimizer.param_groups for p in group["params"]}
        names = {p: n for p, n in self.find_layers().items() if p in groups and p.numel()}
        rows: dict[Tensor, Row] = {}
        shared: dict[Tensor, LayerStep | None] = {}
        for param in names:
            layer = self._layer_step(param, groups[param]) if self.took(param) else None
            if is_distributed(param):
                shared[param] = layer
            elif layer is not None:
                rows[param] = take_measures(layer, measures)
        rows |= measure_shared(shared, measures)
        self._sample = {name: rows[p] for p, name in names.items() if p in rows}
        self._before = {}

    def take_sample(self) -> dict[str, Row] | None:
        """Hand over what was measured of each layer, by name; None if nothing was since."""
        sample, self._sample = self._sample, None
        return sample

    # torch calls the hooks again where a subclass's step calls that of its base.
    def _before_step(self, *_: Any) -> None:
        self._depth += 1
        if self._depth == 1 and self._needs_copies and self.is_due():
            layers = self.find_layers()
            params = (p for group in self.optimizer.param_groups for p in group["params"])
            self._before = {param: param.detach().clone() for param in params if param in layers}

    def _after_step(self, *_: Any) -> None:
        self._depth -= 1
        params = (p for group in self.optimizer.param_groups for p in group["params"])
        if not self._depth and any(param.grad is not None for param in params):
            self.end_step()

    @property
    def _flag(self) -> Tensor | None:
        """Not 0 where the step that is under way is skipped; None where that is known not to be."""
        flag: Tensor | None = getattr(self.optimizer, "found_inf", None)
        return flag

    @property
    def _needs_copies(self) -> bool:
        known = last_update.dispatch(type(self.optimizer)) is not last_update.dispatch(object)
        return "update_norm" in self.measures and not known

    def _layer_step(self, param: Tensor, group: dict[str, Any]) -> LayerStep | None:
        if not (state := self.optimizer.state.get(param)):
            return None
        lr = self._lrs.get(id(group), group["lr"])
        return LayerStep(self.optimizer, group, state, param, lr, self._before.get(param))


@dataclass
class StepSampler(OptimizerSampler):
    """Samples every n-th step."""

    every_n_steps: int = field(kw_only=True)

    def is_due(self) -> bool:
        return (1 + (self.steps or 0)) % self.every_n_steps == 0


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
    _took: Collection[Tensor] = ()

    def is_due(self) -> bool:
        return self.ends_interval(self.trainer)

    def end_step(self) -> None:
        if self._flag is None:
            self._notes.clear()
        # A scheduler may change rates before the interval's end, and a tensor in place; anyone may
        # change gradients.
        groups = self.optimizer.param_groups
        lrs = {
            id(group): lr.clone() if isinstance(lr := group["lr"], Tensor) else lr
            for group in groups
        }
        took = {p for group in groups for p in group["params"] if p.grad is not None}
        self._notes.append(_Note(self._flag, lrs, took))
        super().end_step()

    def took(self, param: Tensor) -> bool:
        return param in self._took

    def sample(self, without: str | None = None) -> None:
        while self._notes and (note := self._notes[-1]).skipped is not None and note.skipped.item():
            self._notes.pop()
        # An interval without a step has none to sample.
        self._took, self._lrs = (note.took, note.lrs) if self._notes else ((), {})
        super().sample(without)

    def take_sample(self) -> dict[str, Row] | None:
        if self._sample is None:  # The interval's last batch took no step.
            self._before = {}  # of a step that was not taken
            # The gradient may have changed since.
            self.sample(without="gradient_cosine")
        self._notes.clear()
        return super().take_sample()


class _Note(NamedTuple):
    """What is to be known of a step later: whether it was skipped, its rates, and its gradients."""

    skipped: Tensor | None
    lrs: dict[int, Number]
    took: set[Tensor]
