"""The optimizers of a comparison: their form in a file, and the settings that each one covers."""

import inspect
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NAMES = {"AdamPlus": "Adam+"}
_SYMBOLS = {"k": "K"}
# The options that say which layers an optimizer's options hold for, and not what they are.
GROUPING = ("groups", "no_decay_1d")
# The files that a comparison writes beside the folders of the runs.
_OWN_FILES = re.compile(r"config\.yaml|(results|curves|fig\d+|heatmap|sweep)\.\w+", re.IGNORECASE)
_UNUSABLE = re.compile(r'[/\\:*?"<>|]')
# The longest file name, in bytes, in nearly every file system.
_LONGEST = 255


class UsageError(ValueError):
    """A request that cannot be carried out, so nothing is trained; the message says why."""


@dataclass(frozen=True)
class Published:
    """The result that a paper reports for one optimizer.

    Args:
        mean: mean of the metric over the paper's seeds, in the unit of the table.
        std: standard deviation of the metric; None if the paper gives none.
    """

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Method:
    """An optimizer in the form of an experiment's file.

    Args:
        name: name of the optimizer in the registry, or path of its class.
        options: keyword arguments of the optimizer.
        label: label in tables, figures and folders; None is the optimizer's name and options.
        grid: lists of values for further options. Every combination is trained, and the best one
            represents the method.
        paper: result that the paper reports for the method.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str | None = None
    grid: dict[str, list[Any]] = field(default_factory=dict)
    paper: Published | None = None


@dataclass(frozen=True)
class OptimizerChoice:
    """One combination of options that an optimizer accepted.

    Args:
        name: name of the optimizer in the registry, or path of its class.
        options: keyword arguments of the optimizer.
        label: label in tables, figures and folders, unique within a comparison.
        method: label of the method that includes the combination; without a grid, equal to `label`.
    """

    name: str
    options: dict[str, Any]
    label: str
    method: str


def choose_optimizers(
    methods: Sequence[Method], common: Mapping[str, Any] | None = None
) -> list[OptimizerChoice]:
    """Look up optimizers in the registry, expand their grids, and try all options.

    Args:
        methods: optimizers to look up.
        common: options for every optimizer that accepts them and does not set them itself.

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
            except Exception as error:  # any error from a constructor refuses the request
                shown = ",".join(f"{key}={value}" for key, value in options.items())
                asked = f"{method.name}:{shown}".rstrip(":")
                texts = [f"{key}={v!r}" for key, v in options.items() if isinstance(v, str)]
                hint = f" ({', '.join(texts)} is text; a slash separates numbers to sweep)"
                hint = hint if texts and isinstance(error, TypeError) else ""
                raise UsageError(f"optimizers: {asked}: {error}{hint}") from error
            if full.lower() in chosen:
                raise UsageError(
                    f"optimizers: two have the label {full!r}; give one another label, as in "
                    f"{method.name}:label=NAME"
                )
            chosen[full.lower()] = OptimizerChoice(method.name, tried, full, label)
    return list(chosen.values())


def method_label(method: Method) -> str:
    """Return a method's label, by default its class and the given options.

    Raises:
        UsageError: the label cannot name a folder.
        ValueError: the optimizer does not exist.

    Example:
        >>> method_label(Method("aida", {"k": 1}))
        'Aida K=1'
    """
    from aida_lightning.registry import get_optimizer_class

    text = method.label
    if text is None:
        class_name = get_optimizer_class(method.name).__name__
        values = [_shown(_SYMBOLS.get(key, key), value) for key, value in method.options.items()]
        text = " ".join([_NAMES.get(class_name, class_name), *values])
    return folder_label(text)


def folder_label(text: str) -> str:
    """Return a label in the form that a folder's name preserves, with single spaces.

    Raises:
        UsageError: the label cannot name a folder beside the comparison's own files.

    Example:
        >>> folder_label("Adam weight_decay=0.1")
        'Adam weight decay=0.1'
    """
    # Figures read labels from folder names, in which an underscore stands for a space.
    clean = re.sub(r"[\s_]+", " ", unicodedata.normalize("NFC", text)).strip()
    unusable = f"optimizers: the label {text!r} cannot name a folder"
    if not clean or clean.startswith(".") or _UNUSABLE.search(clean):
        raise UsageError(unusable)
    # Control characters, and marks that change the direction of the text after them.
    if hidden := [char for char in clean if unicodedata.category(char) in ("Cc", "Cf")]:
        raise UsageError(f"{unusable}: it contains the invisible character {hidden[0]!r}")
    if _OWN_FILES.fullmatch(clean):
        raise UsageError(
            f"optimizers: the label {text!r} is the name of one of the files beside it"
        )
    if (size := len(clean.encode())) > _LONGEST:
        raise UsageError(
            f"{unusable}: it has {size} bytes, but at most {_LONGEST} are possible; give a shorter "
            "one with the option label"
        )
    return clean


def _combinations(method: Method) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the options of each point of the grid, and a suffix that identifies the point."""
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
        suffix = " ".join(_shown(key, value) for key, value in point.items())
        yield {**method.options, **point}, suffix


def _shown(key: str, value: Any) -> str:
    """Show an option in a label; groups lose the characters that no folder's name can have."""
    if key != "groups":
        return f"{key}={value}"
    if isinstance(value, Mapping):
        parts = [
            " ".join([str(pattern), *(f"{k}={v}" for k, v in dict(options or {}).items())])
            for pattern, options in value.items()
        ]
        value = f"({', '.join(parts)})"
    return f"{key}={_UNUSABLE.sub('-', str(value))}"


def _try_options(
    name: str, options: Mapping[str, Any], common: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options, including common ones, with which an optimizer was built."""
    import torch

    from aida_lightning.registry import (
        build_optimizer,
        for_any_layer,
        get_optimizer_class,
        try_groups,
    )

    accepted = inspect.signature(get_optimizer_class(name)).parameters
    taken = {*accepted, "groups", *(["no_decay_1d"] if "weight_decay" in accepted else [])}
    complete = {**{key: v for key, v in common.items() if key in taken}, **options}
    complete = {key: tuple(v) if isinstance(v, list) else v for key, v in complete.items()}
    for key, parameter in [*accepted.items()][1:]:
        is_one = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if is_one and parameter.default is parameter.empty and key not in complete:
            raise ValueError(f"the option {key!r} has no default, give one: {name}:{key}=VALUE")
    own = {key: value for key, value in complete.items() if key not in GROUPING}
    groups = complete.get("groups")  # whose patterns need the experiment's own model
    no_decay_1d = complete.get("no_decay_1d", False) or groups == "no_decay_1d"
    build_optimizer(
        name, torch.nn.Linear(2, 2), no_decay_1d=no_decay_1d, **for_any_layer(name, own)
    )
    try_groups(name, groups, own)
    return complete
