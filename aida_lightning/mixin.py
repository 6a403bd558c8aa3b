"""A mixin that writes a LightningModule's ``configure_optimizers`` from its attributes."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.optim import Optimizer, lr_scheduler

from aida_lightning.registry import OptimizerLike, build_optimizer

SCHEDULERS = sorted(name for name in lr_scheduler.__all__ if name != "LRScheduler")


class OptimizerMixin:
    """Configure the optimizer and the LR scheduler that a LightningModule declares.

    Set the attributes on the class or in ``__init__``. Names are resolved when the Trainer asks for
    the optimizer, so a module that is built or sharded in ``configure_model`` is optimized in its
    final form.

    Attributes:
        optimizer: name such as ``"aida"`` (``list_optimizers`` returns all names), an optimizer
            class or its import path, or a callable that takes the parameters and the options.
        optimizer_options: options that ``build_optimizer`` accepts; None for the defaults.
        lr_scheduler: name of a class in ``torch.optim.lr_scheduler``, in any case, such a class, or
            a callable that takes the optimizer and the options; None for a constant learning rate.
        lr_scheduler_options: options of the scheduler; None for its defaults.
        lr_scheduler_config: other keys of Lightning's scheduler configuration, such as
            ``{"interval": "step", "monitor": "val_loss"}``; None for Lightning's defaults.

    Raises:
        ValueError: a name is unknown, or ReduceLROnPlateau has no metric to monitor.
        TypeError: the optimizer lacks an option.

    Example:
        >>> import lightning.pytorch as pl
        >>> import torch
        >>> class Classifier(OptimizerMixin, pl.LightningModule):
        ...     optimizer = "aida"
        ...     optimizer_options = {"lr": 1e-3, "k": 1}
        ...     lr_scheduler = "MultiStepLR"
        ...     lr_scheduler_options = {"milestones": [150]}
        ...
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(3, 2)
        >>> type(Classifier().configure_optimizers()["optimizer"]).__name__
        'Aida'
    """

    optimizer: OptimizerLike = "aida"
    optimizer_options: Mapping[str, Any] | None = None
    lr_scheduler: str | Callable[..., Any] | None = None
    lr_scheduler_options: Mapping[str, Any] | None = None
    lr_scheduler_config: Mapping[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        owner = next(base for base in cls.__mro__ if "configure_optimizers" in vars(base))
        if owner.__name__ == "LightningModule":
            raise TypeError(
                f"{cls.__name__} must list OptimizerMixin before LightningModule in its bases; "
                "otherwise, LightningModule's configure_optimizers hides the mixin's"
            )

    def configure_optimizers(self) -> Any:
        """Build the declared optimizer and scheduler, in the form that Lightning expects."""
        if not isinstance(self, nn.Module):
            raise TypeError(f"OptimizerMixin needs a LightningModule as base, got {type(self)}")
        optimizer = build_optimizer(
            _declared(self, "optimizer"), self, **(self.optimizer_options or {})
        )
        scheduler = _declared(self, "lr_scheduler")
        if scheduler is None:
            return optimizer
        options: Mapping[str, Any] = self.lr_scheduler_options or MappingProxyType({})
        built = _build_scheduler(scheduler, optimizer, options)
        config = {"scheduler": built, **(self.lr_scheduler_config or {})}
        if isinstance(built, lr_scheduler.ReduceLROnPlateau) and "monitor" not in config:
            raise ValueError(
                "ReduceLROnPlateau needs lr_scheduler_config={'monitor': …} with the name of a "
                f"metric that {type(self).__name__} logs"
            )
        return {"optimizer": optimizer, "lr_scheduler": config}


def _declared(module: nn.Module, name: str) -> Any:
    value = getattr(module, name)
    # A plain function on the class has become a method of the module.
    is_bound = getattr(value, "__self__", None) is module and name not in vars(module)
    return value.__func__ if is_bound else value


def scheduler_class(name: str) -> type:
    """Look up one of torch's LR schedulers by its name, in any case."""
    for known in SCHEDULERS:
        if known.lower() == name.lower():
            return getattr(lr_scheduler, known)  # type: ignore[no-any-return]
    nearest = ", ".join(get_close_matches(name, SCHEDULERS, cutoff=0.0))
    raise ValueError(f"Unknown LR scheduler {name!r}, did you mean: {nearest}?")


def _build_scheduler(
    scheduler: str | Callable[..., Any], optimizer: Optimizer, options: Mapping[str, Any]
) -> Any:
    if isinstance(scheduler, str):
        scheduler = scheduler_class(scheduler)
    assert callable(scheduler)
    return scheduler(optimizer, **options)
