"""The option ``partition``: which slices of a parameter are layers of their own."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from numbers import Integral
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from aida_lightning.optim._kernels.layers import Parts
from aida_lightning.optim._sharding import is_distributed, local_rows

Chosen: TypeAlias = Literal["rows", "elements"] | int | Sequence[int] | None
Partition: TypeAlias = Chosen | Callable[[Tensor], Chosen]
# What a partition is for one parameter: the sizes of its parts, or the number of equal parts.
Layout: TypeAlias = Literal["elements"] | int | tuple[int, ...] | None

_RETURNED = 'None, "rows", "elements", a number of equal parts, sizes along dimension 0'
_ALLOWED = f"{_RETURNED}, or (from Python) a callable that takes the parameter and returns one"


def checked_partition(value: object) -> Any:
    """Return a partition in plain form: numbers as ints and sizes as a tuple.

    Raises:
        ValueError: it is not a partition of any parameter.
        TypeError: it is of another type.
    """
    if value is None or callable(value):
        return value
    if isinstance(value, str):
        if value not in ("rows", "elements"):
            raise ValueError(f"Invalid partition: {value!r}, it must be {_ALLOWED}")
        return value
    if isinstance(value, Integral) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"Invalid partition: {value!r}, the number of parts must be >= 1")
        return int(value)
    if isinstance(value, Sequence):
        sizes = [n for n in value if isinstance(n, Integral) and not isinstance(n, bool)]
        if not value or len(sizes) < len(value) or min(sizes) < 1:
            raise ValueError(f"Invalid partition: {value!r}, all sizes must be integers >= 1")
        return tuple(int(size) for size in sizes)
    raise TypeError(f"Invalid partition: {value!r}, it must be {_ALLOWED}")


def layout_of(partition: Partition, param: Tensor, name: str = "") -> Layout:
    """Find what a partition is for a parameter.

    Args:
        partition: the option.
        param: the parameter.
        name: of the parameter, for the errors.

    Raises:
        ValueError: the parameter has no such parts.
        TypeError: the callable returned something else than a partition.
    """
    if callable(partition):
        partition = _called(partition, param, name)
    elif not torch.compiler.is_compiling() and not _is_plain(partition):
        partition = checked_partition(partition)  # someone may have set it in the group
    if partition is None or partition == "elements":
        return partition
    if not param.ndim:
        raise ValueError(
            f"Invalid partition: {partition!r}, {_shown(param, name)} has no dimension 0 to cut; "
            "leave it in a group without a partition"
        )
    rows = param.shape[0]
    if partition == "rows":
        return rows
    if isinstance(partition, tuple):
        if sum(partition) != rows:
            raise ValueError(
                f"Invalid partition: {partition}, its sizes add up to {sum(partition)}, but "
                f"dimension 0 of {_shown(param, name)} has {rows}"
            )
        return partition
    assert isinstance(partition, int)
    if rows % partition:
        raise ValueError(
            f"Invalid partition: {partition}, it does not divide dimension 0 of "
            f"{_shown(param, name)}"
        )
    return partition


def _is_plain(partition: object) -> bool:
    """Tell whether sizes are in plain form, which is checked at every step and so takes no loop."""
    return type(partition) is tuple and {*map(type, partition)} == {int} and min(partition) > 0


def _called(function: Callable[[Tensor], Chosen], param: Tensor, name: str) -> Any:
    given = function(param)
    try:
        if callable(given):
            raise TypeError
        return checked_partition(given)
    except (TypeError, ValueError) as error:
        called = getattr(function, "__qualname__", repr(function))
        raise type(error)(
            f"Invalid partition: the callable {called} returned {given!r} for "
            f"{_shown(param, name)}, but it must return one of: {_RETURNED}"
        ) from error


def _shown(param: Tensor, name: str) -> str:
    return f"a layer of the shape {[*param.shape]}" + (f" ({name})" if name else "")


def check_partition(group: dict[str, Any], *, suppresses_range: bool) -> None:
    """Raise the error of the first parameter of a group that has no such parts.

    Parameters that are not initialized yet are checked at their first step.
    """
    partition = group["partition"]
    if partition is None:
        return
    names = group.get("param_names", [""] * len(group["params"]))
    if partition == "elements":
        check_elements(partition, suppresses_range=suppresses_range)
    for name, param in zip(names, group["params"], strict=True):
        if not is_lazy(param):
            layout = layout_of(partition, param, name)
            check_elements(layout, suppresses_range=suppresses_range)


def check_elements(layout: Layout, *, suppresses_range: bool) -> None:
    """Refuse single elements where the range of the stepsizes is suppressed."""
    if layout == "elements" and suppresses_range:
        raise ValueError(
            'Invalid partition: "elements", because the range of the stepsizes is suppressed over '
            'several elements; the finest partition is "rows"'
        )


def number_of(layout: Layout) -> int:
    """Return the number of parts of a whole parameter that is cut."""
    assert isinstance(layout, int | tuple)
    return layout if isinstance(layout, int) else len(layout)


def is_cut(layout: Layout) -> bool:
    """Tell whether the parameter holds several layers that have sums of their own."""
    return layout is not None and layout != "elements"


def parts_of(param: Any, layout: Layout) -> Parts | None:
    """Find the parts of a parameter that a process updates.

    Of a DTensor whose parts all lie whole in one process, these are the process's own. Otherwise
    they are all of them, of which the process may hold any slices or none.
    """
    if not is_cut(layout):
        return None
    number = number_of(layout)
    if not number:
        return Parts(0, 0, 0)
    rows = param.shape[0]
    per_row = param.numel() // max(rows, 1) * (2 if param.is_complex() else 1)
    if lies_whole(param, layout):
        size = rows // number
        return Parts(param.to_local().shape[0] // size, size, size * per_row)
    local = local_rows(param) if is_distributed(param) else None
    if isinstance(layout, int) and (local is None or len(local) == rows):
        return Parts(number, rows // number, rows // number * per_row)
    sizes = layout if isinstance(layout, tuple) else (rows // number,) * number
    here = sizes
    if local is not None:
        ends = torch.tensor([*accumulate(sizes)], device="cpu")
        owners = torch.bucketize(local, ends, right=True)
        here = tuple(torch.bincount(owners, minlength=number).tolist())
    return Parts(number, here, tuple(size * per_row for size in sizes))


def lies_whole(param: Any, layout: Layout) -> bool:
    """Tell whether processes share the parameter and each of its parts lies in one of them."""
    if not isinstance(layout, int) or not layout or not is_distributed(param):
        return False
    split = [placement for placement in param.placements if not placement.is_replicate()]
    if not split or any(placement.dim != 0 for placement in split):
        return False
    rows = param.shape[0]
    if layout == rows:
        return True
    if len(split) > 1 or not split[0].is_shard(0):
        return False
    # As torch.chunk cuts the parameter, it cuts its parts.
    shards = param.device_mesh.size(param.placements.index(split[0]))
    whole: bool = -(-rows // shards) % (rows // layout) == 0
    return whole


def new_statistics(param: Any, layout: Layout, dtype: torch.dtype) -> Tensor:
    """Make the averaged statistics of a parameter: one number, or a vector of one per part."""
    if not is_cut(layout):
        return torch.zeros((), dtype=dtype, device=param.device)
    number = number_of(layout)
    if not lies_whole(param, layout):
        return torch.zeros(number, dtype=dtype, device=param.device)
    from torch.distributed.tensor import DTensor

    parts = parts_of(param, layout)
    assert parts is not None
    local = torch.zeros(parts.number, dtype=dtype, device=param.to_local().device)
    mesh, placements = param.device_mesh, param.placements
    shape = torch.Size([number])
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=(1,))
