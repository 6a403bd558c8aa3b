"""One optimizer that is watched: its steps are counted and, now and then, sampled."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from aida_lightning.callbacks._sharding import measure_part, measure_whole, merge
from aida_lightning.callbacks._statistics import LayerStep, Number, measure
from aida_lightning.diagnostics import has_stepsize, last_update, stepsize_ceiling
from aida_lightning.optim._sharding import is_distributed


@dataclass
class Sample:
    """What was measured of the layers of one optimizer at one step; nothing was read on the host.

    Attributes:
        optimizer: its name, empty where there is only one.
        skipped: set while a gradient scaler leaves it to the optimizer, as torch's fused Adam, to
            skip a step; whether it did, it is not 0 then, is known on the device only.
        rows: of each layer what was measured, by name.
    """

    optimizer: str
    skipped: Tensor | None
    rows: dict[str, dict[str, Number]] = field(default_factory=dict)


@dataclass
class Watched:
    """An optimizer, the layers to watch of it, and what to measure.

    Every process counts and samples at the same steps, so that a sample may merge over processes
    what each has of a layer.
    """

    name: str
    optimizer: Optimizer
    prefix: str
    find_layers: Callable[[], dict[Tensor, str]]
    measures: tuple[str, ...]
    steps: int | None = None  # taken so far; None until the first batch if no count was restored
    depth: int = 0  # of the steps that are under way, a subclass's and that of its base
    _sample: Sample | None = None
    _before: dict[Tensor, Tensor] = field(default_factory=dict)
    _lrs: dict[int, Number] = field(default_factory=dict)
    _handles: list[RemovableHandle] = field(default_factory=list)

    def begin_batch(self, trainer: Trainer) -> None:
        self.depth = 0  # were it not, a step had raised
        if self.steps is None:
            self.steps = trainer.fit_loop.epoch_loop._batches_that_stepped

    def sample_after_steps(self, every_n_steps: int) -> None:
        """Count the steps that had a gradient to take, and sample every n-th."""

        def count() -> int:
            return 1 + (self.steps or 0)

        def before() -> None:
            if self._needs_copies and count() % every_n_steps == 0:
                self._copy_layers()

        def after() -> None:
            self.steps = count()
            if self.steps % every_n_steps == 0:
                self.sample()

        self._hook(before, after)

    def sample_at_epochs_end(self, trainer: Trainer) -> None:
        """Sample the steps of an epoch's last batch, and keep the learning rates of others."""

        def is_last() -> bool:
            # The Trainer counts the steps of all optimizers.
            ends = 0 <= trainer.max_steps <= trainer.global_step + len(trainer.optimizers)
            return ends or trainer.fit_loop.epoch_loop._num_ready_batches_reached()

        def before() -> None:
            if self._needs_copies and is_last():
                self._copy_layers()

        def after() -> None:
            # A scheduler changes them before the epoch's end, and tensors in place.
            self._lrs = {
                id(group): lr.clone() if isinstance(lr := group["lr"], Tensor) else lr
                for group in self.optimizer.param_groups
            }
            if is_last():
                self.sample()

        self._hook(before, after)

    def finish_epoch(self) -> None:
        """Sample the last step now if it was none of the last batch's."""
        if self._sample is None:
            self._before = {}  # of a step that was not taken
            # The gradient may have changed since.
            self.sample(without="gradient_cosine")

    @torch.no_grad()
    def sample(self, without: str | None = None) -> None:
        """Take the measurements, on the device; of several steps in one batch the last counts."""
        measures = tuple(name for name in self.measures if name != without)
        groups = {
            param: group for group in self.optimizer.param_groups for param in group["params"]
        }
        sample = Sample(self.prefix, getattr(self.optimizer, "found_inf", None))
        parts: dict[Tensor, dict[str, Number]] = {}
        layers = self.find_layers()
        shared = [p for p in layers if p in groups and p.numel() and is_distributed(p)]
        for param, name in layers.items():
            if param in groups and param.numel() and (state := self.optimizer.state.get(param)):
                group = groups[param]
                lr = self._lrs.get(id(group), group["lr"])
                before = self._before.get(param)
                layer = LayerStep(self.optimizer, group, state, param, lr, before)
                if is_distributed(param):
                    parts[param] = measure_part(layer, measures)
                    sample.rows[name] = measure_whole(layer, measures)
                else:
                    sample.rows[name] = measure(layer, measures)
        for param, numbers in merge(shared, parts).items():
            wanted = {name: numbers[name] for name in measures if name in numbers}
            sample.rows[layers[param]] |= wanted
        self._sample, self._before = sample, {}

    def take_sample(self) -> Sample | None:
        sample, self._sample = self._sample, None
        return sample

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def _needs_copies(self) -> bool:
        known = last_update.dispatch(type(self.optimizer)) is not last_update.dispatch(object)
        return "update_norm" in self.measures and not known

    def _copy_layers(self) -> None:
        layers = self.find_layers()
        self._before = {
            param: param.detach().clone()
            for group in self.optimizer.param_groups
            for param in group["params"]
            if param in layers
        }

    def _hook(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        # torch calls the hooks again where a subclass's step calls that of its base.
        def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self.depth += 1
            if self.depth == 1:
                before()

        def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self.depth -= 1
            params = (param for group in optimizer.param_groups for param in group["params"])
            if not self.depth and any(param.grad is not None for param in params):
                after()

        self._handles = [
            self.optimizer.register_step_pre_hook(before_step),
            self.optimizer.register_step_post_hook(after_step),
        ]


def watch(
    optimizers: list[Optimizer],
    find_layers: Callable[[], dict[Tensor, str]],
    measures: tuple[str, ...],
    steps: dict[str, int],
) -> list[Watched]:
    """Watch the optimizers that have adaptive stepsizes; warn of those of which there is less.

    Args:
        optimizers: all of the Trainer's.
        find_layers: gives the names of the parameters to watch, those of no optimizer among them.
        measures: names of what to measure.
        steps: counts of steps taken, by the optimizers' names, that a checkpoint restored.
    """
    watched = []
    for name, optimizer in _named(optimizers):
        kind = type(optimizer).__name__
        if not has_stepsize(optimizer):
            rank_zero_warn(
                f"StepsizeMonitor logs nothing of {kind}, which has no adaptive stepsizes that are "
                "known; if it has any, register a function for its class with "
                "`aida_lightning.stepsize.register`."
            )
            continue
        ceilings = [stepsize_ceiling(optimizer, group) for group in optimizer.param_groups]
        if "ceiling_share" in measures and None in ceilings:
            rank_zero_warn(
                f"StepsizeMonitor logs no ceiling_share of {kind}, whose adaptive stepsizes have "
                "no ceiling that is known."
            )
        prefix = name if len(optimizers) > 1 else ""
        watched.append(Watched(name, optimizer, prefix, find_layers, measures, steps.get(name)))
    return watched


def _named(optimizers: list[Optimizer]) -> list[tuple[str, Optimizer]]:
    """Name the optimizers by their classes; those of one class are Adam, Adam-1, Adam-2."""
    seen: Counter[str] = Counter()
    pairs = []
    for optimizer in optimizers:
        name = type(optimizer).__name__
        pairs.append((f"{name}-{seen[name]}" if seen[name] else name, optimizer))
        seen[name] += 1
    return pairs
