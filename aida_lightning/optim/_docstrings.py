"""The sections that all members' docstrings share: arguments, errors and example."""

import inspect
import textwrap
from collections.abc import Mapping
from typing import TypeVar

from aida_lightning.optim.layerwise import LayerwiseOptimizer

_Member = TypeVar("_Member", bound=type[LayerwiseOptimizer])

_DESCRIPTIONS = {
    "params": "parameters, named parameters, or dicts that define groups of them.",
    "lr": r"learning rate :math:`\eta`, a float or a tensor of one element; 1e-3 by default.",
    "betas": r"""
        :math:`(\beta_1, \beta_2)`, the decay rates of the two moving averages; (0.9, 0.999) by
        default.""",
    "eps": r"""
        :math:`\epsilon`, added to :math:`v` at every step, and to the denominator if the equation
        includes it there; 1e-8 by default. The adaptive stepsizes stay below
        :math:`\sqrt{(1 - \beta_2) / \epsilon}`.""",
    "weight_decay": """
        coefficient of the L2 penalty, 0 by default. The penalty's gradient is part of :math:`g`,
        so it enters :math:`m` and the vector that :math:`v` tracks.""",
    "tau": r"""
        :math:`\tau`, the fraction of a layer's smallest :math:`w` that is subtracted from every
        :math:`w`, in [0, 1); 0.5 by default.""",
    "k": "number of mutual projections K, at least 0; 2 by default.",
    "xi": r"""
        :math:`\xi`, added to each squared norm in a denominator, which keeps the projections of a
        zero gradient finite; 1e-20 by default.""",
    "decoupled_weight_decay": """
        whether to multiply :math:`x` by ``1 - lr * weight_decay`` instead, as AdamW does.""",
    "partition": """
        what a layer is: the parameter (None, the default), each slice of its dimension 0
        (``"rows"``), an int for that many equal parts of dimension 0 (3 for a packed query, key and
        value), a sequence of the parts' sizes, each element (``"elements"``), or a callable that
        takes the parameter and returns one of these. Projections and means are taken per part, and
        an averaged :math:`v` is one number per part. A callable is not saved in the state dict.""",
    "foreach": "whether to batch the operations of all layers; None does so only on a GPU.",
    "fused": """
        whether to update in one or two sweeps of the memory. On the CPU, the sweeps are C++ code,
        which is compiled at the first step and cached. On CUDA, they are Triton kernels in at most
        three launches; these were checked in Triton's interpreter and never ran on a GPU. Without
        a compiler or Triton, the optimizer warns and continues unfused.""",
    "maximize": "whether to maximize the objective instead of minimizing it.",
    "capturable": "whether to keep all numbers on the GPU, so that CUDA graphs can capture a step.",
    "differentiable": "whether autograd records the step.",
}
_OF_SUPPRESSED = {
    "eps": r"""
        :math:`\epsilon`, added below the root; 1e-5 by default. The adaptive stepsizes stay below
        :math:`1 / ((1 - \tau) \sqrt \epsilon)`.""",
}
_ERRORS = {
    "ValueError": "an option is outside of its range; the message gives the value and the range.",
    "TypeError": "an option is not a number.",
    "RuntimeError": "two options exclude each other, or ``step`` finds a sparse gradient.",
}
_EXAMPLE = """
Example:
    >>> import torch
    >>> layer = torch.nn.Linear(3, 2)
    >>> optimizer = {name}(layer.named_parameters(), lr=1e-3)
    >>> layer(torch.ones(3)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.stepsize(layer.weight).shape
    torch.Size({shape})

"""


def complete_docstring(member: _Member) -> _Member:
    """Add the shared sections to a member's docstring, before its source."""
    if member.__doc__:  # python -OO removes it
        descriptions = _DESCRIPTIONS | (_OF_SUPPRESSED if member.suppresses_range else {})
        arguments = {name: descriptions[name] for name in inspect.signature(member).parameters}
        shape = [] if member.layer_mean == "statistic" else [2, 3]
        text, source, rest = inspect.cleandoc(member.__doc__).partition("Source:")
        sections = _section("Args", arguments) + "\n" + _section("Raises", _ERRORS)
        example = _EXAMPLE.format(name=member.__name__, shape=shape)
        member.__doc__ = text + sections + example + source + rest
    return member


def _section(title: str, entries: Mapping[str, str]) -> str:
    """Format one section of a docstring."""
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
    return "\n".join([f"{title}:", *paragraphs, ""])
