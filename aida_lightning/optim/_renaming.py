"""States of a checkpoint with other groups, which go to the layers of the same names."""

import gc
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# What torch's schedulers and timm's keep for each group: what is in the group, too, and the rest.
_BASES = ("base_lrs", "base_values")
_OF_GROUPS = ("max_lrs", "min_lrs", "base_momentums", "max_momentums", "warmup_steps")
_ADVICE = (
    "resume with the groups of the checkpoint, or load only the weights, as with `load_state_dict` "
    "of the module"
)


def by_name(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict in the optimizer's groups, if both have names and their groups differ.

    A group keeps its saved options if the checkpoint has a group of the same name, of the same
    layers or, without names and if the number of groups is the same, at the same place. Any other
    group has the options that the optimizer was built with, and its learning rate is as far in the
    schedule as the saved ones.

    Raises:
        ValueError: the groups differ, and there are no names by which to match them.

    Warns:
        UserWarning: the groups differ; the message says what happens to which layers.
    """
    groups, saved = optimizer.param_groups, state_dict["param_groups"]
    here, there = _names(groups), _names(saved)
    # torch's distributed checkpoints have placed the states by name, but mix the groups' options.
    placed = (
        not there and any("param_names" in g for g in saved) and _sizes(groups) == _sizes(saved)
    )
    keys = {
        name: key
        for names, group in zip(here if placed else there, saved, strict=False)  # if any
        for name, key in zip(names, group["params"], strict=True)
    }
    ours = [name for names in here for name in names]
    if here and here == there:
        return state_dict
    if keys.keys().isdisjoint(ours):
        check_places(optimizer, state_dict)
        return state_dict
    places = [_place(group, names, groups, saved, there) for group, names in _pairs(groups, here)]
    home = {name: place for place, names in enumerate(there) for name in names}
    fitted = []
    for place, (group, names) in zip(places, _pairs(groups, here), strict=True):
        params = [keys.get(name, ("afresh", name)) for name in names]
        before = [saved[home[name]] for name in names if name in home]
        options = _as_far(group, before or saved) if place is None else saved[place]
        own = {key: group[key] for key in ("name",) if key in group}
        fitted.append({**options, **own, "params": params, "param_names": names})
    gone = {keys[name] for name in keys.keys() - {*ours}}
    _tell(
        {
            "Layers in another group": [
                name
                for place, names in zip(places, here, strict=True)
                for name in names
                if name in home and home[name] != place
            ],
            "Layers that start afresh": [name for name in ours if name not in keys],
            "Layers whose states are dropped": [
                name for name, key in keys.items() if key in gone and state_dict["state"].get(key)
            ],
        }
    )
    _settle_schedulers(optimizer, places, len(saved))
    state = {key: value for key, value in state_dict["state"].items() if key not in gone}
    return {**state_dict, "state": state, "param_groups": fitted}


def check_places(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Refuse a state dict that torch would load by places into groups that differ.

    Raises:
        ValueError: the number, the names or the sizes of the groups differ.
    """
    saved, groups = state_dict["param_groups"], optimizer.param_groups
    shown = [[_shown(group) for group in of] for of in (saved, groups)]
    same = _sizes(saved) == _sizes(groups) and all(
        a["name"] == b["name"]
        for a, b in zip(saved, groups, strict=True)
        if "name" in a and "name" in b
    )
    if not same:
        why = (
            "loaded state dict has a different number of parameter groups"
            if len(saved) != len(groups)
            else "loaded state dict contains a parameter group that doesn't match the optimizer's"
        )
        raise ValueError(
            f"{why}: it has {', '.join(shown[0])}, the optimizer has {', '.join(shown[1])}, and "
            f"there are no common names of layers by which to match them; {_ADVICE}"
        )


def _shown(group: Mapping[str, Any]) -> str:
    return f"{group.get('name', 'a group')!r} of {len(group['params'])}"


def _sizes(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


def _names(groups: list[dict[str, Any]]) -> list[list[str]]:
    """Return the names in each group, or nothing if one lacks its name or two are equal."""
    names = [list(group.get("param_names") or ()) for group in groups]
    complete = all(len(a) == len(b["params"]) for a, b in zip(names, groups, strict=True))
    every = [name for of_group in names for name in of_group]
    return names if complete and len({*every}) == len(every) else []


def _pairs(
    groups: list[dict[str, Any]], names: list[list[str]]
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    return zip(groups, names, strict=True)


def _place(
    group: dict[str, Any],
    names: list[str],
    groups: list[dict[str, Any]],
    saved: list[dict[str, Any]],
    there: list[list[str]],
) -> int | None:
    """Return the place of the saved group that is this group's counterpart, or None."""
    for place, other in enumerate(saved):
        if "name" in group and group["name"] == other.get("name"):
            return place
    for place, others in enumerate(there):
        if {*others} == {*names}:
            return place
    place = next(i for i, g in enumerate(groups) if g is group)
    unnamed = "name" not in group and len(saved) == len(groups) and "name" not in saved[place]
    return place if unnamed and len(saved[place]) > 1 else None


def _as_far(group: dict[str, Any], saved: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a new group's options, with a learning rate as far in the schedule as a saved one."""
    options = dict(group)
    for other in saved:
        options |= {key: other[key] for key in ("optimizer",) if key in other}
        if other.get("initial_lr") and "initial_lr" in group:
            options["lr"] = group["initial_lr"] * (other["lr"] / other["initial_lr"])
            break
    return options


def _tell(changes: Mapping[str, list[str]]) -> None:
    if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
        return
    told = [
        f" {what}: {', '.join(names[:5])}" + (f" and {len(names) - 5} more." if names[5:] else ".")
        for what, names in changes.items()
        if names
    ]
    warnings.warn(
        "The checkpoint's parameter groups differ from the optimizer's, so each state goes to the "
        "layer of the same name, and a new group has the options of the code." + "".join(told),
        stacklevel=5,
    )


def _settle_schedulers(optimizer: Optimizer, places: list[int | None], count: int) -> None:
    """Bring the schedulers into the optimizer's groups, before its next step.

    Lightning loads their states after the optimizer's, with lists of the saved groups' rates.
    """
    settled = False

    def settle(*_: Any) -> None:
        nonlocal settled
        if not settled and not torch.compiler.is_compiling():
            # An optimizer does not know its schedulers, which may be inside of others.
            for found in gc.get_objects():
                kind = type(found)  # isinstance would load modules that wait for their first use
                is_timms = str(kind.__module__).startswith("timm.scheduler")
                if issubclass(kind, LRScheduler) or is_timms:
                    if vars(found).get("optimizer") is optimizer:
                        _settle(found, optimizer, places, count)
            settled = True

    optimizer.register_step_pre_hook(settle)


def _settle(scheduler: Any, optimizer: Optimizer, places: list[int | None], count: int) -> None:
    groups = optimizer.param_groups
    for name in _BASES:
        if name in vars(scheduler):
            setattr(scheduler, name, [group.get("initial_lr", group["lr"]) for group in groups])
    for name in _OF_GROUPS:
        values = vars(scheduler).get(name)
        if not isinstance(values, list) or len(values) != count:
            continue  # its state was not loaded
        if None in places and len({*values}) > 1:
            raise RuntimeError(
                f"{type(scheduler).__name__} cannot resume with other groups: its saved {name} are "
                f"{values}, and not all of the optimizer's {len(groups)} groups are among them; "
                f"{_ADVICE}"
            )
        setattr(scheduler, name, [values[place or 0] for place in places])
