"""Parameter groups by the names of layers: ``groups={"*.bias": {"weight_decay": 0.0}}``."""

from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from inspect import signature
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from aida_lightning._layers import depths_below_the_top, layer_name

GroupsLike: TypeAlias = str | Mapping[str, Mapping[str, Any]]

# The name of the group of all layers that no pattern takes, and what marks its 1-d tensors.
_REST, _ONE_D = "default", "/1d"
_FORMS = (
    "'no_decay_1d', 'layer_decay:FACTOR' with a FACTOR in (0, 1], such as 'layer_decay:0.75', or a "
    "mapping from patterns of layers' names to options, such as {'*.bias': {'weight_decay': 0.0}}"
)


class LayerGroup(NamedTuple):
    """Layers that have the same options.

    Args:
        name: pattern of the layers' names, and what distinguishes groups of one pattern.
        layers: names and parameters, in the order of the module.
        options: options of these layers alone.
        lr_scale: factor of the learning rate.
    """

    name: str
    layers: list[tuple[str, nn.Parameter]]
    options: dict[str, Any]
    lr_scale: float = 1.0


def group_layers(
    module: nn.Module,
    groups: GroupsLike | None = None,
    *,
    no_decay_1d: bool = False,
    params: Collection[Tensor] | None = None,
) -> list[LayerGroup]:
    """Divide a module's parameters into groups by their names.

    The first pattern that matches a name takes the layer. A parameter that several layers share has
    several names and is in one group. Layers that no pattern matches form the group "default",
    which comes first.

    Args:
        module: module whose parameters are divided.
        groups: mapping from glob to options, or a preset, as for ``build_optimizer``.
        no_decay_1d: whether tensors with fewer than 2 dimensions form groups of their own, without
            weight decay, except where a pattern's options set it.
        params: parameters to divide; None for all that require a gradient.

    Raises:
        ValueError: a pattern matches no layer, a preset is unknown or does not suit the module, or
            the number of a layer's dimensions is needed but not known yet.
        TypeError: the groups or a pattern's options are of a wrong type.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        >>> for group in group_layers(net, {"1.*": {"lr": 1e-4}}):
        ...     print(group.name, [name for name, _ in group.layers], group.options)
        default ['0.weight', '0.bias'] {}
        1.* ['1.weight', '1.bias'] {'lr': 0.0001}
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, param in module.named_parameters(remove_duplicate=False):
        names.setdefault(param, []).append(layer_name(name))
    chosen = {*(p for p in names if p.requires_grad)} if params is None else {*params}
    layers = {param: of_param for param, of_param in names.items() if param in chosen}
    no_decay_1d |= groups == "no_decay_1d"
    if isinstance(groups, str) and groups != "no_decay_1d":
        divided = _by_depth(module, layers, _decay_of(groups))
    else:
        frozen = [name for param in names if param not in layers for name in names[param]]
        divided = _by_pattern(layers, frozen, patterns_of(groups))
    divided = [*chain(*map(_without_decay_1d, divided))] if no_decay_1d else divided
    return [group for group in divided if group.layers]


def params_of(
    divided: Iterable[LayerGroup],
    options: Mapping[str, Any],
    factory: Callable[..., Any],
    *,
    named: bool,
) -> list[dict[str, Any]]:
    """Return groups in torch's form, with the learning rates that depth scales.

    Args:
        divided: groups of layers.
        options: options of the optimizer, of which a scaled group needs ``lr``.
        factory: class or callable whose default holds if the options have no ``lr``.
        named: whether to give the optimizer the layers' names.

    Raises:
        ValueError: there is no learning rate to scale.
    """
    groups = []
    for group in divided:
        own = dict(group.options)
        if group.lr_scale != 1.0:
            default = signature(factory).parameters.get("lr")
            lr = options.get("lr", default.default if default else None)
            if not isinstance(lr, float | int | Tensor):
                raise ValueError(f"groups: 'layer_decay' needs a number to scale, got lr={lr!r}")
            own["lr"] = lr * group.lr_scale
        params = group.layers if named else [param for _, param in group.layers]
        groups.append({"params": list(params), "name": group.name, **own})
    return groups


def patterns_of(groups: GroupsLike | None) -> dict[str, dict[str, Any]]:
    """Return the options of each pattern, none for a preset, after a check of their form.

    Raises:
        ValueError: a preset is unknown, or the options of a pattern have the key "params".
        TypeError: the groups or a pattern's options are of a wrong type.

    Example:
        >>> patterns_of({"*.bias": {"weight_decay": 0.0}})
        {'*.bias': {'weight_decay': 0.0}}
    """
    if groups is None or groups == "no_decay_1d":
        return {}
    if isinstance(groups, str):
        _decay_of(groups)
        return {}
    if not isinstance(groups, Mapping):
        raise TypeError(f"Invalid groups: {groups!r}, they must be {_FORMS}")
    for pattern, options in groups.items():
        if not isinstance(pattern, str):
            raise TypeError(f"groups: the pattern {pattern!r} must be text, such as '*.bias'")
        if not isinstance(options, Mapping):
            raise TypeError(
                f"groups: {pattern!r} must have a mapping of options, such as {{'lr': 1e-4}}, got "
                f"{options!r}"
            )
        if "params" in options:
            raise ValueError(
                f"groups: {pattern!r} has the option 'params', but the pattern alone chooses the "
                "parameters"
            )
    return {pattern: dict(options) for pattern, options in groups.items()}


def _by_pattern(
    layers: Mapping[nn.Parameter, list[str]],
    frozen: list[str],
    patterns: Mapping[str, dict[str, Any]],
) -> list[LayerGroup]:
    left = dict(layers)
    divided = []
    for pattern, options in patterns.items():
        taken = {p: names for p, names in left.items() if _matching(names, pattern)}
        if not taken:
            raise ValueError(_why_none(pattern, layers, frozen))
        left = {p: names for p, names in left.items() if p not in taken}
        divided.append(LayerGroup(pattern, _named(taken), options))
    # A pattern may be the name of a layer, and the names of groups are unique.
    rest = "*" if _REST in patterns else _REST
    return [LayerGroup(rest, _named(left), {}), *divided]


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return [name for name in names if fnmatchcase(name, pattern)]


def _named(layers: Mapping[nn.Parameter, list[str]]) -> list[tuple[str, nn.Parameter]]:
    return [(names[0], param) for param, names in layers.items()]


def _why_none(pattern: str, layers: Mapping[nn.Parameter, list[str]], frozen: Iterable[str]) -> str:
    trained = [name for names in layers.values() for name in names]
    if found := _matching(trained, pattern):
        return (
            f"groups: {pattern!r} matches only layers that an earlier pattern took: "
            f"{_listed(found)}; the first match wins, so put the narrower pattern first"
        )
    if found := _matching(frozen, pattern):
        return (
            f"groups: {pattern!r} matches only layers that are not trained: {_listed(found)}; "
            "leave the pattern out, or set requires_grad before the optimizer is built"
        )
    nearest = get_close_matches(pattern, trained, n=3, cutoff=0.0)
    return (
        f"groups: {pattern!r} matches no layer; the nearest names are: {', '.join(nearest)}. A "
        "pattern matches a whole name, as in 'backbone.*' or '*.bias'"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _without_decay_1d(group: LayerGroup) -> list[LayerGroup]:
    """Split a group's 1-d tensors off, if its options do not set the weight decay."""
    if "weight_decay" in group.options:
        return [group]
    if lazy := [name for name, param in group.layers if is_lazy(param)]:
        raise ValueError(
            f"no_decay_1d=True needs the number of dimensions of each layer, but {lazy} are not "
            "initialized yet; run a batch through the module first"
        )
    decayed = [layer for layer in group.layers if layer[1].ndim >= 2]
    exempt = [layer for layer in group.layers if layer[1].ndim < 2]
    options = {**group.options, "weight_decay": 0.0}
    return [
        group._replace(layers=decayed),
        group._replace(name=f"{group.name}{_ONE_D}", layers=exempt, options=options),
    ]


