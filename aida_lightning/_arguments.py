"""Command-line arguments that take optimizers and LR schedulers by name."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from jsonargparse import Namespace
from jsonargparse._actions import _ActionHelpClassPath
from jsonargparse._typehints import ActionTypeHint
from jsonargparse._util import NestedArg, get_import_path, import_object
from lightning.pytorch.cli import (
    LightningArgumentParser,
    LRSchedulerType,
    LRSchedulerTypeTuple,
    ReduceLROnPlateau,
)
from torch.optim import Optimizer, lr_scheduler
from typing_extensions import override

from aida_lightning.mixin import SCHEDULERS, scheduler_class
from aida_lightning.registry import check_options, get_optimizer_class, list_optimizers


class NamesArgumentParser(LightningArgumentParser):
    """Take optimizers and LR schedulers by name, in any case, where its methods add them.

    Give it as ``parser_class`` to a LightningCLI of your own that is not an ``AidaCLI``.

    Example:
        >>> parser = NamesArgumentParser()
        >>> parser.add_optimizer_args()
        >>> config = parser.parse_args(["--optimizer", "aida", "--optimizer.k", "1"])
        >>> config.optimizer.class_path, config.optimizer.init_args.k
        ('aida_lightning.Aida', 1)
    """

    @override
    def add_optimizer_args(
        self,
        optimizer_class: type[Optimizer] | tuple[type[Optimizer], ...] = (Optimizer,),
        nested_key: str = "optimizer",
        link_to: str = "AUTOMATIC",
    ) -> None:
        super().add_optimizer_args(optimizer_class, nested_key, link_to)
        self._take_names(nested_key, get_optimizer_class, list_optimizers(), "Optimizer", "lr 1e-3")

    @override
    def add_lr_scheduler_args(
        self,
        lr_scheduler_class: LRSchedulerType | tuple[LRSchedulerType, ...] = LRSchedulerTypeTuple,
        nested_key: str = "lr_scheduler",
        link_to: str = "AUTOMATIC",
    ) -> None:
        super().add_lr_scheduler_args(lr_scheduler_class, nested_key, link_to)
        self._take_names(nested_key, _scheduler_class, SCHEDULERS, "LR scheduler", "gamma 0.5")

    def _take_names(
        self, key: str, find: Callable[[str], type], names: list[str], what: str, option: str
    ) -> None:
        for action in self._actions:
            if isinstance(action, ActionTypeHint) and f"--{key}" in action.option_strings:
                action.__class__ = _ClassByName
                if self.groups:
                    self.groups[key].title = what  # was the base class's
                action.metavar = "NAME | CLASS_PATH | .OPTION VALUE"
                action.help = (
                    f"{', '.join(names)}, in any case; or the path or the name of "
                    f"another class. Its options follow, as in --{key}.{option}; "
                    f"--{key}.help NAME lists them."
                )
            elif f"--{key}.help" in action.option_strings:
                action.__class__ = _HelpByName
            else:
                continue
            vars(action)["find"] = find


def _scheduler_class(name: str) -> type:
    cls = scheduler_class(name)
    # Lightning's knows the metric to monitor.
    return ReduceLROnPlateau if cls is lr_scheduler.ReduceLROnPlateau else cls


class _ClassByName(ActionTypeHint):
    """Take what ``find`` knows by name as well."""

    find: Callable[[str], type]

    def _check_type_(self, value: Any, **kwargs: Any) -> Any:
        try:
            return super()._check_type_(self._with_path(value), **kwargs)  # type: ignore[no-untyped-call]
        except (TypeError, ValueError):
            where = f'Parser key "{self.dest}"'
            chosen = value if isinstance(value, dict | Namespace) else {"class_path": value}
            options = chosen.get("init_args") or {}
            if isinstance(value, NestedArg):  # --optimizer.k 1
                chosen = (kwargs.get("cfg") or {}).get(self.dest) or {}
                options = {value.key.removeprefix("init_args."): value.val}
            _suggest(where, self.find, chosen.get("class_path"))
            _check_options(where, self._with_path(chosen).get("class_path"), options.keys())
            raise

    def _with_path(self, value: Any) -> Any:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except ValueError:
                return value
        if isinstance(value, str):
            return _path(self.find, value)
        if isinstance(value, NestedArg) and value.key == "class_path":  # --optimizer.class_path
            return value._replace(val=_path(self.find, value.val))
        if isinstance(value, dict | Namespace) and isinstance(value.get("class_path"), str):
            value = value.copy() if isinstance(value, dict) else value.clone()
            value["class_path"] = _path(self.find, value["class_path"])
        return value

    def extra_help(self) -> str:
        return ""


class _HelpByName(_ActionHelpClassPath):
    """Show the help of what ``find`` knows by name as well."""

    find: Callable[[str], type]

    def __call__(self, parser: Any, namespace: Any, value: Any, option: Any = None) -> Any:
        try:
            path = _path(self.find, value) if isinstance(value, str) else value
            return super().__call__(parser, namespace, path, option)  # type: ignore[no-untyped-call]
        except TypeError:
            _suggest(option, self.find, value)
            raise


def _path(find: Callable[[str], type], name: str) -> str:
    """Return the path to import a class from by its name, or the name if it is none of ours."""
    if "." in name:
        return name
    try:
        return get_import_path(find(name)) or name
    except ValueError:
        return name


def _check_options(where: str, path: Any, options: Iterable[str]) -> None:
    """Raise the error that says which options there are, if a class lacks one of those given."""
    try:
        cls = import_object(path)
    except (TypeError, ValueError, ImportError, AttributeError):
        return  # which is what is wrong
    try:
        check_options(cls, options)
    except TypeError as error:
        raise TypeError(f"{where}: {error}") from None


def _suggest(where: str, find: Callable[[str], type], name: Any) -> None:
    """Raise the error that says which names there are, if that is what was meant."""
    if isinstance(name, str) and name.replace("-", "_").isidentifier():
        try:
            find(name)
        except ValueError as error:
            raise TypeError(f"{where}: {error}") from None
