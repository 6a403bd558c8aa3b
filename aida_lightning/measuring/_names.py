"""The names by which a module's layers are logged and chosen, without those of wrappers."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from aida_lightning.registry import layer_name

_PARAMETRIZED = re.compile(r"\bparametrizations\.([^.]+)\.original\d*$")


def names_of(module: nn.Module) -> dict[Tensor, list[str]]:
    """List the names of each parameter, the one that it is logged as first.

    The others are those of a tied parameter's further places, and of what a parametrization makes.

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


def matching(names: Mapping[Tensor, Sequence[str]], pattern: str) -> set[Tensor]:
    """Return the parameters that have the pattern as a name; if none has, those that it matches.

    Example:
        >>> import torch
        >>> a, b = torch.zeros(1), torch.zeros(1)
        >>> matching({a: ["blocks[0]"], b: ["blocks0"]}, "blocks[0]") == {a}
        True
    """
    pattern = layer_name(pattern)
    exact = {param for param, own in names.items() if pattern in own}
    return exact or {
        param for param, own in names.items() if any(fnmatchcase(name, pattern) for name in own)
    }


def weights(module: nn.Module) -> set[Tensor]:
    """Return the parameters of 2 or more dimensions but the gains of weight normalization."""
    gains: set[Tensor] = set()
    for submodule in module.modules():
        if isinstance(submodule, ParametrizationList) and isinstance(submodule[0], _WeightNorm):
            gains.add(submodule.get_parameter("original0"))
        for hook in submodule._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                gains.add(getattr(submodule, f"{hook.name}_g"))
    return {param for param in names_of(module) if param.ndim >= 2} - gains
