"""Methods and options in the form that users write on the command line."""

import ast
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from aida_lightning.compare.methods import Method, UsageError, method_label


def parse_choice(text: str) -> tuple[str, dict[str, Any]]:
    """Parse a name with options.

    Args:
        text: `name`, or `name:option=value,option=value` with Python literals as values (any other
            value is text).

    Raises:
        UsageError: the text cannot be parsed, or has an option twice.

    Example:
        >>> parse_choice("adam+:lr=3e-4,betas=(0.9,0.99)")
        ('adam+', {'lr': 0.0003, 'betas': (0.9, 0.99)})
    """
    name, given = _read(text)
    return name, {key: _parse_value(value) for key, value in given.items()}


def parse_method(text: str) -> Method:
    """Parse an optimizer with options, in which several values of an option form a grid.

    Args:
        text: text as for `parse_choice`, with an optional option `label`. The name may be the path
            of a class. Slashes separate the values of a swept option.

    Raises:
        UsageError: the text cannot be parsed, or a value is missing.

    Example:
        >>> parse_method("aida:k=1,lr=1e-4/1e-3").grid
        {'lr': [0.0001, 0.001]}
    """
    name, given = _read(text)
    label = given.pop("label", None)
    values = {key: [part.strip() for part in _split(value, "/")] for key, value in given.items()}
    for key, parts in values.items():
        if "" in parts:
            raise UsageError(
                f"optimizers: {text!r} lacks a value of {key!r}: one is written {key}=VALUE, "
                f"several are written {key}=VALUE/VALUE"
            )
    return Method(
        name,
        {key: _parse_value(parts[0]) for key, parts in values.items() if len(parts) == 1},
        None if label is None else str(_parse_value(label)),
        {key: [*map(_parse_value, parts)] for key, parts in values.items() if len(parts) > 1},
    )


def pick_methods(methods: Sequence[Method], wanted: Sequence[str]) -> list[Method]:
    """Pick methods of an experiment by their labels, and add others by name.

    Args:
        methods: methods of the experiment.
        wanted: labels of these methods, case-insensitive and with underscores for spaces, or globs
            of labels; or other optimizers as `parse_method` reads them.

    Raises:
        UsageError: a glob matches no label, or an entry cannot be parsed.

    Example:
        >>> methods = [Method("aida", {"k": 1}), Method("aida", {"k": 2}), Method("sgd")]
        >>> [method_label(method) for method in pick_methods(methods, ["*k=?", "aida:k=3"])]
        ['Aida K=1', 'Aida K=2', 'Aida K=3']
    """
    labels = {method_label(method).lower(): method for method in methods}
    picked: list[Method] = []
    for text in wanted:
        pattern = text.lower().replace("_", " ")
        found = [m for name, m in labels.items() if name == pattern or fnmatchcase(name, pattern)]
        if found:
            picked += [method for method in found if method not in picked]
        elif ":" not in text and {*"*?["}.intersection(text):
            there = ", ".join(map(method_label, methods))
            raise UsageError(f"optimizers: {text!r} matches none of {there}")
        else:
            picked.append(parse_method(text))
    return picked


def _read(text: str) -> tuple[str, dict[str, str]]:
    """Return the name, and the options as text."""
    name, colon, rest = text.partition(":")
    options: dict[str, str] = {}
    for part in _split(rest, ",") if colon else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not part.strip():
            continue
        if not equals or not key:
            raise UsageError(
                f"cannot read {part!r} in {text!r}: options are written name:option=value,…"
            )
        if key in options:
            raise UsageError(f"{text!r} has the option {key!r} twice")
        options[key] = value
    return name.strip(), options


def _parse_value(text: str) -> Any:
    words = {"true": "True", "false": "False", "null": "None", "none": "None"}
    try:
        value = ast.literal_eval(words.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text
    return tuple(value) if isinstance(value, list) else value


def _split(text: str, separator: str) -> list[str]:
    """Split a text at the separators outside all brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
