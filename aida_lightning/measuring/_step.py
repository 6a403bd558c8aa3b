"""The measures of an optimizer's step, for the monitor and for loops without a Trainer."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from aida_lightning.diagnostics import last_update
from aida_lightning.measuring._hooks import StepHooks, named, params_of
from aida_lightning.measuring._layer import LayerStep, Row, source_of, step_of, take_measures
from aida_lightning.measuring._merging import measure_shared
from aida_lightning.measuring._names import as_list, matching, names_of, weights
from aida_lightning.measuring._parts import Layer, Parts, check_parts, with_parts
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
    """Measure layers of one optimizer after a step.

    Args:
        optimizer: the optimizer.
        measures: names of the measures to take.
    """

    optimizer: Optimizer
    measures: Sequence[str]
    _before: dict[Tensor, Tensor] = field(default_factory=dict)
    _gradients: dict[Tensor, Tensor] = field(default_factory=dict)

    _has_update: bool = True  # as far as known; False once the registered function returned None

    @property
    def needs_gradients(self) -> bool:
        """Whether the measures need gradients that the step may change in place.

        Of torch's optimizers, only SGD with Nesterov momentum changes them, in its foreach
        implementation; the package's own never do.
        """
        author = getattr(type(self.optimizer).step, "__module__", "").partition(".")[0]
        nesterov = any(group.get("nesterov") for group in self.optimizer.param_groups)
        measured = any(source_of(name) in ("gradient", "momentum") for name in self.measures)
        return measured and (nesterov or author not in ("torch", "aida_lightning"))

    @property
    def needs_copies(self) -> bool:
        """Whether a measure needs a copy of the parameters from before the step."""
        known = last_update.dispatch(type(self.optimizer)) is not last_update.dispatch(object)
        measured = any(source_of(name) == "update" for name in self.measures)
        return measured and not (known and self._has_update)

    def is_lost_after_step(self, measures: Iterable[str]) -> bool:
        """Tell whether some of the measures can only be taken right after a step."""
        sources = {source_of(name) for name in measures}
        of_copies = "update" in sources and self.needs_copies
        return of_copies or not sources.isdisjoint({"gradient", "momentum"})

    def copy(self, layers: Iterable[Layer]) -> None:
        """Keep a copy of the layers from before a step, if a measure needs it."""
        if self.needs_copies:
            self._before = {param: param.detach().clone() for param in self._own(layers)}

    def copy_gradients(self, layers: Iterable[Layer]) -> None:
        """Keep a copy of the gradients that the step receives, if it may change them."""
        if self.needs_gradients:
            own = self._own(layers)
            self._gradients = {p: p.grad.detach().clone() for p in own if p.grad is not None}

    def forget(self) -> None:
        """Drop the copies of a step that was not taken."""
        self._before, self._gradients = {}, {}

    @torch.no_grad()
    def take(
        self,
        layers: Mapping[Layer, str],
        took: Collection[Tensor],
        lrs: Mapping[int, Any] | None = None,
        with_gradient: bool = True,
    ) -> dict[str, Row]:
        """Take the measures of the last step, on the device.

        If processes share layers, every process must call this method.

        Args:
            layers: layers to measure, each next to its parts, with their names; those of other
                optimizers are skipped.
            took: parameters whose gradient the step used.
            lrs: learning rates of the step, by the ``id`` of the group; by default, the current
                ones.
            with_gradient: whether the gradients are still those that the step used.
        """
        groups = {p: group for group in self.optimizer.param_groups for p in group["params"]}
        rows: dict[Layer, Row] = {}
        shared: dict[Layer, LayerStep | None] = {}
        for _, of_param in groupby(layers, key=lambda each: id(each.param)):
            together = [*of_param]
            param, layer = together[0].param, None
            if param not in groups or not param.numel():
                continue
            if param in took:
                group = groups[param]
                lr = (lrs or {}).get(id(group), group.get("lr"))
                gradient = self._gradients.get(param, param.grad) if with_gradient else None
                layer = self._layer_step(param, group, lr, gradient)
            if is_distributed(param):
                shared |= dict.fromkeys(together, layer)
                continue
            if layer is not None and "update_norm" in self.measures and layer.before is None:
                self._has_update &= layer.has("update")
            if layer is not None:
                for each in together:
                    rows[each] = take_measures(step_of(layer, each.rows), self.measures)
        rows |= measure_shared(shared, self.measures)
        self.forget()
        return {name: rows[each] for each, name in layers.items() if each in rows}

    def _own(self, layers: Iterable[Layer]) -> list[Tensor]:
        watched = {layer.param for layer in layers}
        return [param for param in params_of(self.optimizer) if param in watched]

    def _layer_step(
        self, param: Tensor, group: dict[str, Any], lr: Any, gradient: Tensor | None
    ) -> LayerStep:
        state = getattr(self.optimizer, "state", {}).get(param) or {}
        before = self._before.get(param)
        return LayerStep(self.optimizer, group, state, param, gradient, lr, before)


@contextmanager
def measure_step(
    optimizer: Optimizer | Sequence[Optimizer],
    module: nn.Module,
    statistics: Sequence[str] | str = ("mean", "std"),
    layers: Sequence[str] | str | None = None,
    parts: Mapping[str, Parts] | None = None,
) -> Iterator[dict[str, float]]:
    """Measure the last step that an optimizer takes within the context.

    The numbers are those that a ``StepsizeMonitor`` logs, for Lightning Fabric and for loops
    without a Trainer. They are available when the context has ended; if the optimizer took no step,
    there are none. A measured step costs the same as in the monitor: one pass over the layers and
    one transfer to the host. If processes share layers, all of them must enter the context at the
    same step.

    Args:
        optimizer: the optimizer, Fabric's wrapper of it, or a list of several. Optimizers that one
            of them holds are measured too.
        module: the module that names the layers, or Fabric's wrapper of it.
        statistics: names of statistics, as in the ``StepsizeMonitor``. If an optimizer has no
            adaptive stepsizes and therefore none of these statistics, those of its updates are
            measured instead.
        layers: names of parameters or globs that match them. None chooses the weights, like the
            ``StepsizeMonitor`` but without its ``max_layers``.
        parts: parts of packed layers to measure as well, as in the ``StepsizeMonitor``.

    Yields:
        A dictionary that is filled when the context ends. It maps ``stepsize_mean/<layer>`` and so
        on to the numbers. With several optimizers, the optimizer's name comes first.

    Raises:
        TypeError: the first argument is no optimizer, or the second is no module.
        ValueError: a statistic is unknown, a glob matches no layer, a layer cannot be divided into
            its parts, or the optimizers hold none of the module's parameters.

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
    chosen = choose_statistics(as_list("statistics", statistics, "statistic"))
    optimizers = [*optimizer] if isinstance(optimizer, Sequence) else [optimizer]
    for given in optimizers:
        if not hasattr(given, "param_groups"):
            raise TypeError(f"measure_step needs an optimizer as first argument, got {given!r}")
    if not isinstance(module, nn.Module):
        raise TypeError(f"measure_step needs a torch.nn.Module as second argument, got {module!r}")
    held = {param for given in optimizers for param in params_of(given)}
    check_parts(parts)
    found = _layers_of(
        module, held, layers if layers is None else as_list("layers", layers, "glob")
    )
    watched = with_parts(found, names_of(module), parts or {})
    steps = {
        name: _MeasuredStep(each, watched, to_be_had(chosen, each))
        for name, each in named(optimizers).items()
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


def _layers_of(
    module: nn.Module, held: Collection[Tensor], globs: Sequence[str] | None
) -> dict[Tensor, str]:
    """Map those of the optimizers' layers that are to be measured to their names."""
    names = names_of(module)
    there = [own[0] for own in names.values()]
    if not held & names.keys():
        raise ValueError(f"The optimizers hold none of the module's parameters, which are: {there}")
    chosen: set[Tensor] = set()
    for pattern in globs or ():
        if not (found := matching(names, pattern)):
            raise ValueError(f"No layer matches {pattern!r}; the layers are: {there}")
        chosen |= found
    if globs is None:
        trained = {param for param in names if param in held and param.requires_grad}
        chosen = trained & weights(module) or trained
    return {param: own[0] for param, own in names.items() if param in chosen}


class _MeasuredStep:
    """The measures of the last step that an optimizer has taken."""

    def __init__(
        self, optimizer: Optimizer, layers: Mapping[Layer, str], statistics: list[Statistic]
    ) -> None:
        self.statistics = statistics
        self.rows: dict[str, Row] = {}
        self._optimizer, self._layers = optimizer, layers
        self._measures = StepMeasures(
            optimizer, [*dict.fromkeys(name for s in statistics for name in s.measures)]
        )
        self.hooks = StepHooks(optimizer, self._copy, self._copy_gradients, self._take)

    def _copy(self) -> None:
        self._measures.copy(self._layers)

    def _copy_gradients(self) -> None:
        self._measures.copy_gradients(self._layers)

    def _take(self, took: set[Tensor]) -> None:
        skipped = getattr(self._optimizer, "found_inf", None)
        if took and (skipped is None or not skipped.item()):
            self.rows = self._measures.take(self._layers, took)
