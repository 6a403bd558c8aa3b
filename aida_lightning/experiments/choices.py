"""Names with options, as `aida:k=1`: how a comparison is told what to compare."""

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NAMES = {"AdamPlus": "Adam+"}
_SYMBOLS = {"k": "K"}


class UsageError(ValueError):
    """A request that cannot be carried out; the message says why. Nothing was trained."""


@dataclass(frozen=True)
class Choice:
    """A name and the options that go with it.

    Args:
        name: What is chosen.
        options: Its keyword arguments.
        label: What to call it in tables, figures and folders, if given.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str | None = None


@dataclass(frozen=True)
class OptimizerChoice:
    """An optimizer that was found to exist and to take its options.

    Args:
        name: Its name in the registry.
        options: Its keyword arguments.
        label: What to call it in tables, figures and folders; no two of a comparison are equal.
    """

    name: str
    options: dict[str, Any]
    label: str

    @property
    def folder(self) -> str:
        """The name of its folder: the label with underscores for spaces."""
        return self.label.replace(" ", "_")


def parse_choice(text: str | Mapping[str, Any]) -> Choice:
    """Reads a name with options.

    Args:
        text: `name`, or `name:option=value,option=value` with values as Python writes them
            (anything else is text), or a mapping such as `{name: aida, k: 1, label: "K=1"}`.

    Raises:
        UsageError: If it cannot be read.

    Example:
        >>> parse_choice("adam+:lr=3e-4,betas=(0.9,0.99)")
        Choice(name='adam+', options={'lr': 0.0003, 'betas': (0.9, 0.99)}, label=None)
    """
    if isinstance(text, Mapping):
        options = dict(text)
        name, label = options.pop("name", None), options.pop("label", None)
        if not isinstance(name, str):
            raise UsageError(f"a mapping needs a name, as in {{name: aida, k: 1}}, but got {text}")
    else:
        name, colon, rest = text.partition(":")
        options, label = {}, None
        for part in _split(rest) if colon else []:
            key, equals, value = part.partition("=")
            if not equals or not key.strip():
                raise UsageError(
                    f"cannot read {part!r} in {text!r}: options are written name:option=value,…"
                )
            options[key.strip()] = _read_value(value.strip())
        if "label" in options:
            label = options.pop("label")
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    return Choice(name.strip(), options, None if label is None else str(label))


def choose_optimizers(
    choices: Sequence[str | Mapping[str, Any]], weight_decay: float | None = None
) -> list[OptimizerChoice]:
    """Looks up optimizers in the registry and tries their options on a small module.

    Args:
        choices: Optimizers as `parse_choice` reads them. One without a label is called by its
            name and options, as `Aida K=1`.
        weight_decay: For every optimizer that takes it and was not given its own.

    Raises:
        UsageError: If a name or an option is unknown, a value is refused, or two labels are equal.
    """
    import torch

    from aida_lightning.registry import build_optimizer, get_optimizer_class

    if not choices:
        raise UsageError("optimizers: at least one is needed")
    chosen: dict[str, OptimizerChoice] = {}
    for text in choices:
        choice = parse_choice(text)
        try:
            cls = get_optimizer_class(choice.name)
            label = _clean_label(choice.label or _automatic_label(cls.__name__, choice.options))
            options = dict(choice.options)
            if weight_decay is not None and "weight_decay" in inspect.signature(cls).parameters:
                options.setdefault("weight_decay", weight_decay)
            build_optimizer(choice.name, torch.nn.Linear(2, 2), **options)
        except UsageError:
            raise
        except Exception as error:  # whatever a constructor raises refuses the request
            raise UsageError(f"optimizers: {_show(text)}: {_message(error)}") from error
        if label.lower() in chosen:
            raise UsageError(
                f"optimizers: two are called {label!r}; tell them apart with a label, as in "
                f"{choice.name}:label=NAME"
            )
        chosen[label.lower()] = OptimizerChoice(choice.name, options, label)
    return list(chosen.values())


def _automatic_label(class_name: str, options: Mapping[str, Any]) -> str:
    values = [f"{_SYMBOLS.get(key, key)}={value}" for key, value in options.items()]
    return " ".join([_NAMES.get(class_name, class_name), *values])


def _clean_label(label: str) -> str:
    # Figures read labels back from folder names, where an underscore stands for a space.
    clean = re.sub(r"[\s_]+", " ", label).strip()
    if not clean or clean.startswith(".") or re.search(r'[/\\:*?"<>|]', clean):
        raise UsageError(f"optimizers: the label {label!r} cannot name a folder")
    return clean


def _message(error: Exception) -> str:
    # str(KeyError) puts the message in quotes.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return str(text) or type(error).__name__


def _read_value(text: str) -> Any:
    words: dict[str, Any] = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _show(text: str | Mapping[str, Any]) -> str:
    return text if isinstance(text, str) else str(dict(text))


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
