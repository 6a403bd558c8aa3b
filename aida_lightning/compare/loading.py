"""Experiments by name or path: found, read, changed by options, and checked."""

import inspect
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from aida_lightning.compare.experiment import Experiment, Paper, short_key
from aida_lightning.compare.methods import UsageError
from aida_lightning.logs.metric import Metric

_CONFIGS = Path(str(files("aida_lightning.compare") / "configs"))


@dataclass(frozen=True)
class LoadedExperiment:
    """An experiment, and the text that it can be loaded from again.

    Args:
        name: The name of its file without the ending.
        config: Its file's content, every default written out.
        experiment: The experiment, ready to build its parts.
    """

    name: str
    config: dict[str, Any]
    experiment: Experiment


def list_experiments() -> dict[str, str]:
    """Returns the name of each experiment that is shipped, and its one line."""
    paths = sorted(_CONFIGS.glob("*.yaml"), key=lambda path: path.stem)
    return {path.stem: str(_read(path)["description"]) for path in paths}


def find_experiment(name: str) -> Path:
    """Finds the file of an experiment.

    Args:
        name: The name of one that is shipped, or the path of a YAML file.

    Raises:
        UsageError: If there is neither; the nearest names are given.
    """
    shipped = _CONFIGS / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    known = [path.stem for path in sorted(_CONFIGS.glob("*.yaml"))]
    nearest = get_close_matches(name, known, n=3, cutoff=0.5) or known
    raise UsageError(
        f"experiment: {name!r} is neither a file nor one of those that are shipped; "
        f"did you mean: {', '.join(nearest)}?"
    )


def load_experiment(
    name: str, overrides: Mapping[str, Any] | None = None, sample: bool = False
) -> LoadedExperiment:
    """Reads and checks an experiment. Nothing of it is built yet.

    Args:
        name: The name of one that is shipped, or the path of a YAML file.
        overrides: Values by dotted key that replace those of the file, as
            `{"trainer.max_epochs": 1}`.
        sample: Makes the changes that the file has under `sample`.

    Raises:
        UsageError: If there is no such file, or it or a value is not allowed; the message names
            the file, the key, the value and what would be right.

    Example:
        >>> loaded = load_experiment("digits_vgg11", {"trainer.max_epochs": 1})
        >>> loaded.experiment.trainer(logger=False, callbacks=[]).max_epochs
        1
    """
    path = find_experiment(name)
    _read(path)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(Experiment, as_group=False)
    with _refused_as(str(path)):
        config = before = parser.parse_path(str(path))
        content = parser.parse_path(str(path), defaults=False)
    if content.get("paper"):
        content.paper = vars(content.paper)  # else jsonargparse takes no key below it
    changes = {**(overrides or {})}
    if sample and not config.sample:
        raise UsageError(f"{path}: sample: the experiment has none, name the data itself")
    made = {**_kept(config.sample if sample else {}, changes), **changes}
    for key in _replaced(made):
        _take_out(content, key)
    with _refused_as(f"{path} as changed on the command line"):
        arguments = [f"--{key}={_written(value)}" for key, value in made.items()]
        config = parser.parse_args(arguments, namespace=content)
    if sample and not {"data", "data.class_path"}.intersection(changes):
        noted = {**_noted(changes, before, config), "data": "sample"}
    else:
        noted = _noted(made, before, config)
    config.changes = {**config.changes, **noted}
    _settle_trainer(config.trainer.init_args, resolve_name(config.model.class_path))
    return LoadedExperiment(
        name=_name(path),
        config=yaml.safe_load(parser.dump(config, skip_unset=False)),
        experiment=Experiment(**vars(parser.instantiate(config))),
    )


def _name(path: Path) -> str:
    if path.stem != "config":
        return path.stem
    # A comparison's own; its folder has the name of the experiment, and a digest perhaps.
    return re.sub(r"-[0-9a-f]{8}$", "", path.absolute().parent.name)


def _replaced(changes: Collection[str]) -> list[str]:
    """The keys that changes replace: their own, and what is said of a metric of another name."""
    named = ["metric.title", "metric.percent"] if "metric.name" in changes else []
    return [*changes, *named]


