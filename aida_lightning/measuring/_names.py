"""The names by which a module's layers are logged and chosen, without the parts of wrappers."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import ParametrizationList

from aida_lightning._layers import layer_name
from aida_lightning._private import WeightNormParametrization, weight_norm_hooks
from aida_lightning.registry import matches_layer

T = TypeVar("T", bound=Hashable)
_PARAMETRIZED = re.compile(r"\bparametrizations\.([^.]+)\.original\d*$")


def names_of(module: nn.Module) -> dict[Tensor, list[str]]:
    """List the names of each parameter, starting with the name under which it is logged.

    The others name the further places of a tied parameter, or the result of a parametrization.

    Example:
        >>> from torch import nn
        >>> layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2, bias=False))
        >>> [*names_of(nn.Sequential(layer)).values()]
        [['0.parametrizations.weight.original', '0.weight']]
    """
    replicated = [
        f"{path}." if path else ""
        for path, submodule in module.named_modules(remove_duplicate=False)
        if isinstance(submodule, DistributedDataParallel)
    ]
    names: dict[Tensor, list[str]] = {}
    for name, param in module.named_parameters(remove_duplicate=False):
        for path in reversed(replicated):
            if name.startswith(path):
                name = path + name.removeprefix(path).removeprefix("module.")
        names.setdefault(param, []).append(layer_name(name))
    return {
        param: [*dict.fromkeys([*own, *(_PARAMETRIZED.sub(r"\1", name) for name in own)])]
        for param, own in names.items()
    }


def matching(names: Mapping[T, Sequence[str]], pattern: str) -> set[T]:
    """Return the layers with the pattern as a name or, if there are none, those it matches.

    Example:
        >>> import torch
        >>> a, b = torch.zeros(1), torch.zeros(1)
        >>> matching({a: ["blocks[0]"], b: ["blocks0"]}, "blocks[0]") == {a}
        True
    """
    pattern = layer_name(pattern)
    exact = {param for param, own in names.items() if pattern in own}
    return exact or {
        param for param, own in names.items() if any(matches_layer(name, pattern) for name in own)
    }


def weights(module: nn.Module) -> set[Tensor]:
    """Return the weights of a module's parts, without their biases and gains.

    The weights are the tensors of 2 or more dimensions, except for the gains of weight
    normalization, and each one-dimensional ``weight`` whose part has no other weight and is no
    norm. A norm has "norm" in the name of its class, of a base class, or of its place.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        >>> weights(net) == {net[0].weight}
        True
    """
    found: set[Tensor] = set()
    gains: set[Tensor] = set()
    for path, part in module.named_modules():
        own = dict(part.named_parameters(recurse=False))
        matrices = {param for param in own.values() if param.ndim >= 2}
        names = [path.rpartition(".")[2], *(cls.__name__ for cls in type(part).__mro__)]
        is_norm = any("norm" in name.lower() for name in names)
        if "weight" in own and not matrices and not is_norm and not isinstance(part, nn.PReLU):
            found.add(own["weight"])
        found |= matrices
        if isinstance(part, ParametrizationList) and isinstance(part[0], WeightNormParametrization):
            gains.add(part.get_parameter("original0"))
        gains.update(getattr(part, f"{hook.name}_g") for hook in weight_norm_hooks(part))
    return found - gains


def as_list(name: str, value: object, kind: str) -> list[str]:
    """Return one or several strings as a list.

    Raises:
        ValueError: the value is neither a string nor a list of them, or it is an empty list.
    """
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, Iterable) or not all(isinstance(s, str) for s in strings):
        raise ValueError(f"{name} must be a {kind} or a list of them, got {value!r}")
    if not (strings := [*strings]):
        raise ValueError(f"{name} must name at least one {kind}, got {value!r}")
    return strings
