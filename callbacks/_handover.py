"""The handover of one optimizer's groups and LR schedulers to the one that replaces it."""

from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from aida_lightning._lightning import MisconfigurationException
from aida_lightning.callbacks._schedulers import Scheduler, base_rates, bind

# Options that mean the same to every optimizer that has them.
_SHARED = ("lr", "betas", "weight_decay", "maximize")
# Options that choose how a step is computed, without changing its result.
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
# What marks a weight decay as decoupled: an option, as torch, pytorch_optimizer, timm and apex name
# it, or, without one, the name of the class.
_DECOUPLING = ("decoupled_weight_decay", "weight_decouple", "decoupled_decay", "adam_w_mode")
_DECOUPLED = ("AdamW", "Adafactor", "Lion", "Muon")
# Where schedulers keep learning rates in an optimizer's groups.
GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")


def hand_over(
    old: Optimizer, new: Optimizer, schedulers: list[Scheduler], options: Mapping[str, Any]
) -> None:
    """Copy the options of an old optimizer's groups to a new one, and bind the schedulers to it.

    Args:
        old: optimizer to replace.
        new: optimizer that replaces it, with the same parameters in the same groups.
        schedulers: schedulers that drive ``old``; see ``bound_to``.
        options: options requested for ``new``, which take precedence over those of ``old``.

    Raises:
        MisconfigurationException: no learning rate is above 0, so that none can be scaled, or a
            scheduler drives an option, such as a momentum, that ``new`` lacks.
    """
    scaled = _scaling(old, schedulers, options)
    if schedulers:
        # A scheduler marks the optimizer whose steps it follows; this one leaves that mark.
        LambdaLR(new, lambda _: 1.0)
        for group in new.param_groups:
            del group["initial_lr"]  # The kept schedulers' value comes from the old group.
    pairs = [(new.defaults, old.defaults), *zip(new.param_groups, old.param_groups, strict=True)]
    if "weight_decay" not in options:
        _warn_of_other_decay(old, new)
    for ours, theirs in pairs:
        _carry_over(ours, theirs, old, new, options, scaled)
    for scheduler in schedulers:
        bind(scheduler, new, old, scaled)


def dropped_options(
    old: Optimizer, new: Optimizer, schedulers: Iterable[Scheduler]
) -> dict[str, list[Any]]:
    """Map the options of an old optimizer that a new one lacks to their values.

    Options that are off, or have the default of the old optimizer's class, are omitted.
    """
    moved = any(getattr(scheduler, "cycle_momentum", False) for scheduler in schedulers)
    kept = {name for name, value in old.defaults.items() if _has(new, name, value)}
    others = {*kept, *_IMPLEMENTATION, *(("momentum", "betas") if moved else ())}
    others |= {*_DECOUPLING} if _has_both_decays(new) else set()
    found = {
        name: [g[name] for g in old.param_groups if g.get(name) and g[name] != option.default]
        for name, option in signature(type(old)).parameters.items()
        if name in old.defaults and name not in others
    }
    return {name: values for name, values in found.items() if values}


def _has(optimizer: Optimizer, option: str, value: Any) -> bool:
    """Tell whether an optimizer has an option and, for a tuple, as many values in it."""
    default = optimizer.defaults.get(option)
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        return len(default) == len(value)
    return option in optimizer.defaults


def _warn_of_other_decay(old: Optimizer, new: Optimizer) -> None:
    """Warn if the handover changes whether the weight decay is decoupled."""
    decays = any(group.get("weight_decay") for group in old.param_groups)
    if not decays or "weight_decay" not in new.defaults or _has_both_decays(new):
        return
    if _decouples(old) and not _decouples(new):
        rank_zero_warn(
            f"UseOptimizer: {type(new).__name__} has no decoupled weight decay; it adds the weight "
            f"decay of {type(old).__name__} to the gradient instead"
        )
    elif _decouples(new) and not _decouples(old):
        rank_zero_warn(
            f"UseOptimizer: {type(new).__name__} decouples the weight decay, which "
            f"{type(old).__name__} adds to the gradient; the same value shrinks the weights by a "
            "different amount"
        )


def _decouples(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer shrinks the weights apart from the gradient's step."""
    options = [optimizer.defaults[name] for name in _DECOUPLING if name in optimizer.defaults]
    return bool(options[0]) if options else _is_decoupled_by_name(optimizer)


def _is_decoupled_by_name(optimizer: Optimizer) -> bool:
    names = [cls.__name__ for cls in type(optimizer).__mro__]
    return any(known in name for known in _DECOUPLED for name in names)


def _has_both_decays(optimizer: Optimizer) -> bool:
    """Tell whether an option, and not the class, decides if the weight decay is decoupled."""
    return "decoupled_weight_decay" in optimizer.defaults and not _is_decoupled_by_name(optimizer)


def _scaling(
    old: Optimizer, schedulers: list[Scheduler], options: Mapping[str, Any]
) -> Callable[[Any], Any] | None:
    """Return the function that scales learning rates to the one in the options.

    Return None if the options have no learning rate, or if the old optimizer finds its own rates.
    """
    finds_rates = all(group.get("lr") is None for group in old.param_groups)
    if "lr" not in options or finds_rates:
        return None
    rates = base_rates(old, schedulers)
    lr, highest = float(options["lr"]), max(rates)
    if not highest > 0:
        raise MisconfigurationException(
            f"UseOptimizer cannot scale the learning rates {rates} of {type(old).__name__} to "
            f"{lr:g}, because none of them is above 0"
        )

    def scaled(rate: Any) -> Any:
        if isinstance(rate, list):
            return [scaled(item) for item in rate]
        # The ratio comes first, so that the highest rate becomes exactly the given one.
        return None if rate is None else lr * (rate / highest)

    return scaled


def _carry_over(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    old: Optimizer,
    new: Optimizer,
    options: Mapping[str, Any],
    scaled: Callable[[Any], Any] | None,
) -> None:
    """Copy the options that a new group keeps from the old one, and scale its rates and decay."""
    for key, value in theirs.items():
        if key in ("params", "param_names"):
            continue
        # The option is neither optimizer's, but a scheduler's or the module's.
        own = key not in old.defaults and key not in new.defaults
        # A learning rate of None means that the old optimizer finds its own.
        shared = key in _SHARED and value is not None and _has(new, key, value)
        if own or (shared and key not in options):
            ours[key] = value
    highest = max(group.get("weight_decay", 0.0) for group in old.param_groups)
    if _has_both_decays(new) and highest and "decoupled_weight_decay" not in options:
        ours["decoupled_weight_decay"] = theirs.get("decoupled_weight_decay", _decouples(old))
    if "weight_decay" in options and highest:
        ours["weight_decay"] = options["weight_decay"] * (theirs.get("weight_decay", 0.0) / highest)
    if scaled is not None:
        for key in GROUP_RATES:
            if theirs.get(key) is not None:
                ours[key] = scaled(theirs[key])
        if isinstance(options["lr"], Tensor):
            ours["lr"] = torch.full_like(options["lr"], float(ours["lr"]))
