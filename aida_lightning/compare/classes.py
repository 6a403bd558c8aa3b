"""The classes that an experiment's file names: checks of their types, and digests of their code."""

import ast
import hashlib
import inspect
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from importlib.util import resolve_name as resolve_import
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from aida_lightning._lightning import find, find_in, fits, package_of
from aida_lightning.compare.methods import UsageError

_BASES = {
    "model": "LightningModule",
    "data": "LightningDataModule",
    "trainer": "Trainer",
    "callbacks": "Callback",
}
# The folders of installed packages, which have versions and are not edited between two runs.
_INSTALLED = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]


def base_classes(package: str) -> dict[str, Any]:
    """Return the base class of each part of an experiment."""
    return {key: find_in(package, f"pytorch.{name}") for key, name in _BASES.items()}


def package_named(config: Mapping[str, Any]) -> str:
    """Return the package of the model or, if that is unknown, of another part in a file."""
    return package_of(*(path for _, path in _named(config)))


def check_classes(source: str, config: Mapping[str, Any], package: str) -> None:
    """Check that a file's model, data, trainer and callbacks are classes of these kinds.

    Otherwise, a file could name any function, which would be called while the experiment is loaded.
    Importing a class still runs its module.

    Args:
        source: source of the classes, for the message.
        config: content of an experiment's file, or a part of it.
        package: package to which the classes must belong.

    Raises:
        UsageError: a class path names something else.
    """
    for key, path in _named(config):
        try:
            named = resolve_name(path)
        except (ImportError, AttributeError, ValueError):
            continue  # The parser reports what is wrong.
        if not (inspect.isclass(named) and issubclass(named, find(f"pytorch.{_BASES[key]}"))):
            raise UsageError(f"{source}: {key}: {path} must be a subclass of {_BASES[key]}")
        if not fits(named, package):
            raise UsageError(
                f"{source}: {key}: {path} is a {_BASES[key]} of {package_of(named)}, but the "
                f"experiment uses {package}; all of its classes must belong to the same package"
            )


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the class paths of the parts, except bare names, which only name known subclasses."""
    for key in _BASES:
        parts = config.get(key)
        for part in parts if isinstance(parts, list) else [parts]:
            path = part.get("class_path") if isinstance(part, Mapping) else part
            if isinstance(path, str) and "." in path:
                yield key, path


def source_digests(config: Any) -> dict[str, str]:
    """Compute a digest of each file that defines classes of an experiment.

    The files are the modules of the classes that a ``class_path`` names and that were not installed
    with a package, and the modules of the same folder that they import, directly or indirectly.

    Args:
        config: content of an experiment's file, made of mappings, lists and plain values.

    Returns:
        A short digest by the module's name.
    """
    digests: dict[str, str] = {}
    names = [name for path in class_paths(config) if (name := _module_of(path))]
    for name in names:  # The list grows by the imported modules.
        file = _own_file(name)
        if file is None or name in digests:
            continue
        source = file.read_bytes()
        digests[name] = hashlib.sha256(source).hexdigest()[:16]
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        imported = [name.rpartition(".")[0], *_imports(source, package)]
        names += [other for other in imported if other and _folder(other) == _folder(name)]
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
    """Return the module in a class path, which is its longest part that can be imported."""
    module = path.rpartition(".")[0]
    while module:
        try:
            return import_module(module).__name__
        except ImportError:
            module = module.rpartition(".")[0]
    return None


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Yield the names that a module of a package imports, both modules and their members."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # The interpreter reports it, if it ever runs the module.
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            module = resolve_import(relative, package) if node.level else relative
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _own_file(name: str) -> Path | None:
    """Return the file of a user's module; None for installed packages and anything else."""
    if name.partition(".")[0] == "aida_lightning":
        return None
    try:
        spec = find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    file = Path(spec.origin)
    installed = any(file.is_relative_to(folder) for folder in _INSTALLED)
    return None if installed or file.suffix != ".py" else file


def _folder(name: str) -> Path | None:
    """Return the folder from which a user's module is imported by its full name."""
    file = _own_file(name)
    if file is None:
        return None
    return file.parents[name.count(".") + (file.name == "__init__.py")]
