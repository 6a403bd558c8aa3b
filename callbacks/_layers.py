"""The choice of layers to watch: by glob, and no more than a reader can look at."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from aida_lightning.optim._sharding import is_distributed


class LayersOnceShaped:
    """The layers to watch, chosen anew as long as the module has lazy ones without a shape.

    A warning says where no optimizer trains any of them, so that nothing will be logged.

    Args:
        pl_module: the module.
        optimizers: all of the Trainer's.
        globs: as in ``choose_layers``.
        max_layers: as in ``choose_layers``.

    Raises:
        MisconfigurationException: the optimizers do not hold the module's layers, or see
            ``choose_layers``.
    """

    def __init__(
        self,
        pl_module: LightningModule,
        optimizers: Sequence[Optimizer],
        globs: Sequence[str] | None,
        max_layers: int | None,
    ) -> None:
        _check_held(pl_module, optimizers)
        self._module = pl_module
        self._choose = partial(choose_layers, pl_module, globs, max_layers)
        self._chosen: dict[Tensor, str] | None = None
        if self._are_shaped():
            _warn_of_untrained(self(), optimizers)

    def _are_shaped(self) -> bool:
        return not any(map(is_lazy, self._module.parameters()))

    def __call__(self) -> dict[Tensor, str]:
        """Choose among the layers that have a shape by now, as ``choose_layers`` does."""
        if self._chosen is None and self._are_shaped():
            self._chosen = self._choose()
        return self._choose() if self._chosen is None else self._chosen


def choose_layers(
    pl_module: LightningModule, globs: Sequence[str] | None, max_layers: int | None
) -> dict[Tensor, str]:
    """Map the parameters to watch to their names, in the module's order.

    Those that no optimizer has yet are among them, for a callback may unfreeze them later.

    Args:
        pl_module: the module.
        globs: of names of parameters; None chooses those of 2 or more dimensions.
        max_layers: watch so many at most, and warn; they are spread over the depth of the module,
            its first and its last layer among them. None watches all.

    Raises:
        MisconfigurationException: a glob matches no layer, or there is none to choose.
    """
    # torch.compile wraps a module and adds to its parameters' names.
    names: dict[Tensor, str] = {
        param: name.replace("_orig_mod.", "") for name, param in pl_module.named_parameters()
    }
    for pattern in globs or ():
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            raise MisconfigurationException(
                f"StepsizeMonitor found no layer that matches {pattern!r}, there are: "
                f"{_abridged([*names.values()])}"
            )
    chosen = [
        (param, name)
        for param, name in names.items()
        if (
            param.ndim >= 2
            if globs is None
            else any(fnmatchcase(name, pattern) for pattern in globs)
        )
    ]
    if not chosen:
        raise MisconfigurationException(
            "StepsizeMonitor found no parameter of 2 or more dimensions; choose layers "
            f"with `layers`, there are: {_abridged([*names.values()])}"
        )
    if max_layers is None or len(chosen) <= max_layers:
        return dict(chosen)
    gaps = max(max_layers - 1, 1)
    kept = dict(chosen[index * (len(chosen) - 1) // gaps] for index in range(max_layers))
    rank_zero_warn(
        f"StepsizeMonitor found {len(chosen):,} layers and logs {max_layers:,} of them, evenly "
        f"spread over the module: {_abridged([*kept.values()])}. To choose others give `layers` "
        "globs of their names, such as layers=['*.attn.*.weight']; max_layers=None logs all."
    )
    return kept


def _abridged(names: list[str]) -> str:
    """List names; of many only those at the ends, for an error is to be read."""
    if len(names) <= 40:
        return str(names)
    first, last = ", ".join(map(repr, names[:20])), ", ".join(map(repr, names[-5:]))
    return f"[{first}, …, {last}]"


def _check_held(pl_module: LightningModule, optimizers: Sequence[Optimizer]) -> None:
    """Raise where the optimizers do not hold the module's layers, or the module has none left.

    So it is where FSDP1 flattened them, and where they were sharded after the optimizer was built.
    """
    ours = {*pl_module.parameters()}
    if any(getattr(param, "_fsdp_flattened", False) for param in ours):
        raise MisconfigurationException(
            "StepsizeMonitor cannot tell layers apart under FSDP1, which flattens and joins them; "
            "shard with FSDP2, in Lightning the ModelParallelStrategy"
        )
    for optimizer in optimizers:
        params = {param for group in optimizer.param_groups for param in group["params"]}
        if params and ours.isdisjoint(params):
            fault = (
                f"{type(optimizer).__name__} has {len(params)} parameters, none of which is the "
                "module's"
            )
            if any(is_distributed(param) for param in ours):
                raise MisconfigurationException(
                    f"{fault}: it was built before the module was sharded, and would train copies. "
                    "Build it in configure_optimizers"
                )
            rank_zero_warn(f"StepsizeMonitor logs nothing of it: {fault}.")


def _warn_of_untrained(layers: Mapping[Tensor, str], optimizers: Sequence[Optimizer]) -> None:
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    trained = {param for group in groups for param in group["params"] if param.requires_grad}
    if trained and trained.isdisjoint(layers):
        rank_zero_warn(
            "StepsizeMonitor logs nothing for now: the layers that it watches are frozen, or no "
            f"optimizer has them. Layers: {_abridged([*layers.values()])}"
        )


def check_count(name: str, value: object) -> None:
    """Raise unless the value is None or an int of at least 1."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise MisconfigurationException(f"{name} must be an int >= 1 or None, got {value!r}")
    if value < 1:
        raise MisconfigurationException(f"{name} must be >= 1, got {value}")


def as_list(name: str, value: object, kind: str) -> list[str]:
    """Return one string or several as a list, and raise where there is another thing or none."""
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, Iterable) or not all(isinstance(s, str) for s in strings):
        raise MisconfigurationException(f"{name} must be a {kind} or a list of them, got {value!r}")
    if not (strings := [*strings]):
        raise MisconfigurationException(f"{name} must name at least one {kind}, got {value!r}")
    return strings
