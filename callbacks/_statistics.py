"""The statistics that a user can choose: what is measured on the device, and what becomes of it."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from operator import mul
from typing import Any, TypeAlias

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from aida_lightning.diagnostics import (
    effective_learning_rate,
    last_update,
    stepsize,
    stepsize_ceiling,
)
from aida_lightning.diagnostics.reductions import (
    at_least_float32,
    cosine,
    histogram,
    mean_and_variance,
    norm,
    quantiles,
    real,
    share_at_least,
)
from aida_lightning.logs import tags

# Stepsizes at the ceiling differ by what v rounds, which adds up over 1 / (1 - beta2) steps.
AT_THE_CEILING = 1 - 1e-3
HISTOGRAM_BINS = 64

Number: TypeAlias = Tensor | float


@dataclass
class LayerStep:
    """One layer right after a step; what is measured of it is computed once, when asked for."""

    optimizer: Optimizer
    group: dict[str, Any]
    state: dict[str, Any]
    param: Tensor
    lr: Number
    before: Tensor | None = None  # the parameter before the step, where it was kept
    probabilities: tuple[float, ...] = ()  # of all quantiles that will be asked for

    @cached_property
    def stepsizes(self) -> Tensor:
        return at_least_float32(stepsize(self.optimizer, self.group, self.state))

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        return mean_and_variance(self.stepsizes)

    @cached_property
    def extremes(self) -> tuple[Tensor, Tensor]:
        return self.stepsizes.aminmax()

    @cached_property
    def quantiles(self) -> dict[float, Tensor]:
        found = quantiles(self.stepsizes, self.probabilities)
        return dict(zip(self.probabilities, found, strict=True))

    def ceiling(self) -> float | None:
        return stepsize_ceiling(self.optimizer, self.group)

    def ceiling_share(self) -> Tensor | None:
        ceiling = self.ceiling()
        return None if ceiling is None else share_at_least(self.stepsizes, AT_THE_CEILING * ceiling)

    def learning_rate(self) -> Number:
        return effective_learning_rate(self.group, self.state, self.lr)

    @cached_property
    def update(self) -> Tensor | None:
        if self.before is not None:
            return self.param.detach() - self.before
        return last_update(self.optimizer, self.group, self.state, self.param.detach(), self.lr)

    def update_norm(self) -> Tensor | None:
        return None if self.update is None else norm(self.update)

    def param_norm(self) -> Tensor | None:
        if self.before is not None:
            return norm(self.before)
        # A complex parameter's update is a real tensor.
        return None if self.update is None else norm(real(self.param.detach()) - self.update)

    def gradient_cosine(self) -> Tensor | None:
        m, g = self.state.get("exp_avg"), self.param.grad
        if m is None or g is None or g.is_sparse or m.shape != g.shape:
            return None
        return cosine(m, -g if self.group.get("maximize") else g)


@dataclass(frozen=True)
class Statistic:
    """What is logged as ``<tag>/<layer>``, from which measurements, and how."""

    tag: str
    measures: tuple[str, ...]
    finish: Callable[..., float] = float


# It gives a tensor that is left on the device, or a float; None where there is none to be had.
Measure: TypeAlias = Callable[[LayerStep], Number | None]

MEASURES: dict[str, Measure] = {
    "mean": lambda layer: layer.moments[0],
    "variance": lambda layer: layer.moments[1],
    "min": lambda layer: layer.extremes[0],
    "max": lambda layer: layer.extremes[1],
    "step": lambda layer: layer.state.get("step"),
    "beta2": lambda layer: layer.group["betas"][1] if "betas" in layer.group else None,
    "ceiling": LayerStep.ceiling,
    "ceiling_share": LayerStep.ceiling_share,
    "learning_rate": LayerStep.learning_rate,
    "update_norm": LayerStep.update_norm,
    "param_norm": LayerStep.param_norm,
    "gradient_cosine": LayerStep.gradient_cosine,
    "count": lambda layer: float(layer.stepsizes.numel()),
    "histogram": lambda layer: histogram(layer.stepsizes, HISTOGRAM_BINS),
}


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.copysign(math.inf, a) if a else math.nan


def _std_over_mean(variance: float, mean: float) -> float:
    return _ratio(math.sqrt(variance), mean)


def _effective_std(variance: float, learning_rate: float) -> float:
    return math.sqrt(variance) * learning_rate


STATISTICS: dict[str, Statistic] = {
    "mean": Statistic(tags.MEAN, ("mean",)),
    "std": Statistic(tags.STD, ("variance",), math.sqrt),
    "std_over_mean": Statistic(tags.STD_OVER_MEAN, ("variance", "mean"), _std_over_mean),
    "min": Statistic(tags.MIN, ("min",)),
    "max": Statistic(tags.MAX, ("max",)),
    "ceiling_share": Statistic(tags.CEILING_SHARE, ("ceiling_share",)),
    "effective_mean": Statistic(tags.EFFECTIVE_MEAN, ("mean", "learning_rate"), mul),
    "effective_std": Statistic(tags.EFFECTIVE_STD, ("variance", "learning_rate"), _effective_std),
    "update_ratio": Statistic(tags.UPDATE_RATIO, ("update_norm", "param_norm"), _ratio),
    "gradient_cosine": Statistic(tags.GRADIENT_COSINE, ("gradient_cosine",)),
}
_QUANTILE = re.compile(r"q(?!00)(\d{2})")


def choose_statistics(names: Iterable[str]) -> dict[str, Statistic]:
    """Look the names up, in their order; ``"median"`` and ``"q05"`` to ``"q99"`` are quantiles.

    Raises:
        MisconfigurationException: there is no statistic of a name.
    """
    chosen = {}
    for name in names:
        if isinstance(name, str) and (name == "median" or _QUANTILE.fullmatch(name)):
            measure = "q50" if name == "median" else name
            chosen[name] = Statistic(f"stepsize_{name}", (measure,))
        elif name in STATISTICS:
            chosen[name] = STATISTICS[name]
        else:
            raise MisconfigurationException(
                f"there is no statistic {name!r}; there are {', '.join(STATISTICS)}, median, and "
                "q01 to q99 for quantiles"
            )
    return chosen


def measure(layer: LayerStep, names: tuple[str, ...]) -> dict[str, Number]:
    """Take measurements of one layer, without a wait for the device; of some there may be none."""
    layer.probabilities, functions = _plan(names)
    taken = ((name, function(layer)) for name, function in functions)
    return {name: number for name, number in taken if number is not None}


@lru_cache
def _plan(names: tuple[str, ...]) -> tuple[tuple[float, ...], list[tuple[str, Measure]]]:
    """Look up once for all layers what measures them, and which quantiles are among it."""
    places = {name: int(match[1]) / 100 for name in names if (match := _QUANTILE.fullmatch(name))}
    functions = [
        (name, partial(_quantile, probability=places[name]) if name in places else MEASURES[name])
        for name in names
    ]
    return tuple(places.values()), functions


def _quantile(layer: LayerStep, probability: float) -> Tensor:
    return layer.quantiles[probability]


def finish(statistic: Statistic, numbers: dict[str, Any]) -> float | None:
    """Compute a statistic on the host; None where a measurement that it needs is missing."""
    needed = [numbers.get(name) for name in statistic.measures]
    return None if None in needed else statistic.finish(*needed)


def to_host(rows: list[dict[str, Number]]) -> list[dict[str, Any]]:
    """Bring measurements to the host in one transfer a device: floats, and lists of 1-dim tensors.

    Example:
        >>> to_host([{"mean": torch.tensor(2.0), "learning_rate": 0.5}])
        [{'mean': 2.0, 'learning_rate': 0.5}]
    """
    by_device: dict[torch.device, list[tuple[dict[str, Any], str, Tensor]]] = {}
    finished: list[dict[str, Any]] = [dict(row) for row in rows]
    for row in finished:
        for name, number in row.items():
            if isinstance(number, Tensor):
                by_device.setdefault(number.device, []).append((row, name, number))
    for entries in by_device.values():
        numbers = torch.cat([number.reshape(-1) for _, _, number in entries]).tolist()
        start = 0
        for row, name, number in entries:
            row[name] = numbers[start : start + len(number)] if number.ndim else numbers[start]
            start += number.numel()
    return finished
