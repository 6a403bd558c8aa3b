"""The measures of one optimizer's step, for the monitor and for loops without a Trainer."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from aida_lightning.diagnostics import last_update
from aida_lightning.measuring._hooks import StepHooks, named, params_of
from aida_lightning.measuring._layer import LayerStep, Row, source_of, take_measures
from aida_lightning.measuring._merging import measure_shared
from aida_lightning.measuring._names import matching, names_of, weights
from aida_lightning.measuring._statistics import (
    Statistic,
    choose_statistics,
    points_of,
    scalars_of,
    to_be_had,
)
from aida_lightning.optim._sharding import is_distributed


@dataclass
class StepMeasures:
    """Measures layers of one optimizer after a step.

    Args:
        optimizer: the optimizer.
        measures: names of what to measure.
    """

    optimizer: Optimizer
    measures: Sequence[str]
    _before: dict[Tensor, Tensor] = field(default_factory=dict)
    _gradients: dict[Tensor, Tensor] = field(default_factory=dict)

    @property
    def needs_gradients(self) -> bool:
        """Whether gradients are measured that the step may change, as torch's and ours do not."""
        author = getattr(type(self.optimizer).step, "__module__", "").partition(".")[0]
        measured = any(source_of(name) in ("gradient", "momentum") for name in self.measures)
        return measured and author not in ("torch", "aida_lightning")

    @property
    def needs_copies(self) -> bool:
        """Whether something is measured that only a copy from before the step tells."""
        known = last_update.dispatch(type(self.optimizer)) is not last_update.dispatch(object)
        return not known and any(source_of(name) == "update" for name in self.measures)

    def copy(self, layers: Collection[Tensor]) -> None:
        """Keep a copy of the layers from before a step, where something needs it."""
        if self.needs_copies:
            params = (param for param in params_of(self.optimizer) if param in layers)
            self._before = {param: param.detach().clone() for param in params}

    def copy_gradients(self, layers: Collection[Tensor]) -> None:
        """Keep a copy of the gradients that the step is given."""
        params = (param for param in params_of(self.optimizer) if param in layers)
        self._gradients = {p: p.grad.detach().clone() for p in params if p.grad is not None}

    def forget(self) -> None:
        """Drop the copies of a step that was not taken."""
        self._before, self._gradients = {}, {}

    @torch.no_grad()
    def take(
        self,
        layers: Mapping[Tensor, str],
        took: Collection[Tensor],
        lrs: Mapping[int, Any] | None = None,
        with_gradient: bool = True,
    ) -> dict[str, Row]:
        """Take the measures of the last step, on the device.

        Every process has to call it where processes share layers.

        Args:
            layers: the names of the parameters to measure; those of others are left out.
            took: the parameters whose gradient the step took.
            lrs: the learning rates of the step, by the groups' ``id``; by default the present ones.
            with_gradient: whether the gradients still are those that the step took.
        """
        groups = {p: group for group in self.optimizer.param_groups for p in group["params"]}
        rows: dict[Tensor, Row] = {}
        shared: dict[Tensor, LayerStep | None] = {}
        for param in layers:
            if param not in groups or not param.numel():
                continue
            layer = None
            if param in took:
                group = groups[param]
                lr = (lrs or {}).get(id(group), group.get("lr"))
                gradient = self._gradients.get(param, param.grad) if with_gradient else None
                layer = self._layer_step(param, group, lr, gradient)
            if is_distributed(param):
                shared[param] = layer
            elif layer is not None:
                rows[param] = take_measures(layer, self.measures)
        rows |= measure_shared(shared, self.measures)
        self.forget()
        return {name: rows[param] for param, name in layers.items() if param in rows}

    def _layer_step(
        self, param: Tensor, group: dict[str, Any], lr: Any, gradient: Tensor | None
    ) -> LayerStep:
        state = getattr(self.optimizer, "state", {}).get(param) or {}
        before = self._before.get(param)
        return LayerStep(self.optimizer, group, state, param, gradient, lr, before)


