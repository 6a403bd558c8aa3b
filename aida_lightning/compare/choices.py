"""Optimizers as a user asks for them, picked from an experiment's methods and tried."""

import ast
import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from aida_lightning.compare.methods import (
    Method,
    OptimizerChoice,
    UsageError,
    folder_label,
    method_label,
)


def parse_choice(text: str) -> tuple[str, dict[str, Any]]:
    """Reads a name with options.

    Args:
        text: `name`, or `name:option=value,option=value` with values as Python writes them
            (anything else is text).

    Raises:
        UsageError: If it cannot be read.

    Example:
        >>> parse_choice("adam+:lr=3e-4,betas=(0.9,0.99)")
        ('adam+', {'lr': 0.0003, 'betas': (0.9, 0.99)})
    """
    name, colon, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in _split(rest) if colon else []:
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UsageError(
                f"cannot read {part!r} in {text!r}: options are written name:option=value,…"
            )
        options[key.strip()] = _read_value(value.strip())
    return name.strip(), options


def pick_methods(methods: Sequence[Method], wanted: Sequence[str]) -> list[Method]:
    """Picks methods of an experiment by their labels, and adds others by name.

    Args:
        methods: Those of the experiment.
        wanted: Labels of them, in any case and with underscores for spaces, or globs of labels; or
            other optimizers as `parse_choice` reads them, with an option `label` if need be.

    Raises:
        UsageError: If a glob matches no label, or an entry cannot be read.

    Example:
        >>> methods = [Method("aida", {"k": 1}), Method("aida", {"k": 2}), Method("sgd")]
        >>> [method_label(method) for method in pick_methods(methods, ["*k=?", "aida:k=3"])]
        ['Aida K=1', 'Aida K=2', 'Aida K=3']
    """
    labels = {method_label(method).lower(): method for method in methods}
    picked: list[Method] = []
    for text in wanted:
        pattern = text.lower().replace("_", " ")
        is_glob = ":" not in text and re.search(r"[*?\[]", text) is not None
        if pattern in labels or is_glob:
            found = [
                method
                for name, method in labels.items()
                if name == pattern or fnmatchcase(name, pattern)
            ]
            if not found:
                there = ", ".join(map(method_label, methods))
                raise UsageError(f"optimizers: {text!r} matches none of {there}")
            picked += [method for method in found if method not in picked]
        else:
            name, options = parse_choice(text)
            given = options.pop("label", None)
            picked.append(Method(name, options, None if given is None else str(given)))
    return picked


def choose_optimizers(
    methods: Sequence[Method], common: Mapping[str, Any] | None = None
) -> list[OptimizerChoice]:
    """Looks up optimizers in the registry, lays out their grids, and tries all options.

    Args:
        methods: The optimizers.
        common: Options for every optimizer that takes them and was not given its own.

    Raises:
        UsageError: If a name or an option is unknown, a value is refused, or two labels are equal.

    Example:
        >>> grid = {"eps": [1e-8, 1e-16], "lr": [0.01]}
        >>> [choice.label for choice in choose_optimizers([Method("adabelief", grid=grid)])]
        ['AdaBelief eps=1e-08 lr=0.01', 'AdaBelief eps=1e-16 lr=0.01']
    """
    if not methods:
        raise UsageError("optimizers: at least one is needed")
    chosen: dict[str, OptimizerChoice] = {}
    for method in methods:
        for options, suffix in _combinations(method):
            try:
                built = _build(method.name, options, common or {})
                name = method_label(method)
                full = folder_label(f"{name} {suffix}")
            except UsageError:
                raise
            except Exception as error:  # whatever a constructor raises refuses the request
                raise UsageError(f"optimizers: {_show(method.name, options)}: {error}") from error
            if full.lower() in chosen:
                raise UsageError(
                    f"optimizers: two are called {full!r}; tell them apart with a label, as in "
                    f"{method.name}:label=NAME"
                )
            chosen[full.lower()] = OptimizerChoice(method.name, built, full, name, method.paper)
    return list(chosen.values())


def _combinations(method: Method) -> list[tuple[dict[str, Any], str]]:
    """The options of each point of the grid, and what tells the point from the others."""
    for key, values in method.grid.items():
        if not values:
            raise UsageError(f"optimizers: {method.name}: the grid of {key!r} has no value")
    return [
        (
            {**method.options, **dict(zip(method.grid, values, strict=True))},
            " ".join(f"{key}={value}" for key, value in zip(method.grid, values, strict=True)),
        )
        for values in itertools.product(*method.grid.values())
    ]


def _build(name: str, options: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from aida_lightning.registry import build_optimizer, get_optimizer_class

    accepted = inspect.signature(get_optimizer_class(name)).parameters
    complete = {**{key: v for key, v in common.items() if key in accepted}, **options}
    complete = {key: tuple(v) if isinstance(v, list) else v for key, v in complete.items()}
    build_optimizer(name, torch.nn.Linear(2, 2), **complete)
    return complete


def _read_value(text: str) -> Any:
    words: dict[str, Any] = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return tuple(value) if isinstance(value, list) else value


def _show(name: str, options: Mapping[str, Any]) -> str:
    shown = ",".join(f"{key}={value}" for key, value in options.items())
    return f"{name}:{shown}" if shown else name


def _split(text: str) -> list[str]:
    """Splits at the commas that are outside of all brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]
