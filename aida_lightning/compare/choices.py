"""Methods and options as a user writes them on the command line."""

import ast
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from aida_lightning.compare.methods import Method, UsageError, method_label


def parse_choice(text: str) -> tuple[str, dict[str, Any]]:
    """Read a name with options.

    Args:
        text: `name`, or `name:option=value,option=value` with values as Python writes them
            (anything else is text).

    Raises:
        UsageError: the text cannot be read.

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
        options[key.strip()] = _parse_value(value.strip())
    return name.strip(), options


def pick_methods(methods: Sequence[Method], wanted: Sequence[str]) -> list[Method]:
    """Pick methods of an experiment by their labels, and add others by name.

    Args:
        methods: those of the experiment.
        wanted: labels of them, in any case and with underscores for spaces, or globs of labels; or
            other optimizers as `parse_choice` reads them, with an option `label` if need be.

    Raises:
        UsageError: a glob matches no label, or an entry cannot be read.

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
            name, options = parse_choice(text)
            given = options.pop("label", None)
            picked.append(Method(name, options, None if given is None else str(given)))
    return picked


def _parse_value(text: str) -> Any:
    words = {"true": "True", "false": "False", "null": "None", "none": "None"}
    try:
        value = ast.literal_eval(words.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text
    return tuple(value) if isinstance(value, list) else value


def _split(text: str) -> list[str]:
    """Split at the commas that are outside of all brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]
