"""The optimizers by name: ``build_optimizer("aida", module, lr=1e-3)``."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, Optimizer, RAdam, SparseAdam
from torch.optim.optimizer import ParamsT

from aida_lightning import optim
from aida_lightning._private import WRAPPERS
from aida_lightning.optim._state import OwnStateOptimizer, check_groups

OptimizerLike: TypeAlias = str | type[Optimizer] | Callable[..., Optimizer]


_WRAPPED = re.compile(rf"\b({'|'.join(WRAPPERS)})\.")

# Torch's optimizers that support sparse gradients.
_TAKE_SPARSE = (SGD, Adagrad, LBFGS, SparseAdam)


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
        no_decay_1d: whether to exempt tensors with fewer than 2 dimensions (biases, norm gains)
            from weight decay, which needs a module; False by default.
        options: options of the optimizer; options that you omit keep the paper's defaults.

    Raises:
        ValueError: no optimizer has this name, an option's value is out of range, the module has no
            parameter that requires a gradient, or the module's embeddings have sparse gradients,
            which the optimizer does not support.
        TypeError: the optimizer lacks an option, or ``optimizer`` does not return an optimizer.

    Example:
        >>> import torch
        >>> optimizer = build_optimizer("aida", torch.nn.Linear(3, 2), k=1, weight_decay=1e-4)
        >>> optimizer.param_groups[0]["param_names"]
        ['weight', 'bias']
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
    is_class = isinstance(optimizer, type)
    if is_class:
        check_options(factory, [*options, *(["weight_decay"] if no_decay_1d else [])])
    sparse: dict[Tensor, str] = {}
    if isinstance(params, nn.Module):
        sparse = sparse_layers(params)
        # Only the family gets names: third-party classes may inspect the parameters, and torch's
        # later refuse unnamed groups, which Lightning's finetuning callbacks add.
        named = isinstance(factory, type) and issubclass(factory, optim.LayerwiseOptimizer)
        params = _groups(params, no_decay_1d, named)
    elif no_decay_1d:
        raise ValueError(
            f"no_decay_1d=True needs a module whose parameters it can group, got {type(params)}"
        )
    built = factory(params, **options)
    if not isinstance(built, Optimizer):
        raise TypeError(f"{optimizer} must return a torch.optim.Optimizer, got {built!r}")
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


def sparse_layers(module: nn.Module) -> dict[Tensor, str]:
    """Map the weights of embeddings that are built with ``sparse=True`` to their names.

    If a module of another kind shares a weight, the gradient is a dense sum and the weight is
    omitted.
    """

    def is_sparse(part: nn.Module) -> bool:
        return isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse

    dense = {p for m in module.modules() if not is_sparse(m) for p in m.parameters(recurse=False)}
    return {
        layer.weight: layer_name(f"{path}.weight").lstrip(".")
        for path, layer in module.named_modules()
        if is_sparse(layer) and layer.weight.requires_grad and layer.weight not in dense
    }


def check_sparse(optimizer: Optimizer, sparse: Mapping[Tensor, str]) -> None:
    """Raise a ValueError if an optimizer has sparse gradients but does not support them."""
    cls = type(optimizer)
    is_torchs = cls.__module__.startswith("torch.optim")
    if not isinstance(optimizer, OwnStateOptimizer) and (not is_torchs or cls in _TAKE_SPARSE):
        return
    held = {param for group in optimizer.param_groups for param in group["params"]}
    if names := [name for param, name in sparse.items() if param in held]:
        raise ValueError(
            f"{cls.__name__} does not support sparse gradients, which {names} have; build their "
            "embeddings with sparse=False, or train them with a separate optimizer, such as "
            "torch.optim.SparseAdam"
        )


def layer_name(name: str) -> str:
    """Remove from a parameter's name the parts that wrappers of modules add.

    Example:
        >>> layer_name("_orig_mod.net.0._checkpoint_wrapped_module.weight")
        'net.0.weight'
    """
    return _WRAPPED.sub("", name)


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


def _groups(module: nn.Module, no_decay_1d: bool, named: bool) -> Any:
    trainable = [(layer_name(n), p) for n, p in module.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(
            f"{type(module).__name__} has no parameters that require a gradient, so there is "
            "nothing to optimize"
        )

    def listed(pairs: list[tuple[str, nn.Parameter]]) -> list[Any]:
        return list(pairs) if named else [p for _, p in pairs]

    if not no_decay_1d:
        return listed(trainable)
    if lazy := [name for name, p in trainable if is_lazy(p)]:
        raise ValueError(
            f"no_decay_1d=True needs the number of dimensions of each layer, but {lazy} are not "
            "initialized yet; run a batch through the module first"
        )
    decayed = [pair for pair in trainable if pair[1].ndim >= 2]
    exempt = [pair for pair in trainable if pair[1].ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": listed(decayed)},
        {"params": listed(exempt), "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
