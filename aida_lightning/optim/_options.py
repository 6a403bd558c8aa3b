"""The options that the optimizers share: what they mean, and which values they may have."""

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, TypeVar

from torch import Tensor
from torch.optim.optimizer import Optimizer

_Class = TypeVar("_Class", bound=type[Optimizer])

_DESCRIPTIONS = {
    "params": "parameters, named parameters, or dicts that define groups of them.",
    "lr": r"learning rate :math:`\eta`, a float or a tensor of one element; 1e-3 by default.",
    "betas": r"""
        :math:`(\beta_1, \beta_2)`, the decay rates of the two moving averages; (0.9, 0.999) by
        default.""",
    "eps": r"""
        :math:`\epsilon`, added to :math:`v` at every step, and to the denominator if the equation
        has it there; 1e-8 by default. The adaptive stepsizes stay below
        :math:`\sqrt{(1 - \beta_2) / \epsilon}`.""",
    "weight_decay": """
        coefficient of the L2 penalty, 0 by default. The penalty's gradient is a part of
        :math:`g`, and so enters :math:`m`, :math:`v` and the projections.""",
    "k": "number of mutual projections K, at least 0; 2 by default.",
    "xi": r"""
        :math:`\xi`, added to each squared norm that divides, which keeps a zero gradient finite;
        1e-20 by default.""",
    "decoupled_weight_decay": """
        shrink :math:`x` by the factor ``1 - lr * weight_decay`` instead, as AdamW does.""",
    "foreach": "batch the operations of all layers; None does so on a GPU alone.",
    "fused": """
        update in one or two sweeps of the memory. On the CPU the sweeps are C++, which is compiled
        at the first step and cached; on CUDA they are Triton, in at most three launches, which was
        checked in Triton's interpreter and never ran on a GPU. Without a compiler or without
        Triton, the optimizer warns and goes on unfused.""",
    "maximize": "maximize the objective instead of minimizing it.",
    "capturable": "keep every number on the GPU, so that CUDA graphs can capture the step.",
    "differentiable": "let autograd record the step.",
}
_ERRORS = {
    "ValueError": "an option is outside of its range; the message names its value and the range.",
    "TypeError": "an option is not a number.",
    "RuntimeError": "two of the options exclude each other, or ``step`` met a sparse gradient.",
}


def describe_options(cls: _Class) -> _Class:
    """Describe a class's arguments and errors in its docstring, before its example."""
    if cls.__doc__:  # which python -OO removes
        arguments = {name: _DESCRIPTIONS[name] for name in inspect.signature(cls).parameters}
        text, example, rest = inspect.cleandoc(cls.__doc__).partition("Example:\n")
        sections = _section("Args", arguments) + _section("Raises", _ERRORS)
        cls.__doc__ = text + sections + example + rest
    return cls


def _section(title: str, entries: Mapping[str, str]) -> str:
    """Lay one section of a docstring out."""
    paragraphs = (
        textwrap.fill(
            " ".join(f"{name}: {text}".split()),
            width=96,
            initial_indent=" " * 4,
            subsequent_indent=" " * 8,
            break_on_hyphens=False,
        )
        for name, text in entries.items()
    )
    return "\n".join([f"{title}:", *paragraphs, "", ""])


def options_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Pick the options from the local variables of a constructor that has just been entered."""
    return {
        name: value
        for name, value in arguments.items()
        if name not in ("self", "params", "__class__")
    }


def check_options(options: Mapping[str, Any]) -> None:
    """Raise in torch's wording unless every option that has a range is within it."""
    for name, check in _CHECKS.items():
        if name in options:
            check(options[name])


def _check_lr(lr: object) -> None:
    """Raise unless ``lr`` is a number, or a tensor of one element, that is at least 0."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        lr = lr.item()
    # This and the comparisons below refuse NaN too, for which no comparison holds.
    if not 0.0 <= _number("learning rate", lr):
        raise ValueError(f"Invalid learning rate: {lr}, it must be >= 0")


def _check_betas(betas: object) -> None:
    """Raise unless ``betas`` is a pair of numbers in [0, 1)."""
    if isinstance(betas, str) or not isinstance(betas, Sequence):
        raise TypeError(f"Invalid betas: {betas!r}, they must be a pair of numbers")
    if len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas!r}, they must be a pair of numbers")
    for index, beta in enumerate(betas):
        if not 0.0 <= _number(f"beta parameter at index {index}", beta) < 1.0:
            raise ValueError(
                f"Invalid beta parameter at index {index}: {beta}, it must be in [0, 1)"
            )


def _check_positive(name: str, value: object) -> None:
    """Raise unless ``value``, which the message calls ``name``, is a number above 0."""
    if not 0.0 < _number(f"{name} value", value):
        raise ValueError(f"Invalid {name} value: {value}, it must be > 0")


def _check_non_negative(name: str, value: object) -> None:
    """Raise unless ``value``, which the message calls ``name``, is a number of at least 0."""
    if not 0.0 <= _number(f"{name} value", value):
        raise ValueError(f"Invalid {name} value: {value}, it must be >= 0")


def _check_order(k: object) -> None:
    """Raise unless ``k``, the number of mutual projections, is an int of at least 0."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise ValueError(f"Invalid number of projections k: {k!r}, it must be an int >= 0")


def _number(what: str, value: object) -> float:
    # bool is a number to Python, but `eps=True` is a mistake; so is "1e-3" out of a YAML file.
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Invalid {what}: {value!r}, it must be a number")
    return float(value)


_CHECKS: dict[str, Callable[[object], None]] = {
    "lr": _check_lr,
    "betas": _check_betas,
    "eps": partial(_check_positive, "epsilon"),
    "weight_decay": partial(_check_non_negative, "weight_decay"),
    "initial_accumulator": partial(_check_non_negative, "initial_accumulator"),
    "k": _check_order,
    "xi": partial(_check_positive, "xi"),
}
