"""The LR schedulers of an optimizer, and how they come to drive another one in its place."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from aida_lightning._lightning import LightningOptimizer, MisconfigurationException

# A scheduler of torch's, or one like timm's, which derive from no class of torch's.
Scheduler: TypeAlias = Any

# The attributes in which torch's schedulers keep learning rates, and those of timm's.
SCHEDULER_RATES = ("base_lrs", "max_lrs", "min_lrs", "default_min_lr", "eta_min", "_last_lr")
TIMM_RATES = ("base_values", "lr_min", "warmup_lr_init", "warmup_steps", "restore_lr")


def bound_to(optimizer: Optimizer, values: Iterable[Any]) -> list[Scheduler]:
    """Collect the schedulers that drive an optimizer, among values and inside schedulers."""
    found: list[Scheduler] = []

    def visit(value: Any) -> None:
        if is_scheduler(value) and drives(value, optimizer) and value not in found:
            found.append(value)
            for leaf in leaves(vars(value)):
                visit(leaf)

    for value in values:
        visit(value)
    return found


def is_scheduler(value: Any) -> bool:
    """Tell whether a value is a scheduler that is known to hold its optimizer and rates."""
    return isinstance(value, LRScheduler) or hasattr(value, "base_values")


def drives(value: Any, optimizer: Optimizer) -> bool:
    """Tell whether a value holds an optimizer as schedulers do."""
    return unwrapped(getattr(value, "optimizer", None)) is optimizer


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer inside a LightningOptimizer, and any other optimizer unchanged."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def base_rates(optimizer: Optimizer, schedulers: Iterable[Scheduler]) -> list[float]:
    """Return the groups' learning rates without the schedule: the base, or a cycle's top."""
    tops = [scheduler.max_lrs for scheduler in schedulers if hasattr(scheduler, "max_lrs")]
    rates = [*zip(*tops, strict=True)] or [
        (group.get("max_lr", group.get("initial_lr", group.get("lr"))),)
        for group in optimizer.param_groups
    ]
    return [max(float(rate or 0.0) for rate in of_group) for of_group in rates]


def leaves(tree: Any) -> Iterator[Any]:
    """Iterate over the values that mappings, lists and tuples hold, at any depth."""
    if isinstance(tree, Mapping):
        tree = [*tree.values()]
    if isinstance(tree, list | tuple):
        for item in tree:
            yield from leaves(item)
    else:
        yield tree


def bind(
    scheduler: Scheduler,
    optimizer: Optimizer,
    old: Optimizer,
    scaled: Callable[[Any], Any] | None,
) -> None:
    """Make a scheduler drive another optimizer."""
    scheduler.optimizer = optimizer
    if getattr(scheduler, "cycle_momentum", False):
        _bind_momentum(scheduler, optimizer, old)
    driven = getattr(scheduler, "param_group_field", "lr")
    if driven not in optimizer.defaults:
        raise MisconfigurationException(
            f"{type(scheduler).__name__} drives the {driven!r} of {type(old).__name__}, which "
            f"{type(optimizer).__name__} does not have"
        )
    if scaled is None or driven != "lr":
        return
    is_torchs = isinstance(scheduler, LRScheduler)
    for name in SCHEDULER_RATES if is_torchs else TIMM_RATES:
        if name in vars(scheduler):
            setattr(scheduler, name, scaled(getattr(scheduler, name)))
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.eps = scaled(scheduler.eps)  # the smallest reduction that it makes
    rule = getattr(type(scheduler), "get_lr" if is_torchs else "_get_lr", None)
    if not getattr(rule, "__module__", "").startswith(("torch.", "timm.")):
        rank_zero_warn(
            f"UseOptimizer scales the `{'base_lrs' if is_torchs else 'base_values'}` of "
            f"{type(scheduler).__name__} by {scaled(1.0):g}; "
            "if it keeps learning rates under other names, they stay unchanged"
        )


def _bind_momentum(scheduler: Any, optimizer: Optimizer, old: Optimizer) -> None:
    """Make a scheduler cycle the momentum of another optimizer, which may call it beta1."""
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
