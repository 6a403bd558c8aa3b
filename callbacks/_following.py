"""The samplers of the Trainer's optimizers, which a callback may replace during a fit."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from aida_lightning._lightning import MisconfigurationException, Trainer
from aida_lightning.callbacks._layers import check_count
from aida_lightning.callbacks._sampling import LastStepSampler, OptimizerSampler, StepSampler
from aida_lightning.diagnostics import has_stepsize, why_none
from aida_lightning.logs import tags
from aida_lightning.measuring._hooks import named
from aida_lightning.measuring._layer import Row
from aida_lightning.measuring._parts import Layer
from aida_lightning.measuring._registered import stepsize_ceiling
from aida_lightning.measuring._statistics import Statistic, to_be_had


class Samplers:
    """Sample the Trainer's optimizers and those that they hold, and report what some of them lack.

    Args:
        trainer: the Trainer.
        find_layers: function that maps the layers to watch, of all optimizers, to their names.
        statistics: statistics to compute from the samples.
        others: names of other measures to take of adaptive stepsizes.
        pictures: names of the monitor's arguments that ask for pictures of the stepsizes.
        steps: numbers of steps taken, by optimizer name, as restored from a checkpoint.
        interval: number of steps between two samples, or a function that tells whether a batch is
            the last before a sample.

    Attributes:
        labels: labels of all optimizers sampled so far, by their prefixes in tags.
    """

    def __init__(
        self,
        trainer: Trainer,
        find_layers: Callable[[], dict[Layer, str]],
        statistics: Collection[Statistic],
        others: Iterable[str],
        pictures: Sequence[str],
        steps: Mapping[str, int],
        interval: int | Callable[[Trainer], bool],
    ) -> None:
        self._trainer = trainer
        self._find_layers = find_layers
        self._statistics, self._others = statistics, [*others]
        self._pictures = pictures
        self._restored = steps
        self._build: Callable[..., OptimizerSampler]
        if isinstance(interval, int):
            self._build = partial(StepSampler, every_n_steps=interval)
        else:
            self._build = partial(LastStepSampler, ends_interval=interval)
        self._held: list[Optimizer] = []
        self._at: list[OptimizerSampler] = []
        self._has_told = False
        self._told_of: set[type] = set()
        self._told_of_absent: set[type] = set()
        self.labels: dict[str, str] = {}
        self._take_up()

    def __iter__(self) -> Iterator[OptimizerSampler]:
        return iter(self._at)

    @property
    def steps(self) -> dict[str, int]:
        """The number of steps that each optimizer has taken, by its name."""
        for sampler in self:
            sampler.settle()
        counted = {sampler.name: sampler.steps for sampler in self if sampler.steps is not None}
        return {**self._restored, **counted}

    def follow(self) -> None:
        """Switch to the optimizers that the Trainer now holds, and report the first switch."""
        if self._held == self._trainer.optimizers:
            return
        self._take_up()
        if not self._has_told:
            self._has_told = True
            rank_zero_info(
                "StepsizeMonitor follows the optimizers that the Trainer now holds: "
                f"{', '.join(sampler.name for sampler in self) or 'none'}."
            )

    def begin_batch(self) -> None:
        self.follow()
        for sampler in self:
            sampler.begin_batch()
        self._restored = {}  # From here on, every sampler has its own count.

    def detach(self) -> None:
        for sampler in self:
            sampler.detach()

    def tell_of_absent(self, samples: Mapping[str, Mapping[str, Row]]) -> None:
        """Warn, once per class, of statistics of the second moment that no sampled layer has."""
        for sampler in self:
            rows = samples[sampler.prefix].values()
            absent = [
                statistic.tag
                for statistic in sampler.statistics
                if statistic.tag in tags.OF_THE_SECOND_MOMENT
                and not any({*statistic.measures} <= {*row} for row in rows)
            ]
            cls = type(sampler.optimizer)
            if rows and absent and cls not in self._told_of_absent:
                self._told_of_absent.add(cls)
                rank_zero_warn(
                    f"StepsizeMonitor logs no {' and no '.join(absent)} for {cls.__name__}. Both "
                    "need a layer with a second moment per element, and snr_rows one with several "
                    "elements per row; no watched layer has that."
                )

    def _take_up(self) -> None:
        """Keep the samplers that stay; a new optimizer continues the count of its predecessor."""
        before, self._held, self._at = self._at, [*self._trainer.optimizers], []
        found = named(self._held)
        staying = {sampler.optimizer: sampler for sampler in before}
        for place, (name, optimizer) in enumerate(found.items()):
            if optimizer in staying:
                sampler = staying.pop(optimizer)
            else:
                sampler = self._sampler_of(name, optimizer)
                former = before[place] if place < len(before) else None
                leaves = former is not None and former.optimizer not in found.values()
                if former and leaves and former.steps is not None:
                    former.settle()
                    sampler.steps = former.steps
            sampler.name = name
            sampler.prefix = name if len(found) > 1 else ""
            self.labels[sampler.prefix] = _label(name, optimizer, [*found.values()])
            self._at.append(sampler)
        for left in staying.values():
            left.detach()

    def _sampler_of(self, name: str, optimizer: Optimizer) -> OptimizerSampler:
        statistics = to_be_had(self._statistics, optimizer)
        if not has_stepsize(optimizer):
            if type(optimizer) not in self._told_of:
                self._tell_of(optimizer, statistics)
            self._told_of.add(type(optimizer))
        elif None in [stepsize_ceiling(optimizer, group) for group in optimizer.param_groups]:
            if any("ceiling_share" in statistic.measures for statistic in statistics):
                rank_zero_warn(
                    f"StepsizeMonitor logs no ceiling_share for {type(optimizer).__name__}, whose "
                    "adaptive stepsizes have no known ceiling."
                )
        measures = [name for statistic in statistics for name in statistic.measures]
        measures += self._others if has_stepsize(optimizer) else []
        sampler = self._build(
            self._trainer,
            name,
            optimizer,
            self._find_layers,
            statistics,
            [*dict.fromkeys(measures)],
            self._restored.get(name),
        )
        sampler.attach()
        return sampler

    def _tell_of(self, optimizer: Optimizer, statistics: Collection[Statistic]) -> None:
        cls = type(optimizer)
        where = {
            tags.GRADIENT_COSINE: f"{tags.GRADIENT_COSINE} (if there is a momentum)",
            **{tag: f"{tag} (if there is a second moment)" for tag in tags.OF_THE_SECOND_MOMENT},
        }
        logged = f"it logs {', '.join(where.get(s.tag, s.tag) for s in statistics)}"
        missing = [s.tag for s in self._statistics if s not in statistics]
        if missing:
            logged += f" instead of {', '.join(missing)}"
        if self._pictures:
            logged += f", and draws no {' and no '.join(self._pictures)}"
        if why := why_none(optimizer):
            rank_zero_info(
                f"StepsizeMonitor: {cls.__name__} has no adaptive stepsizes, because {why}; "
                f"{logged}."
            )
        elif missing:
            rank_zero_warn(
                f"StepsizeMonitor does not know the adaptive stepsizes of {cls.__module__}."
                f"{cls.__qualname__}; {logged}. If the optimizer has any, register a function for "
                "its class with `aida_lightning.stepsize.register`."
            )


def _label(name: str, optimizer: Optimizer, beside: Iterable[Optimizer]) -> str:
    """Name an optimizer by the options that distinguish it from others of its class, if any do."""
    peers = (other for other in beside if type(other) is type(optimizer))
    defaults: list[dict[str, Any]] = [getattr(other, "defaults", {}) for other in peers]
    own = {
        option: value
        for option, value in getattr(optimizer, "defaults", {}).items()
        if any(str(others.get(option)) != str(value) for others in defaults)
    }
    options = ", ".join(f"{option}={value}" for option, value in own.items())
    return f"{type(optimizer).__name__} {options}" if options else name


def check_interval(logging_interval: object, every_n_steps: object) -> None:
    """Raise if the interval is unknown, or if a number of steps is given for epochs."""
    check_count("every_n_steps", every_n_steps)
    if logging_interval not in ("step", "epoch"):
        raise MisconfigurationException(
            f"logging_interval must be 'step' or 'epoch', got {logging_interval!r}"
        )
    if logging_interval == "epoch" and every_n_steps is not None:
        raise MisconfigurationException(
            f"every_n_steps={every_n_steps} has no effect with logging_interval='epoch'; pass one "
            "of them"
        )
