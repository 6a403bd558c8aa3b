"""The loading of experiments by name or path: they are read, changed by options, and checked."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib.resources import files
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from aida_lightning._lightning import find, package_of
from aida_lightning.compare.classes import (
    base_classes,
    check_classes,
    class_paths,
    package_named,
)
from aida_lightning.compare.experiment import FACTORIES, Experiment, Paper, Target
from aida_lightning.compare.methods import Method, Published, UsageError
from aida_lightning.compare.settings import flat, short_key
from aida_lightning.logs.metric import Metric

_CONFIGS = Path(str(files("aida_lightning.compare") / "configs"))


@dataclass(frozen=True)
class LoadedExperiment:
    """An experiment, with the text from which it can be loaded again.

    Args:
        name: name of the file without the extension.
        config: content of the file, with all defaults written out.
    """

    name: str
    config: dict[str, Any]

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment, ready to build its parts."""
        parser = _parser(self.package)
        config = parser.parse_object(deepcopy(self.config))  # The parser changes its input.
        return Experiment(**vars(parser.instantiate(config)))

    @property
    def package(self) -> str:
        """The package of the Trainer, ``lightning.pytorch`` or ``pytorch_lightning``."""
        return package_of(self.config["trainer"]["class_path"])

    @property
    def trainer_options(self) -> dict[str, Any]:
        """The arguments of the Trainer, with all defaults written out."""
        options: dict[str, Any] = self.config["trainer"]["init_args"]
        return options


def list_experiments() -> dict[str, str]:
    """Return the one-line description of each shipped experiment, by its name."""
    paths = sorted(_CONFIGS.glob("*.yaml"), key=lambda path: path.stem)
    return {path.stem: str(_read_content(path)["description"]) for path in paths}


def find_experiment(name: str) -> Path:
    """Find the file of an experiment.

    Args:
        name: name of a shipped experiment, or the path of a YAML file.

    Raises:
        UsageError: neither exists; the message suggests the nearest names.
    """
    shipped = _CONFIGS / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    known = [path.stem for path in sorted(_CONFIGS.glob("*.yaml"))]
    nearest = get_close_matches(name, known, n=3, cutoff=0.5) or known
    raise UsageError(
        f"experiment: {name!r} is neither a file nor a shipped experiment; "
        f"did you mean: {', '.join(nearest)}?"
    )


def load_experiment(
    name: str, overrides: Mapping[str, Any] | None = None, sample: bool = False
) -> LoadedExperiment:
    """Read and check an experiment, without building any part of it.

    Args:
        name: name of a shipped experiment, or the path of a YAML file.
        overrides: values by dotted key that replace those of the file, such as
            `{"trainer.max_epochs": 1}`.
        sample: whether to make the changes that the file has under `sample`.

    Raises:
        UsageError: the file does not exist, or the file or a value is invalid; the message names
            the file, the key, the value, and what would be valid.

    Example:
        >>> loaded = load_experiment("digits_vgg11", {"trainer.max_epochs": 1})
        >>> loaded.experiment.trainer(logger=False, callbacks=[]).max_epochs
        1
    """
    path = find_experiment(name)
    given = _read_content(path)
    changes = dict(overrides or {})
    parts = {
        str(path): given,
        f"{path}: sample": _nested(given.get("sample") or {}) if sample else {},
        f"{path} as changed on the command line": _nested(changes),
    }
    package = package_named({k: v for part in parts.values() for k, v in part.items()})
    for source, part in parts.items():
        check_classes(source, part, package)
    parser = _parser(package)
    with _refused_as(str(path), given):
        content = parser.parse_path(str(path), defaults=False)
        in_file = parser.parse_object(content.as_dict())
    given = {**in_file.as_dict(), **in_file.sample, **changes}
    with _refused_as(f"{path} as changed on the command line", given):
        if sample:
            if not in_file.sample:
                raise UsageError(
                    f"{path}: sample: the experiment has no sample; set `data` instead"
                )
            content = _changed(parser, content, in_file.sample)
        unchanged = parser.parse_object(content.as_dict())
        config = parser.parse_object(_changed(parser, content, changes).as_dict())
    if sample and config.data.class_path == unchanged.data.class_path:
        noted = {**_differences(unchanged, config), "data": "sample"}
    else:
        noted = _differences(in_file, config)
    before = {short_key(key): value for key, value in config.changes.items()}
    if "data.class_path" in noted:
        before.pop("data", None)  # The data is no longer the sample of an earlier comparison.
    config.changes = before | noted
    _settle_trainer(config.trainer.init_args, resolve_name(config.model.class_path))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(?s).*Unable to serialize instance")
        text = parser.dump(config, skip_unset=False)
    return LoadedExperiment(_experiment_name(path), _without_unwritable(yaml.safe_load(text)))


def load_plan(path: Path) -> tuple[Experiment, dict[str, Any]]:
    """Read what an experiment compares, without the classes that it trains.

    Args:
        path: the experiment's file.

    Returns:
        the experiment, whose model, data, trainer and callbacks are None, and the file's content.

    Raises:
        UsageError: the file cannot be read, or a value is not allowed.
    """
    content = _read_content(path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Experiment, as_group=False, skip={*FACTORIES})
    with _refused_as(str(path), content):
        plan = parser.parse_object({k: v for k, v in content.items() if k not in FACTORIES})
    parts: dict[str, Any] = {**dict.fromkeys(FACTORIES), **vars(parser.instantiate(plan))}
    return Experiment(**parts), content


