"""The classes that a LightningCLI command line names, found before it is parsed."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pkgutil import resolve_name
from typing import Any

import fsspec
import yaml
from jsonargparse import Namespace, get_loader

from aida_lightning._lightning import find

# A configuration file may have them below the name of a subcommand, too.
_OPTIONS = re.compile(
    r"(?:(?:fit|validate|test|predict)\.)?"
    r"(model|data|trainer\.(?:callbacks|logger|plugins|strategy))\+?(?:\.class_path)?"
)
_FILES = ("config", "c", "model", "data", "trainer")
_BASES = ("LightningModule", "LightningDataModule", "Callback")


def named_classes(args: Any) -> list[tuple[str, type]]:
    """List the options that name a class, each with its class and the model first.

    Of two models or two data modules, the later one counts. The parser handles paths that lead
    nowhere and names that several classes share.

    Args:
        args: list of arguments, or a dictionary or namespace of them, as LightningCLI takes.

    Example:
        >>> named_classes(["fit", "--trainer.max_epochs=2", "--model", "torch.nn.Linear"])
        [('model', <class 'torch.nn.modules.linear.Linear'>)]
    """
    found: list[tuple[str, type]] = []
    for key, value in [*_given(args)][::-1]:
        option = match[1] if (match := _OPTIONS.fullmatch(key)) else ""
        is_settled = option in ("model", "data") and option in dict(found)
        if option and not is_settled and (cls := _class_of(value)):
            found.append((option, cls))
    return sorted(found, key=lambda pair: pair[0] != "model")


def nearest_classes(name: str) -> list[str]:
    """List up to three classes with bare names that are similar to a name.

    Example:
        >>> from aida_lightning.callbacks import StepsizeMonitor
        >>> nearest_classes("StepsizeMoniter")[0]
        'StepsizeMonitor'
    """
    return get_close_matches(name, {cls.__name__ for cls in _with_bare_names()})


def _given(args: Any) -> Iterator[tuple[str, str]]:
    """Yield the given values with their dotted keys."""
    if isinstance(args, dict | Namespace):
        yield from _flat(dict(args.items() if isinstance(args, dict) else vars(args)))
        return
    for place, argument in enumerate(args):
        option, equals, value = str(argument).partition("=")
        if not option.startswith("-"):
            continue
        if not equals:
            value = next(iter(args[place + 1 :]), "")
        key = option.lstrip("-")
        content = _loaded(value, key in _FILES)
        yield from _flat(content, "" if key in ("config", "c") else key)


def _loaded(text: Any, may_be_file: bool) -> Any:
    """Load YAML from a text or from a named file."""
    if may_be_file:
        with suppress(OSError, ValueError, ImportError), fsspec.open(str(text), "r") as file:
            text = file.read()
    try:
        return get_loader("yaml")(str(text))
    except yaml.YAMLError:  # the parser reports it
        return text


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            yield from _flat(item, key)
    elif isinstance(value, str):
        yield key, value


def _class_of(name: str) -> type | None:
    if "." in name:
        with suppress(Exception):  # the parser reports errors in the user's module
            named = resolve_name(name)
            return named if isinstance(named, type) else None
    named = {cls for cls in _with_bare_names() if cls.__name__ == name}
    return named.pop() if len(named) == 1 else None


def _with_bare_names() -> Iterator[type]:
    return _below([base for kind in _BASES for base in find(f"pytorch.{kind}")])


def _below(classes: Sequence[type]) -> Iterator[type]:
    for cls in classes:
        yield cls
        yield from _below(cls.__subclasses__())