def _kept(sample: Mapping[str, Any], changes: Collection[str]) -> dict[str, Any]:
    """What of the sample no change replaces, neither the key nor one around it."""
    replaced = tuple(f"{key}." for key in _replaced(changes))
    return {key: value for key, value in sample.items() if not f"{key}.".startswith(replaced)}


def _noted(changes: Mapping[str, Any], before: Namespace, after: Namespace) -> dict[str, str]:
    """The changes by which a value is another one than in the file."""
    old, new = dict(before.items()), dict(after.items())
    changed = {short_key(f"{key}.") for key in {**old, **new} if old.get(key) != new.get(key)}
    return {key: _written(changes[key]) for key in changes if _counts(key, changes, changed)}


def _counts(key: str, changes: Collection[str], changed: Collection[str]) -> bool:
    """Whether a change is to blame for another value: where several might be, the most specific."""
    own = short_key(f"{key}.")
    shorts = (short_key(f"{change}.") for change in changes)
    inner = tuple(short for short in shorts if short.startswith(own) and short != own)
    return any(
        own.startswith(value) or (value.startswith(own) and not value.startswith(inner))
        for value in changed
    )


def _take_out(content: Any, key: str) -> None:
    """Takes out what a change replaces, for jsonargparse would merge the two."""
    values = vars(content) if isinstance(content, Namespace) else content
    if not isinstance(values, dict):
        return
    name, dot, rest = key.partition(".")
    if name not in values and "init_args" in values:  # keys may leave it out
        _take_out(values["init_args"], key)
    elif dot:
        _take_out(values.get(name), rest)
    elif name != "class_path":  # another class keeps the options that it has too
        values.pop(name, None)


def _settle_trainer(options: Namespace, model: Any) -> None:
    """Sets what Lightning would choose by itself, and otherwise than a comparison needs it."""
    if options.devices == "auto":
        options.devices = 1
    if options.strategy == "auto" and options.devices not in (1, "1", [0]):
        # The usual "ddp" would start the whole comparison again in every process.
        options.strategy = "ddp_spawn"
        if getattr(model, "find_unused_parameters", False):
            options.strategy += "_find_unused_parameters_true"
    if options.num_sanity_val_steps is None:
        options.num_sanity_val_steps = 0
    if options.enable_model_summary is None:
        options.enable_model_summary = False


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML: {error}") from error
    keys = Experiment.__dataclass_fields__
    if not isinstance(content, dict):
        raise UsageError(f"{path}: an experiment is a mapping with the keys {', '.join(keys)}")
    for key in content:
        if key not in keys:
            raise UsageError(f"{path}: unknown key {key!r}, it must be one of {', '.join(keys)}")
    return content


@contextmanager
def _refused_as(source: str) -> Iterator[None]:
    try:
        yield
    except ArgumentError as error:
        raise UsageError(f"{source}: {_explained(str(error))}") from error


def _explained(message: str) -> str:
    """Makes one line of jsonargparse's message: the key, what is wrong, and what would be right."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    # Of nested messages the innermost says what is wrong, the outer ones repeat the whole value.
    text = message.rpartition('Parser key "')[2].partition('":\n')[2] or message
    if unknown := re.search(r"unrecognized arguments: --([\w.]+)", message, re.I):
        parent = unknown[1].rpartition(".")[0]
        parts: dict[str, Any] = {"": Experiment, "metric": Metric, "paper": Paper}
        if parent in parts:
            known = ", ".join(field.name for field in fields(parts[parent]))
            return f"{unknown[1]}: unknown key, there are {known}"
    text = re.sub(r"Type .*? expects a function or a callable class: ", "", text)
    text = re.sub(r"\.? ?Got value: Namespace\(.*", "", " ".join(text.split()))
    if "Problem with given class_path" in message:  # of a part that may be null, too
        text = re.sub(r"^Does not validate.*?class_path '[\w.]+': ", "", text)
        text = text.partition(" - Expected a <class 'NoneType'>")[0]
    lacking = re.search(r"Option '(\w+)' is not accepted", message)
    classes = re.findall(r"class_path[= ]'([\w.]+)'", message)
    if lacking and classes:
        options = [*inspect.signature(resolve_name(classes[-1])).parameters]
        nearest = get_close_matches(lacking[1], options, n=3, cutoff=0.5) or options
        text += f", {classes[-1]} has: {', '.join(nearest)}"
    return f"{'.'.join(keys)}: {text}" if keys else text


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
