"""The classes that an experiment's file names: what they have to be, and how they are written."""

import hashlib
import inspect
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import import_module
from modulefinder import ModuleFinder
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from aida_lightning.compare.methods import UsageError

_BASES: dict[str, type] = {
    "model": LightningModule,
    "data": LightningDataModule,
    "trainer": Trainer,
    "callbacks": Callback,
}
# Where packages are installed: these have versions, and are not edited between two runs.
_INSTALLED = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]


def check_classes(config: Mapping[str, Any]) -> None:
    """Raise unless what a file names as model, data, trainer and callbacks are classes of these.

    A file could name any function, which would be called while the experiment is loaded. To import
    a class runs its module all the same.

    Args:
        config: what an experiment's file holds, or a part of it.

    Raises:
        UsageError: a class path names something else.
    """
    for key, base in _BASES.items():
        parts = config.get(key)
        for part in parts if isinstance(parts, list) else [parts]:
            path = part.get("class_path") if isinstance(part, Mapping) else part
            if not isinstance(path, str) or "." not in path:
                continue  # a bare name is looked for among the subclasses only
            try:
                named = resolve_name(path)
            except (ImportError, AttributeError, ValueError):
                continue  # the parser says what is wrong
            if not (inspect.isclass(named) and issubclass(named, base)):
                raise UsageError(f"{key}: {path} is no {base.__name__}, which it has to be")


def source_digests(config: Any) -> dict[str, str]:
    """Compute a digest of each file that the classes of an experiment are written in.

    These are the modules of the classes that are named by a ``class_path`` and were not installed
    with a package, and the modules of the same folder that they import, directly or not.

    Args:
        config: what an experiment's file holds, of mappings, lists and plain values.

    Returns:
        A short digest by the module's name.
    """
    digests = {}
    for path in class_paths(config):
        module = _module_of(path)
        if module is None or (root := _own_folder(module)) is None:
            continue
        finder = ModuleFinder([str(root)])
        finder.import_hook(module)
        for name, found in finder.modules.items():
            if file := getattr(found, "__file__", None):
                digests[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    return digests


def class_paths(config: Any) -> Iterator[str]:
    """Yield each ``class_path`` in mappings and lists, at any depth."""
    if isinstance(config, Mapping):
        if isinstance(path := config.get("class_path"), str):
            yield path
        for value in config.values():
            yield from class_paths(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from class_paths(value)


def _module_of(path: str) -> str | None:
    """Return the module in a class path, the longest part of it that can be imported."""
    module = path.rpartition(".")[0]
    while module:
        try:
            return import_module(module).__name__
        except ImportError:
            module = module.rpartition(".")[0]
    return None


def _own_folder(module: str) -> Path | None:
    """Return the folder that a user's module is imported from, None for installed packages."""
    file = getattr(import_module(module), "__file__", None)
    if file is None or module.partition(".")[0] == "aida_lightning":
        return None
    if any(Path(file).is_relative_to(folder) for folder in _INSTALLED):
        return None
    levels = module.count(".") + (Path(file).name == "__init__.py")
    return Path(file).parents[levels]
