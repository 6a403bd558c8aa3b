"""The choice of layers to watch: by glob, and no more than a reader can take in."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from aida_lightning._lightning import LightningModule, MisconfigurationException, Trainer
from aida_lightning._private import is_flattened
from aida_lightning.logs.spread import evenly
from aida_lightning.measuring._names import as_list as _as_list
from aida_lightning.measuring._names import matching, names_of, weights
from aida_lightning.measuring._parts import Layer, Parts, check_parts, with_parts
from aida_lightning.optim._sharding import is_distributed

T = TypeVar("T", bound=Hashable)


class WatchedLayers:
    """The layers to watch, which are those that the globs choose and an optimizer trains.

    A layer joins when an optimizer first holds it with a shape and unfrozen. It keeps its place if
    it is frozen again, as ``toggle_optimizer`` does in every batch. If no layer is trained at the
    start, a warning says that nothing is logged.

    Each layer is followed by its parts, which are layers of their own.

    Without globs, the weights are chosen. If none of them is trained, all trained layers are
    chosen, and a message says so.

    Args:
        trainer: the Trainer, whose optimizers may change.
        pl_module: the module, whose layers may change.
        globs: globs of parameter names; None chooses the weights, see ``weights``.
        max_layers: as in ``spread``.
        parts: parts of packed layers, by glob.

    Raises:
        MisconfigurationException: the optimizers do not hold the module's layers, a glob matches no
            layer, or a layer cannot be divided into its parts.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        globs: Sequence[str] | None,
        max_layers: int | None,
        parts: Mapping[str, Parts] | None = None,
    ) -> None:
        self._trainer, self._module = trainer, pl_module
        self._globs, self._max_layers = globs, max_layers
        self._parts = parts or {}
        self._trained: set[Tensor] = set()
        self._chosen: dict[Layer, str] = {}
        _check_globs(pl_module, globs)
        self._check_parts()
        _check_held(pl_module, trainer.optimizers)
        if not self() and self._trained and not any(map(is_lazy, pl_module.parameters())):
            rank_zero_warn(
                "StepsizeMonitor logs nothing for now: the layers that it watches are frozen, or "
                f"no optimizer holds them. Layers: {_abridged([*self._matching().values()])}"
            )

    def __call__(self) -> dict[Layer, str]:
        """Map the layers to watch to their names, in the module's order."""
        optimizers = self._trainer.optimizers
        held = (p for optimizer in optimizers for g in optimizer.param_groups for p in g["params"])
        joined = {p for p in held if p.requires_grad and not is_lazy(p)} - self._trained
        if joined:
            self._trained |= joined
            _check_held(self._module, optimizers)
            layers = divided(self._module, self._layers(), self._parts)
            self._chosen = spread(layers, self._max_layers, self._chosen)
        return self._chosen

    def _check_parts(self) -> None:
        """Raise if no layer that may be watched has parts by one of their globs, or bad ones."""
        _check_globs(self._module, [*self._parts])
        names = names_of(self._module)
        watched = self._matching() or {param: own[0] for param, own in names.items()}
        there = {param: name for param, name in watched.items() if not is_lazy(param)}
        for pattern in self._parts if len(there) == len(watched) else ():
            if matching(names, pattern).isdisjoint(watched):
                raise MisconfigurationException(
                    f"StepsizeMonitor(parts=…) divides by {pattern!r} only layers that `layers` "
                    f"does not choose; the chosen layers are: {_abridged([*watched.values()])}"
                )
        divided(self._module, there, self._parts)

    def _layers(self) -> dict[Tensor, str]:
        names = names_of(self._module)
        trained = {param: own[0] for param, own in names.items() if param in self._trained}
        kept = {*self._matching(), *(layer.param for layer in self._chosen)}
        layers = {param: name for param, name in trained.items() if param in kept}
        # Lazy layers may become weights.
        if layers or not trained or self._globs is not None or any(map(is_lazy, names)):
            return layers
        rank_zero_info(
            "StepsizeMonitor found no weights among the trained layers and logs all of these: "
            f"{_abridged([*trained.values()])}. Choose others with `layers`."
        )
        return trained

    def _matching(self) -> dict[Tensor, str]:
        names = names_of(self._module)
        if self._globs is None:
            chosen = weights(self._module)
        else:
            chosen = set().union(*(matching(names, pattern) for pattern in self._globs))
        return {param: own[0] for param, own in names.items() if param in chosen}