@contextmanager
def measure_step(
    optimizer: Optimizer,
    module: nn.Module,
    statistics: Sequence[str] | str = ("mean", "std"),
    layers: Sequence[str] | str | None = None,
) -> Iterator[dict[str, float]]:
    """Measure the last step that an optimizer takes within the context.

    They are the numbers that a ``StepsizeMonitor`` logs, for Lightning Fabric and for loops
    without a Trainer. They are there when the context has ended; without a step, none is. A step
    costs what it costs there: a pass over the layers and one transfer to the host. Where processes
    share layers, all of them have to enter the context at the same step.

    Args:
        optimizer: the optimizer, or Fabric's wrapper of it. Those that it holds are measured too.
        module: the module, or Fabric's wrapper of it, which names the layers.
        statistics: names of statistics, as the ``StepsizeMonitor`` has them. If an optimizer has
            none of them for want of adaptive stepsizes, its update's are measured instead.
        layers: names of parameters or globs of them. None chooses as the ``StepsizeMonitor`` does.

    Yields:
        A dictionary, which is filled at the end: the numbers by ``stepsize_mean/<layer>`` and so
        on; with several optimizers their names come first.

    Raises:
        ValueError: there is no statistic of a name, or no layer that a glob matches.

    Example:
        >>> import torch
        >>> from aida_lightning import Aida
        >>> module = torch.nn.Linear(2, 1)
        >>> optimizer = Aida(module.parameters(), lr=1e-3)
        >>> module(torch.ones(1, 2)).sum().backward()
        >>> with measure_step(optimizer, module, statistics=["mean", "update_ratio"]) as numbers:
        ...     optimizer.step()
        >>> [*numbers]
        ['stepsize_mean/weight', 'update_ratio/weight']
    """
    chosen = choose_statistics([statistics] if isinstance(statistics, str) else statistics)
    watched = _layers_of(module, [layers] if isinstance(layers, str) else layers)
    steps = {
        name: _MeasuredStep(each, watched, to_be_had(chosen, each))
        for name, each in named([optimizer]).items()
    }
    numbers: dict[str, float] = {}
    for step in steps.values():
        step.hooks.attach()
    try:
        yield numbers
    finally:
        for step in steps.values():
            step.hooks.detach()
    prefixes = {name: name if len(steps) > 1 else "" for name in steps}
    points = points_of(
        {prefixes[name]: step.rows for name, step in steps.items()},
        {prefixes[name]: step.statistics for name, step in steps.items()},
    )
    numbers |= {"/".join(path): number for path, number in scalars_of(points).items()}


def _layers_of(module: nn.Module, globs: Sequence[str] | None) -> dict[Tensor, str]:
    """Map the parameters to watch to their names, in the module's order."""
    names = names_of(module)
    chosen = weights(module) if globs is None else set()
    for pattern in globs or ():
        if not (found := matching(names, pattern)):
            there = [own[0] for own in names.values()]
            raise ValueError(f"there is no layer that matches {pattern!r}, there are: {there}")
        chosen |= found
    return {param: own[0] for param, own in names.items() if param in chosen}


class _MeasuredStep:
    """Holds the measures of the last step that an optimizer has taken."""

    def __init__(
        self, optimizer: Optimizer, layers: Mapping[Tensor, str], statistics: list[Statistic]
    ) -> None:
        self.statistics = statistics
        self.rows: dict[str, Row] = {}
        self._optimizer, self._layers = optimizer, layers
        self._measures = StepMeasures(
            optimizer, [*dict.fromkeys(name for s in statistics for name in s.measures)]
        )
        given = self._copy_gradients if self._measures.needs_gradients else None
        self.hooks = StepHooks(optimizer, self._copy, self._take, given)

    def _copy(self) -> None:
        self._measures.copy(self._layers)

    def _copy_gradients(self) -> None:
        self._measures.copy_gradients(self._layers)

    def _take(self, took: set[Tensor]) -> None:
        skipped = getattr(self._optimizer, "found_inf", None)
        if took and (skipped is None or not skipped.item()):
            self.rows = self._measures.take(self._layers, took)
