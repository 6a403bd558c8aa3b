"""The two distributions of Lightning, which only this module distinguishes.

``lightning.pytorch`` and ``pytorch_lightning`` are the same code with different classes. Under the
name of a class, this module has a tuple of the class of each installed distribution. ``isinstance``
accepts the tuple, and a class that names it as its base has all of the classes as bases.
"""

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from inspect import getattr_static, getmembers, isfunction
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from lightning_utilities.core import overrides, rank_zero

if TYPE_CHECKING:
    from lightning.fabric.loggers.tensorboard import TensorBoardLogger as TensorBoardLogger
    from lightning.fabric.utilities.exceptions import (
        MisconfigurationException as MisconfigurationException,
    )
    from lightning.pytorch import Callback as Callback
    from lightning.pytorch import LightningDataModule as LightningDataModule
    from lightning.pytorch import LightningModule as LightningModule
    from lightning.pytorch import Trainer as Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint as ModelCheckpoint
    from lightning.pytorch.callbacks import RichProgressBar as RichProgressBar
    from lightning.pytorch.cli import LightningArgumentParser as LightningArgumentParser
    from lightning.pytorch.cli import LightningCLI as LightningCLI
    from lightning.pytorch.core.optimizer import LightningOptimizer as LightningOptimizer
    from lightning.pytorch.loggers import CometLogger as CometLogger
    from lightning.pytorch.loggers import Logger as Logger
    from lightning.pytorch.loggers import MLFlowLogger as MLFlowLogger
    from lightning.pytorch.loggers import WandbLogger as WandbLogger
    from lightning.pytorch.plugins.io import TorchCheckpointIO as TorchCheckpointIO
    from lightning.pytorch.strategies import DeepSpeedStrategy as DeepSpeedStrategy

# The paths of the classes in a distribution.
_CLASSES = {
    "Callback": "pytorch.Callback",
    "CometLogger": "pytorch.loggers.CometLogger",
    "DeepSpeedStrategy": "pytorch.strategies.DeepSpeedStrategy",
    "LightningArgumentParser": "pytorch.cli.LightningArgumentParser",
    "LightningCLI": "pytorch.cli.LightningCLI",
    "LightningDataModule": "pytorch.LightningDataModule",
    "LightningModule": "pytorch.LightningModule",
    "LightningOptimizer": "pytorch.core.optimizer.LightningOptimizer",
    "Logger": "pytorch.loggers.Logger",
    "MLFlowLogger": "pytorch.loggers.MLFlowLogger",
    "ModelCheckpoint": "pytorch.callbacks.ModelCheckpoint",
    "RichProgressBar": "pytorch.callbacks.RichProgressBar",
    "TensorBoardLogger": "fabric.loggers.tensorboard.TensorBoardLogger",
    "TorchCheckpointIO": "pytorch.plugins.io.TorchCheckpointIO",
    "Trainer": "pytorch.Trainer",
    "WandbLogger": "pytorch.loggers.WandbLogger",
}
_DISTRIBUTIONS = (
    {"pytorch": "lightning.pytorch", "fabric": "lightning.fabric"},
    {"pytorch": "pytorch_lightning", "fabric": "lightning_fabric"},
)


def _import_all() -> list[dict[str, str]]:
    """Import the installed distributions, starting with the one that is already imported.

    The second distribution takes 0.1 s, because it shares the slow dependencies.
    """
    found: list[dict[str, str]] = []
    for names in sorted(_DISTRIBUTIONS, key=lambda names: names["pytorch"] not in sys.modules):
        is_first = not found
        log, category = rank_zero.log, rank_zero.rank_zero_deprecation_category
        try:
            import_module(names["pytorch"])
            found.append(names)
        except ImportError as error:  # It or a dependency is missing, so nobody has its classes.
            reason = error
        if not is_first and rank_zero.log is not log:
            # Both would send their messages to the logger of the one imported last. Keep the first
            # one's logger, and let a user who silences either logger silence both.
            log.addFilter(_is_enabled_for(rank_zero.log))
            rank_zero.log, rank_zero.rank_zero_deprecation_category = log, category
    if not found:
        raise ModuleNotFoundError(
            "The callbacks, modules and command line of aida_lightning need Lightning: "
            "`pip install lightning` or `pip install pytorch-lightning`",
            name="lightning",
        ) from reason
    return found


def _is_enabled_for(log: logging.Logger) -> Callable[[logging.LogRecord], bool]:
    return lambda record: log.isEnabledFor(record.levelno)