def _decay_of(preset: str) -> float:
    """Return the factor per depth in ``layer_decay:FACTOR``."""
    name, _, text = preset.partition(":")
    try:
        decay = float(text) if name == "layer_decay" else 0.0
    except ValueError:
        decay = 0.0
    if not 0.0 < decay <= 1.0:  # which refuses NaN, too
        raise ValueError(f"Invalid groups: {preset!r}, they must be {_FORMS}")
    return decay


def _by_depth(
    module: nn.Module, layers: Mapping[nn.Parameter, list[str]], decay: float
) -> list[LayerGroup]:
    """Group layers by depth, as timm's ``param_groups_layer_decay`` does.

    timm's groups have the factor as ``lr_scale``, which only its own schedulers apply. These groups
    have a scaled ``lr`` instead: with both, those schedulers would scale the rate twice.
    """
    below = depths_below_the_top(module)
    top = max(below.values(), default=0)
    if not top and decay != 1.0:
        raise ValueError(
            f"groups: 'layer_decay:{decay:g}' needs the depth of each layer, but "
            f"{type(module).__name__} has no model with a `group_matcher`, as timm's have, or with "
            "a `pretrained_cfg` that names its classifier; give patterns such as "
            "{'backbone.*': {'lr': 1e-4}} instead"
        )
    depths: dict[int, dict[nn.Parameter, list[str]]] = {}
    for param, names in layers.items():
        depths.setdefault(top - below.get(param, 0), {})[param] = names
    return [
        LayerGroup(f"depth_{depth}", _named(found), {}, decay ** (top - depth))
        for depth, found in sorted(depths.items())
    ]
