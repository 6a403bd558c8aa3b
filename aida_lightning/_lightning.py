"""The two distributions of Lightning, which this module alone knows apart.

``lightning.pytorch`` and ``pytorch_lightning`` are the same code with classes of their own. Under
the name of a class there is a tuple here, of the class of each distribution that is installed:
``isinstance`` takes it as it is, and a class that names it as its base has all of them as bases.
"""

import logging
import sys
from collections.abc import Callable
from importlib import import_module
from inspect import getmembers_static, isfunction
from pkgutil import resolve_name
from types import MethodType
from typing import TYPE_CHECKING, Any

from lightning_utilities.core import rank_zero

if TYPE_CHECKING:
    from lightning.fabric.loggers.tensorboard import TensorBoardLogger as TensorBoardLogger
    from lightning.fabric.utilities.exceptions import (
        MisconfigurationException as MisconfigurationException,
    )
    from lightning.pytorch import Callback as Callback
    from lightning.pytorch import LightningDataModule as LightningDataModule
    from lightning.pytorch import LightningModule as LightningModule
    from lightning.pytorch import Trainer as Trainer
    from lightning.pytorch.cli import LightningArgumentParser as LightningArgumentParser
    from lightning.pytorch.cli import LightningCLI as LightningCLI
    from lightning.pytorch.core.optimizer import LightningOptimizer as LightningOptimizer
    from lightning.pytorch.loggers import Logger as Logger
    from lightning.pytorch.plugins.io import TorchCheckpointIO as TorchCheckpointIO
    from lightning.pytorch.strategies import DeepSpeedStrategy as DeepSpeedStrategy

# Where in a distribution the classes are.
_CLASSES = {
    "Callback": "pytorch.Callback",
    "DeepSpeedStrategy": "pytorch.strategies.DeepSpeedStrategy",
    "LightningArgumentParser": "pytorch.cli.LightningArgumentParser",
    "LightningCLI": "pytorch.cli.LightningCLI",
    "LightningDataModule": "pytorch.LightningDataModule",
    "LightningModule": "pytorch.LightningModule",
    "LightningOptimizer": "pytorch.core.optimizer.LightningOptimizer",
    "Logger": "pytorch.loggers.Logger",
    "TensorBoardLogger": "fabric.loggers.tensorboard.TensorBoardLogger",
    "TorchCheckpointIO": "pytorch.plugins.io.TorchCheckpointIO",
    "Trainer": "pytorch.Trainer",
}
_DISTRIBUTIONS = (
    {"pytorch": "lightning.pytorch", "fabric": "lightning.fabric"},
    {"pytorch": "pytorch_lightning", "fabric": "lightning_fabric"},
)


def _import_all() -> list[dict[str, str]]:
    """Import what is installed, first what the program has imported before.

    The second distribution takes 0.1 s, for it shares what is slow.
    """
    found: list[dict[str, str]] = []
    for names in sorted(_DISTRIBUTIONS, key=lambda names: names["pytorch"] not in sys.modules):
        log, category = rank_zero.log, rank_zero.rank_zero_deprecation_category
        try:
            import_module(names["pytorch"])
        except ModuleNotFoundError as error:
            if error.name not in (names["pytorch"], names["pytorch"].partition(".")[0]):
                raise
            continue
        if found and rank_zero.log is not log:
            # Both send their messages to the logger of the one that was imported last. It stays the
            # first one's, and whoever silences either logger silences both.
            log.addFilter(_is_enabled_for(rank_zero.log))
            rank_zero.log, rank_zero.rank_zero_deprecation_category = log, category
        found.append(names)
    if not found:
        raise ModuleNotFoundError(
            "the callbacks, modules and command line of aida_lightning need Lightning: "
            "`pip install lightning` or `pip install pytorch-lightning`",
            name="lightning",
        )
    return found


def _is_enabled_for(log: logging.Logger) -> Callable[[logging.LogRecord], bool]:
    return lambda record: log.isEnabledFor(record.levelno)


_installed = _import_all()


class Classes(tuple[Any, ...]):
    """The classes of one name, one of each distribution; as a base of a class, all of them."""

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
    """Have the methods that a module inherits be those of its Trainer's distribution.

    Lightning finds out by their code which are overridden.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "trainer" and value is not None:
            _turn(self, package_of(value.__class__))


def find(path: str) -> Classes:
    """Return the class, or the function, of each distribution.

    Args:
        path: where it is, from "pytorch" or "fabric" on.

    Example:
        >>> [cls.__name__ for cls in find("pytorch.Callback")][:1]
        ['Callback']
    """
    part, _, name = path.partition(".")
    return Classes(resolve_name(f"{names[part]}.{name}") for names in _installed)


def package_of(*classes: Any) -> str:
    """Return the name of the package that the first of some classes derives from, and no other.

    Without one it is that of the distribution that comes first.

    Example:
        >>> import lightning.pytorch
        >>> package_of(None, lightning.pytorch.Trainer)
        'lightning.pytorch'
    """
    installed = [names["pytorch"] for names in _installed]
    for cls in classes:
        roots = {base.__module__.partition(".")[0] for base in getattr(cls, "__mro__", ())}
        found = [name for name in installed if name.partition(".")[0] in roots]
        if len(found) == 1:
            return found[0]
    return installed[0]


def is_overridden(method: str, module: Any) -> bool:
    """Tell whether a LightningModule has a method of its own, as its distribution tells it."""
    helpers = import_module(f"{package_of(type(module))}.utilities.model_helpers")
    return bool(helpers.is_overridden(method, module))


def _turn(module: Any, package: str) -> None:
    ours = next(cls for cls in type(module).__mro__ if cls.__module__.startswith(f"{package}."))
    others = [
        cls
        for cls in (*find("pytorch.LightningModule"), *find("pytorch.LightningDataModule"))
        if isinstance(module, cls) and not issubclass(ours, cls)
    ]
    for name, method in getmembers_static(ours, isfunction):
        current = getattr(getattr(module, name, None), "__func__", method)
        if current is not method and any(current is getattr(cls, name, None) for cls in others):
            vars(module)[name] = MethodType(method, module)


if not TYPE_CHECKING:

    class MisconfigurationException(find("fabric.utilities.exceptions.MisconfigurationException")):
        """What both distributions raise under this name."""


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return globals().setdefault(name, find(_CLASSES[name]))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
