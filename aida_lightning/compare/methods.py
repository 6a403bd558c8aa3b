"""The methods of an experiment: optimizers with options, labels, and grids of options."""

import re
from dataclasses import dataclass, field
from typing import Any

_NAMES = {"AdamPlus": "Adam+"}
_SYMBOLS = {"k": "K"}
# What a comparison writes beside the folders of the runs.
_OWN_FILES = re.compile(r"config\.yaml|results\.csv(\.tmp)?|fig\d+\.\w+", re.IGNORECASE)
# Of a file's name, in nearly every file system.
_LONGEST = 255


class UsageError(ValueError):
    """A request that cannot be carried out; the message says why. Nothing was trained."""


@dataclass(frozen=True)
class Published:
    """What a paper reports of one optimizer.

    Args:
        mean: The metric, over the paper's seeds, in the unit of the table.
        std: Its standard deviation, where the paper gives one.
    """

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Method:
    """An optimizer of an experiment, as its file lists it.

    Args:
        name: Its name in the registry.
        options: Its keyword arguments.
        label: What to call it in tables, figures and folders; by default its name and options.
        grid: Lists of values for further options. Every combination is trained, and the best
            stands for the method.
        paper: What the paper reports of it.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str | None = None
    grid: dict[str, list[Any]] = field(default_factory=dict)
    paper: Published | None = None


@dataclass(frozen=True)
class OptimizerChoice:
    """One combination of options that was found to be accepted.

    Args:
        name: The optimizer's name in the registry.
        options: Its keyword arguments.
        label: What to call it in tables, figures and folders; no two of a comparison are equal.
        method: The label of the method that it is a combination of; the label itself without grid.
        paper: What the paper reports of the method.
    """

    name: str
    options: dict[str, Any]
    label: str
    method: str
    paper: Published | None = None

    @property
    def folder(self) -> str:
        """The name of its folder: the label with underscores for spaces."""
        return self.label.replace(" ", "_")


def method_label(method: Method) -> str:
    """What a method is called: its label, or its class with the options that it was given.

    Raises:
        UsageError: If the label cannot name a folder.
        ValueError: If there is no such optimizer.

    Example:
        >>> method_label(Method("aida", {"k": 1}))
        'Aida K=1'
    """
    from aida_lightning.registry import get_optimizer_class

    text = method.label
    if text is None:
        class_name = get_optimizer_class(method.name).__name__
        values = [f"{_SYMBOLS.get(key, key)}={value}" for key, value in method.options.items()]
        text = " ".join([_NAMES.get(class_name, class_name), *values])
    return folder_label(text)


def folder_label(text: str) -> str:
    """Returns a label as it can be read back from a folder's name, with single blanks.

    Raises:
        UsageError: If it cannot name a folder beside the comparison's own files.

    Example:
        >>> folder_label("Adam weight_decay=0.1")
        'Adam weight decay=0.1'
    """
    # Figures read labels back from folder names, where an underscore stands for a space.
    clean = re.sub(r"[\s_]+", " ", text).strip()
    if not clean or clean.startswith(".") or re.search(r'[/\\:*?"<>|\x00-\x1f]', clean):
        raise UsageError(f"optimizers: the label {text!r} cannot name a folder")
    if _OWN_FILES.fullmatch(clean):
        raise UsageError(
            f"optimizers: the label {text!r} is the name of one of the files beside it"
        )
    if (size := len(clean.encode())) > _LONGEST:
        raise UsageError(
            f"optimizers: the label {text!r} cannot name a folder: it has {size} bytes, of which "
            f"there can be {_LONGEST}; give a short one with the option label"
        )
    return clean