_installed = _import_all()


class Classes(tuple[Any, ...]):
    """The classes of one name, one per distribution; a class with this base has all as bases."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self[0], name)

    def __or__(self, other: Any) -> "Classes":
        return Classes((*self, other))

    def __ror__(self, other: Any) -> "Classes":
        return Classes((other, *self))

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        is_hooked = self in (find("pytorch.LightningModule"), find("pytorch.LightningDataModule"))
        return (_FollowsTrainer, *self) if is_hooked and len(self) > 1 else tuple(self)


class _FollowsTrainer:
    """Give a module the inherited methods of its Trainer's distribution.

    Lightning compares the methods' code to find out which are overridden.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "trainer" and value is not None:
            follow(self, package_of(value.__class__))  # A weak reference has its object's class.

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        make, args, state, *rest = reduced
        own = {name: value for name, value in state.items() if not _is_followed(value)}
        return make, args, own, *rest  # A copy has another Trainer.


def find(path: str) -> Classes:
    """Return the class, or the function, of each distribution.

    Args:
        path: path of the class, starting with "pytorch" or "fabric".

    Example:
        >>> [cls.__name__ for cls in find("pytorch.Callback")][:1]
        ['Callback']
    """
    part, _, name = path.partition(".")
    return Classes(resolve_name(f"{names[part]}.{name}") for names in _installed)


def find_in(package: str, path: str) -> Any:
    """Return the class, or the function, of the distribution of a package.

    Args:
        package: "lightning.pytorch" or "pytorch_lightning".
        path: path as in :func:`find`.
    """
    return dict(zip(packages(), find(path), strict=True))[package]


def packages() -> list[str]:
    """Return the names of the installed packages, the preferred one first."""
    return [names["pytorch"] for names in _installed]


def package_of(*classes: Any) -> str:
    """Return the package of the first class that derives from exactly one package.

    If there is no such class, return the preferred package.

    Args:
        classes: classes or their paths; a path that leads nowhere is skipped.

    Example:
        >>> import lightning.pytorch
        >>> package_of(None, lightning.pytorch.Trainer)
        'lightning.pytorch'
    """
    for cls in classes:
        if isinstance(cls, str):
            with suppress(ImportError, AttributeError, ValueError):
                cls = resolve_name(cls)
        if len(found := _origins(cls)) == 1:
            return found.pop()
    return packages()[0]


def fits(cls: Any, package: str) -> bool:
    """Tell whether a class derives from a package, if it derives from any."""
    found = _origins(cls)
    return package in found or not found


def loggers() -> list[logging.Logger]:
    """Return the loggers of all distributions."""
    return [logging.getLogger(name) for names in _installed for name in names.values()]


def is_overridden(method: str, module: Any) -> bool:
    """Tell whether a LightningModule overrides a method."""
    bases = [cls for cls in find("pytorch.LightningModule") if isinstance(module, cls)]
    return all(overrides.is_overridden(method, module, base) for base in bases)


def follow(instance: Any, package: str) -> None:
    """Give an instance the methods of one distribution, of those that it inherits from Lightning.

    Methods that its own class, or another base, overrides stay.
    """
    bases = type(instance).__mro__
    ours = next(base for base in bases if _origin(base) == package)
    others = [base for base in bases if _origin(base) not in (None, package)]
    for name, method in getmembers(ours, isfunction):
        current = getattr_static(instance, name)
        current = getattr(current, "__func__", current)
        if current is not method and any(current is getattr(base, name, None) for base in others):
            vars(instance)[name] = getattr_static(ours, name).__get__(instance)


def _is_followed(value: Any) -> bool:
    function = getattr(value, "__func__", value)
    return isfunction(function) and _origin(function) is not None


def _origins(cls: Any) -> set[str]:
    """Return the packages that a class derives from; none for anything else."""
    return {origin for base in getattr(cls, "__mro__", ()) if (origin := _origin(base))}


def _origin(cls: Any) -> str | None:
    """Return the package of the distribution that defines a class or a function."""
    root = str(cls.__module__).partition(".")[0]
    for names in _installed:
        if root in [name.partition(".")[0] for name in names.values()]:
            return names["pytorch"]
    return None


if not TYPE_CHECKING:

    class MisconfigurationException(find("fabric.utilities.exceptions.MisconfigurationException")):
        """The error that both distributions raise under this name."""


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return globals().setdefault(name, find(_CLASSES[name]))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
