"""Groups and LR schedulers of one optimizer, handed over to another in its place."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from aida_lightning._lightning import MisconfigurationException

# Options that mean the same to every optimizer that has them.
_SHARED = ("lr", "betas", "weight_decay", "maximize")
# The classes that decouple their weight decay; some are not in older torch.
_DECOUPLED = tuple(
    getattr(torch.optim, name)
    for name in ("AdamW", "Adafactor", "Muon")
    if hasattr(torch.optim, name)
)
# Where torch's schedulers keep learning rates: in the optimizer's groups, and in themselves.
_GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_SCHEDULER_RATES = ("base_lrs", "max_lrs", "min_lrs", "default_min_lr", "eta_min", "_last_lr")


def hand_over(
    old: Optimizer, new: Optimizer, schedulers: list[LRScheduler], options: Mapping[str, Any]
) -> None:
    """Give a new optimizer the options of an old one's groups, and have the schedulers drive it.

    Args:
        old: the optimizer to replace.
        new: the one in its place, with the same parameters in the same groups.
        schedulers: those that drive ``old``; see ``bound_to``.
        options: the options that ``new`` was asked to have, which win over those of ``old``.

    Raises:
        MisconfigurationException: there is no learning rate above 0 to scale, or a scheduler
            cycles a momentum that ``new`` lacks.
    """
    scaled = _scaling(old, schedulers, options)
    if schedulers:
        # A scheduler marks the optimizer whose steps it is to follow, and so does this one.
        LambdaLR(new, lambda _: 1.0)
    pairs = [(new.defaults, old.defaults), *zip(new.param_groups, old.param_groups, strict=True)]
    if "weight_decay" not in options:
        _warn_of_other_decay(old, new)
    for ours, theirs in pairs:
        _carry_over(ours, theirs, old, new, options, scaled)
    for scheduler in schedulers:
        _bind(scheduler, new, old, scaled)


def _warn_of_other_decay(old: Optimizer, new: Optimizer) -> None:
    """Warn where a weight decay that is kept is no longer decoupled, or becomes so."""
    decays = any(group.get("weight_decay") for group in old.param_groups)
    if not decays or "weight_decay" not in new.defaults or _has_both_decays(new):
        return
    if _decouples(old) and not _decouples(new):
        rank_zero_warn(
            f"UseOptimizer: {type(new).__name__} has no decoupled weight decay; that of "
            f"{type(old).__name__} is added to the gradient instead"
        )
    elif _decouples(new) and not _decouples(old):
        rank_zero_warn(
            f"UseOptimizer: {type(new).__name__} decouples the weight decay, which "
            f"{type(old).__name__} adds to the gradient; the same number shrinks weights by "
            "other amounts"
        )


def _decouples(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer shrinks the weights apart from the gradient's step."""
    by_class = isinstance(optimizer, _DECOUPLED)
    return by_class or optimizer.defaults.get("decoupled_weight_decay", False)


def _has_both_decays(optimizer: Optimizer) -> bool:
    """Tell whether an option, and not the class, decides if the weight decay is decoupled."""
    return "decoupled_weight_decay" in optimizer.defaults and not isinstance(optimizer, _DECOUPLED)


def bound_to(optimizer: Optimizer, values: Iterable[Any]) -> list[LRScheduler]:
    """Collect the schedulers that drive an optimizer, among values and inside of schedulers."""
    found: list[LRScheduler] = []

    def visit(value: Any) -> None:
        if isinstance(value, LRScheduler) and value.optimizer is optimizer and value not in found:
            found.append(value)
            for leaf in leaves(vars(value)):
                visit(leaf)

    for value in values:
        visit(value)
    return found


def leaves(tree: Any) -> Iterator[Any]:
    """Iterate over what mappings, lists and tuples hold, at any depth."""
    if isinstance(tree, Mapping):
        tree = [*tree.values()]
    if isinstance(tree, list | tuple):
        for item in tree:
            yield from leaves(item)
    else:
        yield tree


