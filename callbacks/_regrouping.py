"""The division of an optimizer's groups by the names of layers, before another one takes them."""

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from aida_lightning._lightning import MisconfigurationException
from aida_lightning.callbacks._handover import GROUP_RATES
from aida_lightning.callbacks._schedulers import SCHEDULER_RATES, TIMM_RATES, Scheduler, base_rates
from aida_lightning.groups import GroupsLike, LayerGroup, group_layers

# What schedulers keep for each group.
_OF_GROUPS = (
    *(*SCHEDULER_RATES, *TIMM_RATES),
    *("lr_lambdas", "base_momentums", "max_momentums"),
)


def divide_groups(
    optimizer: Optimizer,
    schedulers: list[Scheduler],
    module: nn.Module,
    groups: GroupsLike | None,
    no_decay_1d: bool,
) -> list[LayerGroup]:
    """Divide each group of an optimizer by the names of its layers, and the schedulers' lists.

    Returns:
        The division's part that each of the new groups is in.

    Raises:
        MisconfigurationException: the groups do not fit the module.
    """
    held = {param for group in optimizer.param_groups for param in group["params"]}
    try:
        parts = group_layers(module, groups, no_decay_1d=no_decay_1d, params=held)
    except (TypeError, ValueError) as error:
        raise MisconfigurationException(f"UseOptimizer: {error}") from error
    part_of: dict[Tensor, LayerGroup] = {param: part for part in parts for _, param in part.layers}
    rest = LayerGroup("default", [], {})  # of parameters that the module does not have
    before = optimizer.param_groups[:]
    places, divided, chosen = [], [], []
    for place, group in enumerate(before):
        for part in [rest, *parts]:
            params = [p for p in group["params"] if part_of.get(p, rest) is part]
            if params:
                places.append(place)
                chosen.append(part)
                name = group.get("name", part.name) if part.name == rest.name else part.name
                divided.append({**group, "params": params, "name": name})
    names = [group["name"] for group in divided]
    for place, group in zip(places, divided, strict=True):
        group.pop("param_names", None)
        if names.count(group["name"]) > 1:  # Lightning's LearningRateMonitor wants unique names
            group["name"] += f"/pg{place + 1}"
    optimizer.param_groups[:] = divided
    for scheduler in schedulers:
        for name in _OF_GROUPS:
            values = vars(scheduler).get(name)
            if isinstance(values, list) and len(values) == len(before):
                setattr(scheduler, name, [values[place] for place in places])
    return chosen


def apply_options(
    optimizer: Optimizer, schedulers: list[Scheduler], parts: list[LayerGroup]
) -> None:
    """Give each group the options of its part; a learning rate is the one without the schedule.

    Raises:
        MisconfigurationException: the optimizer lacks an option, or a learning rate cannot be
            scaled, because it is 0.
    """
    rates = base_rates(optimizer, schedulers)
    for place, (group, part) in enumerate(zip(optimizer.param_groups, parts, strict=True)):
        if lacking := [name for name in part.options if name not in optimizer.defaults]:
            raise MisconfigurationException(
                f"UseOptimizer: groups: {part.name!r}: the groups of {type(optimizer).__name__} "
                f"have no option {lacking[0]!r}; their options are: {', '.join(optimizer.defaults)}"
            )
        # It was built with its partition, which it has checked.
        kept = ("lr", "partition")
        group.update({name: value for name, value in part.options.items() if name not in kept})
        if "lr" in part.options and not rates[place]:
            raise MisconfigurationException(
                f"UseOptimizer cannot give the group {part.name!r} the learning rate "
                f"{part.options['lr']}, because the module's rate is 0 and cannot be scaled"
            )
        factor = part.options["lr"] / rates[place] if "lr" in part.options else part.lr_scale
        if factor != 1.0:
            _scale(group, place, schedulers, factor)


def _scale(group: dict[str, Any], place: int, schedulers: list[Scheduler], factor: float) -> None:
    for name in GROUP_RATES:
        if group.get(name) is not None:
            group[name] *= factor
    for scheduler in schedulers:
        for name in (*SCHEDULER_RATES, *TIMM_RATES):
            values = vars(scheduler).get(name)
            if isinstance(values, list):
                values[place] *= factor
