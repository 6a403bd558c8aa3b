"""The optimizers of a comparison, as a file lists them, and the runs that each of them means."""

import inspect
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NAMES = {"AdamPlus": "Adam+"}
_SYMBOLS = {"k": "K"}
# What a comparison writes beside the folders of the runs.
_OWN_FILES = re.compile(r"config\.yaml|(results|curves|fig\d+|heatmap|sweep)\.\w+", re.IGNORECASE)
# Of a file's name, in nearly every file system.
_LONGEST = 255


class UsageError(ValueError):
    """A request that cannot be carried out; the message says why. Nothing was trained."""


@dataclass(frozen=True)
class Published:
    """What a paper reports of one optimizer.

    Args:
        mean: the metric, over the paper's seeds, in the unit of the table.
        std: its standard deviation, where the paper gives one.
    """

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Method:
    """An optimizer of an experiment, as its file lists it.

    Args:
        name: the optimizer's name in the registry, or the path of its class.
        options: its keyword arguments.
        label: what to call it in tables, figures and folders; by default its name and options.
        grid: lists of values for further options. Every combination is trained, and the best
            stands for the method.
        paper: what the paper reports of it.
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
        name: the optimizer's name in the registry, or the path of its class.
        options: its keyword arguments.
        label: what to call it in tables, figures and folders; no two of a comparison are equal.
        method: the label of the method that it is a combination of; the label itself without grid.
    """

    name: str
    options: dict[str, Any]
    label: str
    method: str


def choose_optimizers(
    methods: Sequence[Method], common: Mapping[str, Any] | None = None
) -> list[OptimizerChoice]:
    """Look up optimizers in the registry, lay out their grids, and try all options.

    Args:
        methods: the optimizers.
        common: options for every optimizer that takes them and was not given its own.

    Raises:
        UsageError: a name or an option is unknown, a value is refused, or two labels are equal.

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
                tried = _try_options(method.name, options, common or {})
                label = method_label(method)
                full = folder_label(f"{label} {suffix}")
            except UsageError:
                raise
            except Exception as error:  # whatever a constructor raises refuses the request
                shown = ",".join(f"{key}={value}" for key, value in options.items())
                asked = f"{method.name}:{shown}".rstrip(":")
                texts = [f"{key}={v!r}" for key, v in options.items() if isinstance(v, str)]
                hint = f" ({', '.join(texts)} is text; a slash separates numbers to sweep)"
                hint = hint if texts and isinstance(error, TypeError) else ""
                raise UsageError(f"optimizers: {asked}: {error}{hint}") from error
            if full.lower() in chosen:
                raise UsageError(
                    f"optimizers: two are called {full!r}; tell them apart with a label, as in "
                    f"{method.name}:label=NAME"
                )
            chosen[full.lower()] = OptimizerChoice(method.name, tried, full, label)
    return list(chosen.values())


def method_label(method: Method) -> str:
    """Return a method's label, by default its class with the options that it was given.

    Raises:
        UsageError: the label cannot name a folder.
        ValueError: there is no such optimizer.

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
    """Return a label as it can be read back from a folder's name, with single blanks.

    Raises:
        UsageError: the label cannot name a folder beside the comparison's own files.

    Example:
        >>> folder_label("Adam weight_decay=0.1")
        'Adam weight decay=0.1'
    """
    # Figures read labels back from folder names, where an underscore stands for a space.
    clean = re.sub(r"[\s_]+", " ", unicodedata.normalize("NFC", text)).strip()
    unusable = f"optimizers: the label {text!r} cannot name a folder"
    if not clean or clean.startswith(".") or re.search(r'[/\\:*?"<>|]', clean):
        raise UsageError(unusable)
    # Control characters, and marks that change the direction of what is shown after them.
    if hidden := [char for char in clean if unicodedata.category(char) in ("Cc", "Cf")]:
        raise UsageError(f"{unusable}: {hidden[0]!r} in it cannot be seen")
    if _OWN_FILES.fullmatch(clean):
        raise UsageError(
            f"optimizers: the label {text!r} is the name of one of the files beside it"
        )
    if (size := len(clean.encode())) > _LONGEST:
        raise UsageError(
            f"{unusable}: it has {size} bytes, of which there can be {_LONGEST}; give a short one "
            "with the option label"
        )
    return clean


def _combinations(method: Method) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the options of each point of the grid, and what tells the point from the others."""
    for key, values in method.grid.items():
        if not values:
            raise UsageError(f"optimizers: {method.name}: the grid of {key!r} has no value")
        if twice := [value for value in values if values.count(value) > 1]:
            raise UsageError(
                f"optimizers: {method.name}: the grid of {key!r} has {twice[0]!r} twice"
            )
        if key in method.options:
            raise UsageError(
                f"optimizers: {method.name}: {key!r} is among the options and in the grid"
            )
    for combination in itertools.product(*method.grid.values()):
        point = dict(zip(method.grid, combination, strict=True))
        suffix = " ".join(f"{key}={value}" for key, value in point.items())
        yield {**method.options, **point}, suffix


def _try_options(
    name: str, options: Mapping[str, Any], common: Mapping[str, Any]
) -> dict[str, Any]:
    """Return an optimizer's options, the common ones included, that it was built with."""
    import torch

    from aida_lightning.registry import build_optimizer, get_optimizer_class

    accepted = inspect.signature(get_optimizer_class(name)).parameters
    complete = {**{key: v for key, v in common.items() if key in accepted}, **options}
    complete = {key: tuple(v) if isinstance(v, list) else v for key, v in complete.items()}
    for key, parameter in [*accepted.items()][1:]:
        is_one = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if is_one and parameter.default is parameter.empty and key not in complete:
            raise ValueError(f"the option {key!r} has no default, give one: {name}:{key}=VALUE")
    build_optimizer(name, torch.nn.Linear(2, 2), **complete)
    return complete
