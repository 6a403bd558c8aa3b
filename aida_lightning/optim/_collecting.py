"""What a step collects of a group's parameters: real tensors, counts, and rules of elements."""

from collections.abc import Iterator

import torch
from torch import Tensor

from aida_lightning.optim._kernels.layers import Layers
from aida_lightning.optim._kernels.rule import UpdateRule
from aida_lightning.optim._partition import Layout


def by_elements(
    layers: Layers, layouts: list[Layout], rule: UpdateRule
) -> Iterator[tuple[UpdateRule, Layers]]:
    """Yield the rule and the layers of a group, apart from those of single elements."""
    of_elements = [index for index, layout in enumerate(layouts) if layout == "elements"]
    if not of_elements:
        yield rule, layers
        return
    yield rule.of_elements(), layers.take(of_elements)
    others = sorted({*range(len(layouts))}.difference(of_elements))
    yield rule, layers.take(others)


def real(tensor: Tensor) -> Tensor:
    """View a complex tensor as pairs of real numbers."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def numel(param: Tensor) -> int:
    """Count the real numbers in the whole layer, including parts in other processes."""
    return param.numel() * (2 if param.is_complex() else 1)


def count_steps(steps: list[Tensor]) -> None:
    """Count one more step of each tensor."""
    if steps[0].is_cpu and not torch.compiler.is_compiling():
        # A tensor of 1, because foreach would wrap a number once per step there.
        torch._foreach_add_(steps, torch.ones((), device="cpu"), alpha=1)
    else:
        torch._foreach_add_(steps, 1)