def _scaling(
    old: Optimizer, schedulers: list[LRScheduler], options: Mapping[str, Any]
) -> Callable[[Any], Any] | None:
    """Return the function that scales learning rates to the one in the options, None without."""
    if "lr" not in options:
        return None
    rates = [rate for s in schedulers for rate in getattr(s, "max_lrs", [])] or [
        group.get("max_lr", group.get("initial_lr", group["lr"])) for group in old.param_groups
    ]
    lr, highest = float(options["lr"]), max(float(rate or 0.0) for rate in rates)
    if not highest > 0:
        raise MisconfigurationException(
            f"UseOptimizer cannot scale the learning rates {rates} of {type(old).__name__} to "
            f"{lr:g}: none is above 0"
        )

    def scaled(rate: Any) -> Any:
        if isinstance(rate, list):
            return [scaled(item) for item in rate]
        # The ratio comes first, so that the highest rate becomes the given one to the last digit.
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
    """Copy to a new group what it keeps of the old one, and scale its rates and its decay."""
    for key, value in theirs.items():
        if key in ("params", "param_names"):
            continue
        # Neither optimizer's, but a scheduler's or the module's.
        own = key not in old.defaults and key not in new.defaults
        if own or (key in _SHARED and key in new.defaults and key not in options):
            ours[key] = value
    highest = max(group.get("weight_decay", 0.0) for group in old.param_groups)
    if _has_both_decays(new) and highest and "decoupled_weight_decay" not in options:
        ours["decoupled_weight_decay"] = theirs.get("decoupled_weight_decay", _decouples(old))
    if "weight_decay" in options and highest:
        ours["weight_decay"] = options["weight_decay"] * (theirs.get("weight_decay", 0.0) / highest)
    if scaled is not None:
        for key in _GROUP_RATES:
            if key in theirs:
                ours[key] = scaled(theirs[key])
        if isinstance(options["lr"], Tensor):
            ours["lr"] = torch.full_like(options["lr"], float(ours["lr"]))


def _bind(
    scheduler: LRScheduler,
    optimizer: Optimizer,
    old: Optimizer,
    scaled: Callable[[Any], Any] | None,
) -> None:
    """Have a scheduler go on with another optimizer."""
    scheduler.optimizer = optimizer
    if getattr(scheduler, "cycle_momentum", False):
        _bind_momentum(scheduler, optimizer, old)
    if scaled is None:
        return
    for name in _SCHEDULER_RATES:
        if name in vars(scheduler):
            setattr(scheduler, name, scaled(getattr(scheduler, name)))
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.eps = scaled(scheduler.eps)  # the least reduction that it makes
    if not type(scheduler).get_lr.__module__.startswith("torch."):
        rank_zero_warn(
            f"UseOptimizer scales the `base_lrs` of {type(scheduler).__name__} by {scaled(1.0):g}; "
            "if it keeps learning rates of other names, they stay as they are"
        )


def _bind_momentum(scheduler: Any, optimizer: Optimizer, old: Optimizer) -> None:
    """Have a scheduler cycle the momentum of another optimizer, which may call it beta1."""
    if "betas" not in optimizer.defaults and "momentum" not in optimizer.defaults:
        raise MisconfigurationException(
            f"{type(scheduler).__name__} cycles a momentum, which {type(optimizer).__name__} does "
            "not have; pass cycle_momentum=False to the scheduler"
        )
    used_beta1, scheduler.use_beta1 = scheduler.use_beta1, "betas" in optimizer.defaults
    for ours, theirs in zip(optimizer.param_groups, old.param_groups, strict=True):
        momentum = theirs["betas"][0] if used_beta1 else theirs["momentum"]
        if scheduler.use_beta1:
            ours["betas"] = (momentum, *ours["betas"][1:])
        else:
            ours["momentum"] = momentum