def _without_unwritable(content: Any) -> Any:
    """Omit the defaults that jsonargparse cannot write, because the class has them anyway."""
    if isinstance(content, dict):
        return {
            key: _without_unwritable(value)
            for key, value in content.items()
            if not (isinstance(value, str) and value.startswith("Unable to serialize instance"))
        }
    return [*map(_without_unwritable, content)] if isinstance(content, list) else content


def _nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that changes by dotted key set for the parts of a file."""
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        part, _, rest = key.partition(".")
        if not rest or rest == "class_path":
            with suppress(yaml.YAMLError):
                nested[part] = yaml.safe_load(value) if isinstance(value, str) else value
    return nested


def _parser(package: str) -> ArgumentParser:
    """Return a parser of experiments whose classes belong to a package."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for key, base in base_classes(package).items():
        default: dict[str, Any] = {"default": []} if key == "callbacks" else {"required": True}
        parser.add_argument(f"--{key}", type=FACTORIES[key][base], **default)
    parser.add_class_arguments(Experiment, as_group=False, skip={*FACTORIES})
    return parser


def _experiment_name(path: Path) -> str:
    if path.stem != "config":
        return path.stem
    # A comparison's own file: the folder has the experiment's name, perhaps with a digest.
    return re.sub(r"-[0-9a-f]{8}$", "", path.absolute().parent.name)


def _changed(parser: ArgumentParser, content: Namespace, changes: Mapping[str, Any]) -> Namespace:
    """Return a file's content, without defaults, after changes by dotted key."""
    content = content.clone()
    if isinstance(content.get("paper"), Namespace):
        content.paper = vars(content.paper)  # Otherwise, jsonargparse accepts no key below it.
    for key in changes:
        _take_out(content, key)
    metric = content.get("metric.name", Metric.name)
    if changes.get("metric.name", metric) != metric:  # Another metric has another title and unit.
        _take_out(content, "metric.title")
        _take_out(content, "metric.percent")
    arguments = [f"--{key}={_as_text(value)}" for key, value in changes.items()]
    return parser.parse_args(arguments, namespace=content, defaults=False)


def _differences(before: Namespace, after: Namespace) -> dict[str, str]:
    """Return the keys whose values differ, with their new values."""
    old, new = flat(before.as_dict()), flat(after.as_dict())
    return {
        short_key(key): _as_text(new.get(key))
        for key in {**old, **new}
        # If another class lacks an option, its class path says so.
        if old.get(key) != new.get(key) and (key in new or ".init_args." not in key)
    }


def _take_out(content: Any, key: str) -> None:
    """Remove what a change replaces, because jsonargparse would merge the two."""
    values = vars(content) if isinstance(content, Namespace) else content
    if not isinstance(values, dict):
        return
    name, dot, rest = key.partition(".")
    if name not in values and "init_args" in values:  # Keys may omit `init_args`.
        _take_out(values["init_args"], key)
    elif dot:
        _take_out(values.get(name), rest)
    elif name != "class_path":  # Another class keeps the options that it shares.
        values.pop(name, None)


def _settle_trainer(options: Namespace, model: Any) -> None:
    """Set the options for which Lightning's own choice does not suit a comparison."""
    if options.devices == "auto":
        options.devices = 1
    if options.strategy == "auto" and options.devices not in (1, "1", [0]):
        # The usual "ddp" would restart the whole comparison in every process.
        options.strategy = "ddp_spawn"
        if getattr(model, "find_unused_parameters", False):
            options.strategy += "_find_unused_parameters_true"
    if options.num_sanity_val_steps is None:
        options.num_sanity_val_steps = 0
    if options.enable_model_summary is None:
        options.enable_model_summary = False


def _read_content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML: {error}") from error
    keys = Experiment.__dataclass_fields__
    if not isinstance(content, dict):
        raise UsageError(f"{path}: an experiment must be a mapping with the keys {', '.join(keys)}")
    for key in content:
        if key not in keys:
            raise UsageError(f"{path}: unknown key {key!r}, it must be one of {', '.join(keys)}")
    return content


@contextmanager
def _refused_as(source: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Name the source of a refused value, and the nearest of the known keys."""
    try:
        yield
    except ArgumentError as error:
        message = " ".join(str(error).partition(" Got value: Namespace(")[0].split()).rstrip(".")
        raise UsageError(f"{source}: {message}{_nearest(message, given)}") from error


def _nearest(message: str, given: Mapping[str, Any]) -> str:
    """Return the nearest known keys for each unknown key in a message."""
    classes = [Experiment, Paper, Metric, Target, Method, Published, *find("pytorch.Trainer")]
    with suppress(AttributeError, ImportError, ValueError):
        classes += [resolve_name(path) for path in class_paths(given)]
    known = {name for cls in classes for name in signature(cls).parameters}
    unknown = {part for key in _keys(given) for part in key.split(".")} - known
    named = unknown.intersection(re.split(r"\W+", message))
    nearest = [near for key in sorted(named) for near in get_close_matches(key, known)]
    return f"; did you mean: {', '.join(nearest)}?" if nearest else ""


def _keys(content: Any) -> Iterator[str]:
    if isinstance(content, Mapping):
        yield from content
    for value in content.values() if isinstance(content, Mapping) else content:
        if isinstance(value, Mapping | list):
            yield from _keys(value)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