def spread(
    layers: Mapping[T, str], max_layers: int | None, chosen: Collection[T] = ()
) -> dict[T, str]:
    """Choose at most ``max_layers`` layers, and warn if some are omitted.

    Args:
        layers: names of the layers, in the module's order.
        max_layers: largest number of layers to choose, evenly spread over the depth of the module,
            including its first and its last layer. None chooses all.
        chosen: layers that were chosen before, which stay.
    """
    if max_layers is None or len(layers) <= max_layers:
        return dict(layers)
    kept = layers.keys() & {*chosen}
    others = [param for param in layers if param not in kept]
    kept.update(others[place] for place in evenly(len(others), max_layers - len(kept)))
    found = {param: name for param, name in layers.items() if param in kept}
    rank_zero_warn(
        f"StepsizeMonitor found {len(layers):,} layers and logs {max_layers:,} of them, evenly "
        f"spread over the module: {_abridged([*found.values()])}. To choose others, pass globs of "
        "their names, such as layers=['*.attn.*.weight']; max_layers=None logs all layers."
    )
    return found


def _check_globs(pl_module: LightningModule, globs: Sequence[str] | None) -> None:
    """Raise if a glob matches no layer."""
    names = names_of(pl_module)
    first = [own[0] for own in names.values()]
    for pattern in globs or ():
        if not matching(names, pattern):
            raise MisconfigurationException(
                f"StepsizeMonitor found no layer that matches {pattern!r}; the layers are: "
                f"{_abridged(first)}"
            )


def divided(
    pl_module: LightningModule, layers: Mapping[Tensor, str], parts: Mapping[str, Parts]
) -> dict[Layer, str]:
    """List layers, each followed by its parts, and raise if a layer cannot be divided."""
    try:
        return with_parts(layers, names_of(pl_module), parts)
    except ValueError as error:
        raise MisconfigurationException(f"StepsizeMonitor: {error}") from error


def as_parts(parts: Mapping[str, Parts] | None) -> Mapping[str, Parts] | None:
    """Return the parts of layers, and raise if they are none."""
    try:
        check_parts(parts)
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error
    return parts


def check_bands(
    pl_module: LightningModule, globs: Sequence[str], parts: Mapping[str, Parts] | None = None
) -> None:
    """Warn if a glob matches no layer by the name under which it is logged."""
    own_names = {param: own[0] for param, own in names_of(pl_module).items() if not is_lazy(param)}
    listed = divided(pl_module, own_names, parts or {})
    logged = {layer: [name] for layer, name in listed.items()}
    for pattern in globs:
        if not matching(logged, pattern):
            names = [name for own in logged.values() for name in own]
            rank_zero_warn(
                f"StepsizeMonitor(custom_scalars=…) found no layer that matches {pattern!r}, so "
                "this glob adds no band; the nearest names are: "
                f"{', '.join(get_close_matches(pattern, names, cutoff=0.0))}"
            )


def _abridged(names: list[str]) -> str:
    """List names, or only the first and the last of many, to keep an error readable."""
    if len(names) <= 40:
        return str(names)
    first, last = ", ".join(map(repr, names[:20])), ", ".join(map(repr, names[-5:]))
    return f"[{first}, …, {last}]"


def _check_held(pl_module: LightningModule, optimizers: Sequence[Optimizer]) -> None:
    """Raise if the optimizers do not hold the module's layers, or if the module has none left.

    This happens if FSDP1 flattens the layers, or if they are sharded after the optimizer is built.
    """
    ours = {*pl_module.parameters()}
    if any(map(is_flattened, ours)):
        raise MisconfigurationException(
            "StepsizeMonitor cannot tell layers apart under FSDP1, which flattens and joins them; "
            "use FSDP2 instead, which Lightning provides as ModelParallelStrategy"
        )
    for optimizer in optimizers:
        params = {param for group in optimizer.param_groups for param in group["params"]}
        if params and ours.isdisjoint(params):
            fault = (
                f"{type(optimizer).__name__} has {len(params)} parameters, none of which belongs "
                "to the module"
            )
            if any(is_distributed(param) for param in ours):
                raise MisconfigurationException(
                    f"{fault}. The optimizer was built before the module was sharded and would "
                    "train copies; build it in configure_optimizers"
                )
            rank_zero_warn(f"StepsizeMonitor does not log this optimizer: {fault}.")


def check_count(name: str, value: object) -> None:
    """Raise if the value is neither None nor an int of at least 1."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise MisconfigurationException(f"{name} must be an int >= 1 or None, got {value!r}")
    if value < 1:
        raise MisconfigurationException(f"{name} must be >= 1, got {value}")


def as_list(name: str, value: object, kind: str) -> list[str]:
    """Return one or several strings as a list, and raise for anything else or an empty sequence."""
    try:
        return _as_list(name, value, kind)
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error
