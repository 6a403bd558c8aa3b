"""What a module's layers are: names, depths as timm counts them, and sparse gradients."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Optimizer, SparseAdam

from aida_lightning._private import WRAPPERS
from aida_lightning.optim._state import OwnStateOptimizer

_WRAPPED = re.compile(rf"\b({'|'.join(WRAPPERS)})\.")
# Torch's optimizers that support sparse gradients.
_TAKE_SPARSE = (SGD, Adagrad, LBFGS, SparseAdam)
# In timm's matchers, the ordinal of what belongs to the group before it.
_WITH_PREVIOUS = 99999
# How many parameters timm counts as one depth in a model that has no matcher.
_PER_DEPTH = 12


def layer_name(name: str) -> str:
    """Remove from a parameter's name the parts that wrappers of modules add.

    Example:
        >>> layer_name("_orig_mod.net.0._checkpoint_wrapped_module.weight")
        'net.0.weight'
    """
    return _WRAPPED.sub("", name)


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


def depths_below_the_top(module: nn.Module) -> dict[Tensor, int]:
    """Count for each parameter how far below the top of its model timm places it.

    The model may be a part of the module. What is beside it, such as a head, is at the top.
    """
    below: dict[Tensor, int] = {}
    for model in module.modules():
        config = getattr(model, "pretrained_cfg", None) or {}
        matcher = getattr(model, "group_matcher", None)
        if not callable(matcher) and "classifier" not in config:
            continue
        params = {layer_name(name): param for name, param in model.named_parameters()}
        if callable(matcher):
            depths = _depths_by_matcher(params, matcher(coarse=False))
        else:
            depths = _depths_by_count(params, config["classifier"])
        top = max(depths.values(), default=0)
        # A model comes before its parts, whose own count does not matter.
        below = {**{params[name]: top - depth for name, depth in depths.items()}, **below}
    return below


def _depths_by_matcher(names: Iterable[str], matcher: Any) -> dict[str, int]:
    """Give each name its depth by one of timm's matchers, a function or regular expressions."""
    ordinal: Callable[[str], Any] = matcher
    if isinstance(matcher, Mapping):
        specs = [
            (re.compile(spec[0]), (place,), spec[1])
            for place, of_group in enumerate(matcher.values())
            for spec in _specs(of_group)
        ]

        def ordinal(name: str) -> Any:
            for pattern, prefix, suffix in specs:
                if match := pattern.match(name):
                    parts = (prefix, match.groups(), suffix)
                    return tuple(map(float, chain.from_iterable(filter(None, parts))))
            return float("inf")  # what is above the numbered layers

    found: dict[tuple[float, ...], list[str]] = {}
    for name in names:
        key = ordinal(name)
        if key is not None:
            found.setdefault(tuple(key) if isinstance(key, Iterable) else (key,), []).append(name)
    depths: dict[str, int] = {}
    depth = -1
    for key in sorted(found):
        depth += depth < 0 or key[-1] != _WITH_PREVIOUS
        depths |= dict.fromkeys(found[key], depth)
    return depths


def _specs(of_group: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(of_group, str):
        yield of_group, None
    elif of_group is not None:
        yield from of_group


def _depths_by_count(names: Iterable[str], head: str | tuple[str, ...] | None) -> dict[str, int]:
    """Count twelve parameters as one depth below the head, as timm's ``auto_group_layers``."""
    heads = (head,) if isinstance(head, str) else tuple(head or ("",))
    names = [*names]
    trunk = [name for name in names if not name.startswith(heads)]
    depths = {name: place // _PER_DEPTH for place, name in enumerate(trunk)}
    return {name: depths.get(name, -(-len(trunk) // _PER_DEPTH)) for name in names}
