"""The layers that are measured: whole parameters, and parts of them along the first dimension."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from aida_lightning.measuring._names import matching

# The parts of a layer: their names or number, if they are equal; names with numbers of rows; or
# "rows" for one part per row.
Parts: TypeAlias = Sequence[str] | int | Mapping[str, int] | Literal["rows"]


class Layer(NamedTuple):
    """A parameter, or the rows of one from a first to before a last: a part of it."""

    param: Tensor
    rows: tuple[int, int] | None = None


def check_parts(parts: object) -> None:
    """Raise an error unless the argument maps globs to parts, see ``Parts``.

    Raises:
        ValueError: the argument is no mapping, or a glob has no parts, or parts whose names are
            not distinct or would break a tag.
    """
    if parts is None:
        return
    if not isinstance(parts, Mapping) or not all(isinstance(glob, str) for glob in parts):
        raise ValueError(
            f'parts must map globs of layer names to their parts, such as {{"*.in_proj_weight": '
            f'["q", "k", "v"]}}, got {parts!r}'
        )
    for glob, wanted in parts.items():
        where = f"parts[{glob!r}]"
        if wanted == "rows" or (_is_count(wanted) and wanted >= 1):
            continue
        if not isinstance(wanted, Sequence | Mapping) or isinstance(wanted, str) or not wanted:
            raise ValueError(
                f"{where} must be a list of names, a number of equal parts >= 1, a mapping of "
                f'names to numbers of rows, or "rows", got {wanted!r}'
            )
        for name in wanted:
            if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
                raise ValueError(
                    f"{where} has the name {name!r}; a name is a string of letters, digits, _ and -"
                )
        if len({*wanted}) < len(wanted):
            raise ValueError(f"{where} has a name twice; names must be distinct, got {wanted!r}")
        if isinstance(wanted, Mapping):
            for name, rows in wanted.items():
                if not _is_count(rows) or rows < 1:
                    raise ValueError(
                        f"{where}[{name!r}] must be a number of rows >= 1, got {rows!r}"
                    )


def with_parts(
    layers: Mapping[Tensor, str], names: Mapping[Tensor, Sequence[str]], parts: Mapping[str, Parts]
) -> dict[Layer, str]:
    """List layers with their names, each followed by its parts, ``<layer>[<part>]``.

    Args:
        layers: parameters to list, with their names.
        names: all names of each parameter, by which globs match.
        parts: parts by glob; the first glob that matches a layer chooses.

    Raises:
        ValueError: a layer has no such parts.

    Example:
        >>> import torch
        >>> packed = torch.zeros(6, 2)
        >>> parts = {"*_weight": ["q", "k", "v"]}
        >>> [*with_parts({packed: "in_proj_weight"}, {packed: ["in_proj_weight"]}, parts).values()]
        ['in_proj_weight', 'in_proj_weight[q]', 'in_proj_weight[k]', 'in_proj_weight[v]']
    """
    matched = {glob: matching(names, glob) for glob in parts}
    found: dict[Layer, str] = {}
    for param, name in layers.items():
        found[Layer(param)] = name
        glob = next((glob for glob in parts if param in matched[glob]), None)
        if glob is not None:
            for part, rows in _rows_of(param, name, glob, parts[glob]):
                found[Layer(param, rows)] = f"{name}[{part}]"
    return found


def _rows_of(
    param: Tensor, layer: str, glob: str, parts: Parts
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the name and the rows of each part of a layer."""
    where = f"parts[{glob!r}] cannot divide the layer {layer!r} of shape {[*param.shape]}"
    if not param.ndim:
        raise ValueError(f"{where}: a layer needs at least one dimension to have parts")
    n = len(param)
    if isinstance(parts, Mapping):
        names, sizes = [*parts], [*parts.values()]
        if sum(sizes) != n:
            raise ValueError(
                f"{where}: the rows of {dict(parts)} add up to {sum(sizes)}; they must add up to "
                f"the size of dimension 0, {n}"
            )
    else:
        equal = n if parts == "rows" else parts
        names = [*map(str, range(equal))] if isinstance(equal, int) else [*equal]
        if n % len(names):
            raise ValueError(
                f"{where}: the number of parts, {len(names)}, must divide the size of dimension 0, "
                f"{n}; for uneven parts, pass a mapping of names to numbers of rows"
            )
        sizes = [n // len(names)] * len(names)
    yield from zip(names, pairwise(accumulate(sizes, initial=0)), strict=True)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
