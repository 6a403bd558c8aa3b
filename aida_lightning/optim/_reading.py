"""The stepsizes of a parameter, read from its state."""

from typing import Any

import torch
from torch import Tensor

from aida_lightning.optim._collecting import real
from aida_lightning.optim._kernels.rule import UpdateRule
from aida_lightning.optim._partition import Layout, is_cut, number_of
from aida_lightning.optim._sharding import shard_like, whole_of


def stepsizes_of(rule: UpdateRule, state: dict[str, Any], layout: Layout) -> Tensor:
    """Compute the adaptive stepsizes of a parameter, before any mean is taken of them.

    Args:
        rule: the rule of the parameter's group.
        state: the parameter's state.
        layout: how the parameter is cut into layers.

    Returns:
        A real tensor that can be broadcast to the parameter's shape (with an added last dimension
        of 2 if it is complex): 0-dim if the statistic is averaged over the parameter, and of shape
        ``(rows, 1, ..., 1)`` if it is averaged over its parts.
    """
    v, step, m = real(state["exp_avg_sq"]), state["step"], real(state["exp_avg"])
    if not is_cut(layout):
        return rule.stepsizes_of(v, step, whole_of(v) if rule.suppresses_range else v)
    if rule.suppresses_range and m.numel():
        parts = torch.split(whole_of(v), sizes_of(layout, m.shape[0]))
        return shard_like(torch.cat([rule.stepsizes_of(part, step, part) for part in parts]), m)
    if rule.layer_mean == "statistic":
        return shard_like(_of_rows(rule.stepsizes_of(whole_of(v), step, v), layout, m), m)
    return rule.stepsizes_of(v, step, v)


def mean_stepsizes(s: Tensor, layout: Layout) -> Tensor:
    """Replace stepsizes by their means over the parts of a parameter, or over all of it.

    Args:
        s: stepsizes of the parameter's elements.
        layout: how the parameter is cut into layers.
    """
    if layout == "elements":
        return s
    if not is_cut(layout) or not s.shape[0]:
        return s.mean()
    means = [part.mean() for part in torch.split(whole_of(s), sizes_of(layout, s.shape[0]))]
    return shard_like(_of_rows(torch.stack(means), layout, s), s)


def sizes_of(layout: Layout, rows: int) -> list[int]:
    """List the sizes along dimension 0 of the parts that a parameter is cut into."""
    count = number_of(layout)
    return [*layout] if isinstance(layout, tuple) else [rows // max(count, 1)] * count


def _of_rows(of_parts: Tensor, layout: Layout, like: Tensor) -> Tensor:
    """Repeat one number per part for each slice of dimension 0 of the part."""
    # With a dtype, because a parameter without rows may have no parts.
    sizes = torch.tensor(sizes_of(layout, like.shape[0]), dtype=torch.int64, device=of_parts.device)
    rows = of_parts.repeat_interleave(sizes, output_size=like.shape[0])
    return rows.reshape(-1, *[1] * (like.ndim - 1))
