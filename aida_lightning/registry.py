"""The optimizers by name: ``build_optimizer("aida", module, lr=1e-3)``."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam
from torch.optim.optimizer import ParamsT

from aida_lightning import optim
from aida_lightning._layers import check_sparse, sparse_layers
from aida_lightning._layers import layer_name as layer_name
from aida_lightning.groups import GroupsLike, group_layers, params_of, patterns_of
from aida_lightning.optim._partition import checked_partition
from aida_lightning.optim._state import OwnStateOptimizer, check_groups

OptimizerLike: TypeAlias = str | type[Optimizer] | Callable[..., Optimizer]


class _Entry(NamedTuple):
    optimizer: type[Optimizer]
    defaults: Mapping[str, Any] = MappingProxyType({})


# Defaults that differ from the class's own come from the paper's Table I.
_ENTRIES: dict[str, _Entry] = {
    "adabelief": _Entry(optim.AdaBelief),
    "adabeliefl": _Entry(optim.AdaBeliefL),
    "adam": _Entry(Adam),
    "adaml": _Entry(optim.AdamL),
    "adamplus": _Entry(optim.AdamPlus),
    "adamw": _Entry(AdamW),
    "aida": _Entry(optim.Aida),
    "aidagrad": _Entry(optim.AidaGrad),
    "fromage": _Entry(optim.Fromage),
    "ladabelief": _Entry(optim.LAdaBelief),
    "ladam": _Entry(optim.LAdam),
    "laida": _Entry(optim.LAida),
    "msvag": _Entry(optim.MSVAG),
    "radam": _Entry(RAdam, {"decoupled_weight_decay": True}),
    "setadam": _Entry(optim.SETAdam),
    "sgd": _Entry(SGD, {"lr": 0.1, "momentum": 0.9}),
    "yogi": _Entry(optim.Yogi),
}


def list_optimizers(pattern: str = "*") -> list[str]:
    """List the names that ``build_optimizer`` accepts, in alphabetical order.

    Args:
        pattern: glob that the names must match, in any case; by default, it matches all names.

    Example:
        >>> list_optimizers("*aida*")
        ['aida', 'aidagrad', 'laida']
    """
    return [name for name in sorted(_ENTRIES) if fnmatchcase(name, pattern.lower())]


def get_optimizer_class(name: str) -> type[Optimizer]:
    """Look up an optimizer class by its name or its import path.

    Args:
        name: name in any case, with or without ``-``, ``_``, ``.`` or spaces, where ``+`` stands
            for "plus"; or the import path of any optimizer class.

    Raises:
        ValueError: no optimizer has this name, or there is no optimizer class at this path. The
            message suggests the nearest names.

    Example:
        >>> get_optimizer_class("AdaBelief-L").__name__
        'AdaBeliefL'
        >>> get_optimizer_class("torch.optim.RMSprop").__name__
        'RMSprop'
    """
    return _entry(name).optimizer


def build_optimizer(
    optimizer: OptimizerLike,
    params: nn.Module | ParamsT,
    *,
    groups: GroupsLike | None = None,
    no_decay_1d: bool = False,
    **options: Any,
) -> Optimizer:
    """Build an optimizer by name, for a module's named parameters or for any parameters.

    Args:
        optimizer: name (see ``list_optimizers``), an optimizer class or its import path, or a
            callable that takes the parameters and the options and returns an optimizer.
        params: module, of which the optimizer takes all parameters that require a gradient (the
            family's groups keep their names); or anything that torch's optimizers accept: tensors,
            named tensors, or groups of them.
        groups: mapping from glob to the options of the layers whose names it matches, such as
            ``{"*.bias": {"weight_decay": 0.0}, "backbone.*": {"lr": 1e-4}}``, which needs a module;
            or a preset. ``"no_decay_1d"`` is the next argument, and ``"layer_decay:0.75"``
            multiplies ``lr`` by 0.75 per depth below the top, as timm counts it. The first pattern
            that matches a layer's name takes it. The other layers form the group "default", which
            comes first. Each group has its pattern as ``"name"``.
        no_decay_1d: whether to exempt tensors with fewer than 2 dimensions (biases, norm gains)
            from weight decay, in each group whose pattern does not set it. This needs a module;
            False by default.
        options: options of the optimizer; options that you omit keep the paper's defaults.

    Raises:
        ValueError: no optimizer has this name, an option's value is out of range, the module has no
            parameter that requires a gradient, a pattern matches none of their names, or the
            module's embeddings have sparse gradients, which the optimizer does not support.
        TypeError: the optimizer lacks an option, also one of a pattern, or ``optimizer`` does not
            return an optimizer.

    Example:
        >>> import torch
        >>> optimizer = build_optimizer("aida", torch.nn.Linear(3, 2), k=1, weight_decay=1e-4)
        >>> optimizer.param_groups[0]["param_names"]
        ['weight', 'bias']
        >>> groups = {"bias": {"weight_decay": 0.0}}
        >>> optimizer = build_optimizer("adamw", torch.nn.Linear(3, 2), groups=groups)
        >>> [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
        [('default', 0.01), ('bias', 0.0)]
    """
    if isinstance(optimizer, str):
        entry = _entry(optimizer)
        optimizer, options = entry.optimizer, {**entry.defaults, **options}
    if isinstance(optimizer, Optimizer) or not callable(optimizer):
        raise TypeError(
            f"Invalid optimizer of type {type(optimizer).__name__}, it must be a name, an "
            "optimizer class, or a callable that builds an optimizer"
        )
    factory: Callable[..., Optimizer] = optimizer
    no_decay_1d = no_decay_1d or groups == "no_decay_1d"
    is_class = isinstance(optimizer, type)
    if is_class:
        check_options(factory, [*options, *(["weight_decay"] if no_decay_1d else [])])
    patterns = patterns_of(groups)
    sparse: dict[Tensor, str] = {}
    if isinstance(params, nn.Module):
        sparse = sparse_layers(params)
        if is_class:
            _try_patterns(factory, patterns, options)
        params = _params_of(params, factory, groups, no_decay_1d, options)
    elif groups or no_decay_1d:
        given = f"groups={groups!r}" if groups else "no_decay_1d=True"
        raise ValueError(
            f"{given} needs a module whose parameters it can group, got {type(params)}"
        )
    built = factory(params, **options)
    if not isinstance(built, Optimizer):
        raise TypeError(f"{optimizer} must return a torch.optim.Optimizer, got {built!r}")
    for pattern, own in patterns.items():
        if lacking := [name for name in own if name not in built.defaults]:
            raise TypeError(
                f"groups: {pattern!r}: the groups of {type(built).__name__} have no option "
                f"{lacking[0]!r}; their options are: {', '.join(built.defaults)}"
            )
    check_sparse(built, sparse)
    if not isinstance(built, OwnStateOptimizer):  # which checks its groups itself
        built.register_load_state_dict_pre_hook(check_groups)
    return built


def check_options(optimizer: Callable[..., Optimizer], options: Iterable[str]) -> None:
    """Raise a TypeError that names the first of ``options`` that ``optimizer`` lacks, if any."""
    accepted = inspect.signature(optimizer).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
        return
    names = [name for name in accepted if name != "params"]
    for option in options:
        if option not in names:
            raise TypeError(
                f"{optimizer.__name__} has no option {option!r}; its options are: "
                f"{', '.join(names)}"
            )


def try_groups(
    optimizer: OptimizerLike, groups: GroupsLike | None, options: Mapping[str, Any]
) -> None:
    """Refuse groups that no module could have: an unknown preset, or options out of range.

    Raises:
        ValueError, TypeError: the message names the pattern and what is wrong with it.
    """
    patterns = patterns_of(groups)
    if isinstance(optimizer, str):
        entry = _entry(optimizer)
        optimizer, options = entry.optimizer, {**entry.defaults, **options}
    if isinstance(optimizer, type):
        _try_patterns(optimizer, patterns, options)


def for_any_layer(optimizer: OptimizerLike, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options to try without their layers: a partition is checked and left out.

    Raises:
        ValueError: the partition is not one of any layer.
        TypeError: the partition is of another type.
    """
    cls = get_optimizer_class(optimizer) if isinstance(optimizer, str) else optimizer
    cut = isinstance(cls, type) and issubclass(cls, optim.LayerwiseOptimizer)
    if not cut or "partition" not in options:
        return dict(options)
    checked_partition(options["partition"])
    return {**options, "partition": None}


def matches_layer(name: str, pattern: str) -> bool:
    """Tell whether a glob matches a layer's name, where ``[q]`` also matches itself.

    Example:
        >>> matches_layer("blocks.0.in_proj_weight[q]", "*.in_proj_weight[q]")
        True
        >>> matches_layer("blocks.0.in_proj_weight", "blocks.[0-2].*")
        True
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern.replace("[", "[[]"))


def _entry(name: str) -> _Entry:
    key = name.lower().replace("+", "plus")
    key = "".join(character for character in key if character not in "-_. ")
    if key not in _ENTRIES and "." in name:
        return _Entry(_class_at(name))
    if key not in _ENTRIES:
        nearest = ", ".join(get_close_matches(key, _ENTRIES, cutoff=0.0))
        raise ValueError(
            f"Unknown optimizer {name!r}, did you mean: {nearest}? list_optimizers() returns all "
            "names"
        )
    return _ENTRIES[key]


def _class_at(path: str) -> type[Optimizer]:
    module, _, name = path.rpartition(".")
    try:
        found = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        there: list[str] = []
        with suppress(ImportError, AttributeError, ValueError):
            there = [key for key, value in vars(resolve_name(module)).items() if _is_class(value)]
        nearest = ", ".join(f"{module}.{near}" for near in get_close_matches(name, there))
        hint = f", did you mean: {nearest}?" if nearest else f": {error}"
        raise ValueError(f"Unknown optimizer class {path!r}{hint}") from error
    if not _is_class(found):
        raise ValueError(f"{path} must be a subclass of torch.optim.Optimizer, got {found!r}")
    return found  # type: ignore[no-any-return]


def _is_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Optimizer)


def _params_of(
    module: nn.Module,
    factory: Callable[..., Optimizer],
    groups: GroupsLike | None,
    no_decay_1d: bool,
    options: Mapping[str, Any],
) -> Any:
    divided = group_layers(module, groups, no_decay_1d=no_decay_1d)
    if not divided:
        raise ValueError(
            f"{type(module).__name__} has no parameters that require a gradient, so there is "
            "nothing to optimize"
        )
    # Only the family gets names: third-party classes may inspect the parameters, and torch's
    # later refuse unnamed groups, which Lightning's finetuning callbacks add.
    named = isinstance(factory, type) and issubclass(factory, optim.LayerwiseOptimizer)
    found = params_of(divided, options, factory, named=named)
    return found if groups or no_decay_1d else found[0]["params"]


def _try_patterns(
    factory: Callable[..., Optimizer],
    patterns: Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Any],
) -> None:
    """Build an optimizer with each pattern's options, which torch's classes check only so."""
    param = nn.Parameter(torch.zeros(2, 2))
    if patterns:
        try:
            factory([param], **for_any_layer(factory, options))
        except Exception:  # the pattern is not to blame, and the class may refuse the parameter
            return
    for pattern, own in patterns.items():
        try:
            check_options(factory, own)
            factory([param], **for_any_layer(factory, {**options, **own}))
        except (TypeError, ValueError, RuntimeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"groups: {pattern!r}: {error}") from error
