"""A parser for command lines and configurations with optimizers and LR schedulers by name."""

import json
import os
import re
import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from inspect import signature
from pkgutil import resolve_name
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from torch.optim import Optimizer, lr_scheduler
from typing_extensions import override

from aida_lightning._arguments import nearest_classes
from aida_lightning._errors import BriefArgumentParser
from aida_lightning._lightning import LightningArgumentParser, find_in, package_of
from aida_lightning.mixin import SCHEDULERS, scheduler_class
from aida_lightning.registry import check_options, get_optimizer_class, list_optimizers


class NamesArgumentParser(BriefArgumentParser, LightningArgumentParser):
    """Take optimizers and LR schedulers by case-insensitive name wherever a class can be given.

    The parser replaces a name by its class path before it parses anything. It does so on the
    command line, in configuration files (with the default ``parser_mode``), in dictionaries, and in
    environment variables if ``default_env`` is set. It overwrites those variables in this process.

    Pass this class as ``parser_class`` to your own LightningCLI if that is not an ``AidaCLI``.

    Example:
        >>> parser = NamesArgumentParser()
        >>> parser.add_optimizer_args()
        >>> config = parser.parse_args(["--optimizer", "aida", "--optimizer.k", "1"])
        >>> config.optimizer.class_path, config.optimizer.init_args.k
        ('aida_lightning.Aida', 1)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("parser_mode", "names")
        super().__init__(*args, **kwargs)
        self._paths_of: dict[str, Callable[[str], str]] = {}
        self._unknown: dict[str, str] = {}

    @override
    def add_lightning_class_args(self, lightning_class: Any, *args: Any, **kwargs: Any) -> Any:
        # The parser of each distribution refuses the classes of the other.
        package = package_of(returned_class(lightning_class))
        theirs = find_in(package, "pytorch.cli.LightningArgumentParser")
        return theirs.add_lightning_class_args(self, lightning_class, *args, **kwargs)

    @override
    def add_subclass_arguments(
        self, baseclass: Any, nested_key: str, *args: Any, **kwargs: Any
    ) -> None:
        bases = baseclass if isinstance(baseclass, tuple) else (baseclass,)
        kinds = [kind for base, kind in _KINDS.items() if issubclass(bases[0], base)]
        for _, names, find_class in kinds:
            self._paths_of[nested_key] = partial(_path_of, find_class, bases)
            kwargs["help"] = (
                f"One of {', '.join(names)}, in any case, or the path or name of another class. "
                f"--{nested_key}.help NAME lists the options of NAME."
            )
        super().add_subclass_arguments(baseclass, nested_key, *args, **kwargs)
        title = kinds[0][0] if kinds else _TITLES.get(nested_key)
        if title and (group := (self.groups or {}).get(nested_key)):
            group.title = title  # replaces the base class's docstring

    @override
    def set_defaults(self, *args: Any, **kwargs: Any) -> None:
        super().set_defaults(*map(self._with_paths, args), **self._with_paths(kwargs))

    @override
    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Any:
        given = [*(sys.argv[1:] if args is None else args)]
        for place, argument in enumerate(given):
            option, equals, value = str(argument).partition("=")
            if option.startswith("--") and equals:
                given[place] = f"{option}={self._with_paths(value, option[2:])}"
            elif option.startswith("--") and place + 1 < len(given):
                given[place + 1] = self._with_paths(given[place + 1], option[2:])
        return super().parse_args(given, *others, **kwargs)

    @override
    def parse_object(self, obj: Any, *args: Any, **kwargs: Any) -> Any:
        return super().parse_object(self._with_paths(obj), *args, **kwargs)

    @override
    def parse_string(self, *args: Any, **kwargs: Any) -> Any:
        return self._loading(super().parse_string, *args, **kwargs)

    @override
    def get_defaults(self, *args: Any, **kwargs: Any) -> Any:
        prefix = f"{self.env_prefix}_".replace("-", "_") if self.env_prefix else ""
        for key in self._paths_of if self.default_env else ():  # the environment is read next
            variable = (prefix + key).replace(".", "__").upper()
            if variable in os.environ:
                os.environ[variable] = self._with_paths(os.environ[variable], key)
        return self._loading(super().get_defaults, *args, **kwargs)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # For an unknown name or option, jsonargparse also reports everything else that it tried.
        names = dict.fromkeys(re.findall(r"Expected a dot import path string: (.+)", message))
        hints = [self._unknown[name] for name in names if name in self._unknown]
        for path, option in re.findall(r"class_path '(.+?)':\s+Option '(.+?)' is", message):
            try:
                check_options(resolve_name(path), [option])
            except (TypeError, ValueError) as error:
                hints.append(str(error))
        if not hints and (nearest := [near for name in names for near in nearest_classes(name)]):
            message = f"{message}\nDid you mean: {', '.join(nearest)}?"
        super().error("\n".join(dict.fromkeys(hints)) or message, ex)

    @override
    def format_help(self, *args: Any, **kwargs: Any) -> str:
        text = super().format_help(*args, **kwargs)
        return re.sub(r",\s+known\s+subclasses:\s+torch\.optim[^)]*", "", text)  # the names say it

    def _loading(self, parse: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        token = _with_paths.set(self._with_paths)
        try:
            return parse(*args, **kwargs)
        finally:
            _with_paths.reset(token)

    def _all_paths_of(self) -> dict[str, Callable[[str], str]]:
        """Return the look-up of each key, including those of subcommands."""
        found = dict(self._paths_of)
        for command, parser in self._commands.choices.items() if self._commands else ():
            found |= {f"{command}.{key}": of for key, of in parser._all_paths_of().items()}
        return found

    def _with_paths(self, value: Any, key: str = "") -> Any:
        """Replace names by paths in the value of a key, or by default in those of all keys."""
        if isinstance(value, Namespace):
            value = value.as_dict()
        if isinstance(value, dict):
            return {k: self._with_paths(v, f"{key}.{k}".lstrip(".")) for k, v in value.items()}
        path_of = self._all_paths_of().get(re.sub(r"\.(class_path|help)$", "", key))
        if path_of and isinstance(value, str):
            try:
                loaded = get_loader("yaml")(value)
                if isinstance(loaded, dict):
                    return json.dumps(self._with_paths(loaded, key))
                return value if "." in value or loaded is None else path_of(value)
            except yaml.YAMLError:
                pass  # the parser reports the error later
            except ValueError as error:  # it may be the name of another class
                self._unknown[value] = f"{key}: {error}"
        return value


def returned_class(given: Any) -> Any:
    """Return a class unchanged, or the annotated return class of another callable."""
    is_class = isinstance(given, type)
    return given if is_class else signature(given, eval_str=True).return_annotation


def _path_of(find_class: Callable[[str], type], bases: tuple[type, ...], name: str) -> str:
    cls = find_class(name)
    # LightningCLI has its own ReduceLROnPlateau, which knows the metric to monitor.
    cls = next((base for base in bases if issubclass(base, cls)), cls)
    module = cls.__module__
    if issubclass(cls, Optimizer):
        module = "torch.optim" if module.startswith("torch.") else "aida_lightning"
    return f"{module}.{cls.__name__}"


_KINDS: dict[type, tuple[str, list[str], Callable[[str], type]]] = {
    Optimizer: ("Optimizer", list_optimizers(), get_optimizer_class),
    lr_scheduler.LRScheduler: ("LR scheduler", SCHEDULERS, scheduler_class),
}

# The titles of LightningCLI's other arguments that take a class.
_TITLES = {"model": "Model", "data": "Data module"}

# A loader receives only a text, but the meaning of the names in it depends on the parser.
_with_paths: ContextVar[Callable[[Any], Any]] = ContextVar("_with_paths", default=lambda it: it)
set_loader("names", lambda text: _with_paths.get()(get_loader("yaml")(text)), (yaml.YAMLError,))
