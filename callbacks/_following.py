"""The samplers of the Trainer's optimizers, which a callback may exchange during a fit."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from aida_lightning._lightning import MisconfigurationException, Trainer
from aida_lightning.callbacks._adapters import stepsize_ceiling
from aida_lightning.callbacks._layers import check_count
from aida_lightning.callbacks._sampling import LastStepSampler, OptimizerSampler, StepSampler
from aida_lightning.diagnostics import has_stepsize


class Samplers:
    """Sample the optimizers that have adaptive stepsizes, and warn of what others lack.

    Args:
        trainer: the Trainer.
        find_layers: gives the names of the parameters to watch, of all optimizers.
        measures: names of what to measure; some may be there twice.
        steps: counts of steps taken, by the optimizers' names, that a checkpoint restored.
        interval: the steps between two samples, or what tells whether a batch is the last before a
            sample.

    Attributes:
        labels: the names of all optimizers that were sampled so far, by their prefixes in tags.
    """

    def __init__(
        self,
        trainer: Trainer,
        find_layers: Callable[[], dict[Tensor, str]],
        measures: Iterable[str],
        steps: Mapping[str, int],
        interval: int | Callable[[Trainer], bool],
    ) -> None:
        self._trainer = trainer
        self._find_layers = find_layers
        self._measures = [*dict.fromkeys(measures)]
        self._restored = steps
        self._build: Callable[..., OptimizerSampler]
        if isinstance(interval, int):
            self._build = partial(StepSampler, every_n_steps=interval)
        else:
            self._build = partial(LastStepSampler, ends_interval=interval)
        self._held: list[Optimizer] = []
        self._at: list[OptimizerSampler | None] = []  # in the places of the optimizers
        self._has_told = False
        self.labels: dict[str, str] = {}
        self._take_up()

    def __iter__(self) -> Iterator[OptimizerSampler]:
        return (sampler for sampler in self._at if sampler is not None)

    @property
    def steps(self) -> dict[str, int]:
        """The counts of steps taken, by the optimizers' names."""
        for sampler in self:
            sampler.settle()
        counted = {sampler.name: sampler.steps for sampler in self if sampler.steps is not None}
        return {**self._restored, **counted}

    def follow(self) -> None:
        """Turn to the optimizers that the Trainer holds now, and say so once."""
        if self._held == self._trainer.optimizers:
            return
        self._take_up()
        if not self._has_told:
            self._has_told = True
            rank_zero_info(
                "StepsizeMonitor follows the optimizers that the Trainer holds now: "
                f"{', '.join(name for name, _ in _named(self._held)) or 'none'}."
            )

    def begin_batch(self) -> None:
        self.follow()
        for sampler in self:
            sampler.begin_batch()
        self._restored = {}  # All that are sampled have a count from here on.

    def detach(self) -> None:
        for sampler in self:
            sampler.detach()

    def _take_up(self) -> None:
        """Keep what stays, and let an optimizer that is new go on with the count of its place."""
        before, kept = self._at, dict(zip(self._held, self._at, strict=True))
        self._held, self._at = [*self._trainer.optimizers], []
        for place, (name, optimizer) in enumerate(_named(self._held)):
            if optimizer in kept:
                sampler = kept.pop(optimizer)
            else:
                sampler = self._sampler_of(name, optimizer)
                former = before[place] if place < len(before) else None
                leaves = former is not None and former.optimizer not in self._held
                if sampler and former and leaves and former.steps is not None:
                    former.settle()
                    sampler.steps = former.steps
            if sampler:
                sampler.name = name
                self.labels[sampler.prefix] = name
            self._at.append(sampler)
        for left in kept.values():
            if left:
                left.detach()

    def _sampler_of(self, name: str, optimizer: Optimizer) -> OptimizerSampler | None:
        kind = type(optimizer).__name__
        if not has_stepsize(optimizer):
            rank_zero_warn(
                f"StepsizeMonitor logs nothing of {kind}, which has no adaptive stepsizes that are "
                "known; if it has any, register a function for its class with "
                "`aida_lightning.stepsize.register`."
            )
            return None
        ceilings = [stepsize_ceiling(optimizer, group) for group in optimizer.param_groups]
        if "ceiling_share" in self._measures and None in ceilings:
            rank_zero_warn(
                f"StepsizeMonitor logs no ceiling_share of {kind}, whose adaptive stepsizes have "
                "no ceiling that is known."
            )
        find, steps = self._find_layers, self._restored.get(name)
        sampler = self._build(self._trainer, name, optimizer, find, self._measures, steps)
        sampler.attach()
        return sampler


def check_interval(logging_interval: object, every_n_steps: object) -> None:
    """Raise unless the interval is known, and no number of steps is given for one of epochs."""
    check_count("every_n_steps", every_n_steps)
    if logging_interval not in ("step", "epoch"):
        raise MisconfigurationException(
            f"logging_interval must be 'step' or 'epoch', got {logging_interval!r}"
        )
    if logging_interval == "epoch" and every_n_steps is not None:
        raise MisconfigurationException(
            f"every_n_steps={every_n_steps} has no meaning with logging_interval='epoch'"
        )


def _named(optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, Optimizer]]:
    """Name the optimizers by their classes; those of one class are Adam, Adam-1, Adam-2."""
    seen: Counter[str] = Counter()
    for optimizer in optimizers:
        name = type(optimizer).__name__
        yield f"{name}-{seen[name]}" if seen[name] else name, optimizer
        seen[name] += 1
