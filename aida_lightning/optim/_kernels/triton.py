"""The multi-tensor kernel for CUDA devices: all layers of a dtype in at most three launches.

It was checked against the paper's boxes in Triton's interpreter on the CPU, and compiled for sm_80
and sm_90 on a machine without a GPU. It was never run on a GPU; therefore it is opt-in.

The launches per step do not depend on the number of layers. AdamPlus and AdaBelief need 1; Aida and
AidaGrad 2 (the momentum with the sums over each layer, then all else); AdamL, AdaBeliefL and
SETAdam 2; the members with an averaged statistic 3 (the momentum, the statistics, the parameters).
What torch adds does not grow with the layers either: for each of ``update`` and ``move`` a copy of
the steps to the device, where they are not kept there; one or two ``segment_reduce`` per set of
sums; and, where a tensor's address is not that of the step before, a copy of the table of
addresses. Sums are in the statistic's dtype within a chunk of a layer, but for SETAdam's, and in
double from there on. Nothing waits for the device.
"""

import math
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aida_lightning.optim._kernels.layers import Cut, Layers, Parts, plan_of, to_device
from aida_lightning.optim._kernels.memory import is_safe
from aida_lightning.optim._kernels.rule import LayerMean, UpdateRule

# The dtype of the statistic and of the arithmetic, by that of the parameter.
_DTYPES = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}
# A thread has 8 elements of each tensor in flight then, and a model of a few million parameters
# gives every multiprocessor some programs. This was chosen by counting, not by measuring.
_CHUNK, _BLOCK, _WARPS = 1 << 15, 1 << 11, 8
_LAYERS = 128  # of a program that has one number per layer to update


def takes(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    layer_mean: LayerMean = None,
    parts: Parts | None = None,
) -> bool:
    """Tell whether the kernel can update a layer; others have to go elsewhere.

    It takes none while a CUDA graph is captured, which would keep the first table of addresses.

    Raises:
        ImportError: Triton is not installed, or older than 3.4.
    """
    if not (param.is_cpu if _sweeps().INTERPRETED else param.is_cuda):
        return False
    if param.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return is_safe(param, grad, exp_avg, exp_avg_sq, step, _DTYPES, layer_mean, parts)


def momentum(layers: Layers, rule: UpdateRule) -> Tensor:
    """Update every momentum and return the sums over each layer, in float64."""
    table = _table(layers, rule)
    arguments = _arguments(layers, rule, table)
    arguments["partials"] = partials = table.new_partials(arguments["SUMS"])
    _launch("momentum", table.programs, arguments)
    return table.sum(partials).view(table.layers, -1)


def update(layers: Layers, rule: UpdateRule, sums: Tensor | None) -> Tensor | None:
    """Update the statistic and the parameter of every layer; without sums, the momentum too."""
    table = _table(layers, rule)
    table.set_clock(layers.steps)
    arguments = _arguments(layers, rule, table)
    if sums is not None:
        arguments["sums"] = sums.double().contiguous()
    if rule.layer_mean == "statistic":
        stepsizes = table.records.new_empty(table.layers, dtype=torch.float64)
        arguments["stepsizes"] = stepsizes
        _launch("statistics", -(-len(stepsizes) // _LAYERS), arguments | {"BLOCK": _LAYERS})
        _launch("move", table.programs, arguments)
    elif of_none := rule.of_no_elements:
        arguments["partials"] = partials = table.new_partials(len(of_none))
        _launch("update", table.programs, arguments)
        totals = table.sum(partials).view(-1, len(of_none))
        if rule.suppresses_range:
            totals[:, 2] = table.sum(partials, least=True).view(-1, 3)[:, 2]
        return totals
    else:
        _launch("update", table.programs, arguments)
    # What autograd kept of the parameters is no longer what it kept.
    torch.autograd.graph.increment_version(layers.params)
    return None


def move(layers: Layers, rule: UpdateRule, stepsizes: Tensor) -> None:
    """Move every parameter by the stepsizes of its layer."""
    table = _table(layers, rule)
    table.set_clock(layers.steps)
    arguments = _arguments(layers, rule, table) | {"stepsizes": stepsizes.contiguous()}
    _launch("move", table.programs, arguments)
    torch.autograd.graph.increment_version(layers.params)


def _launch(name: str, programs: int, arguments: dict[str, Any]) -> None:
    kernel = getattr(_sweeps(), name)
    chosen = {name: arguments[name] for name in kernel.arg_names}
    with torch.cuda.device(arguments["records"].get_device()):  # -1, on the CPU, is none
        kernel[(programs,)](**chosen, num_warps=_WARPS)


def _arguments(layers: Layers, rule: UpdateRule, table: "_Table") -> dict[str, Any]:
    """Name the arguments of all sweeps, but for the sums and where those go."""
    on_device = isinstance(rule.lr, Tensor) and rule.lr.device == table.records.device
    track, alpha, beta = rule.compiled_track
    return {
        "records": table.records,
        "chunks": table.chunks,
        "n": table.layers,
        "sums": None,
        "partials": None,
        "lr": 0.0 if on_device else float(rule.lr),
        "lr_tensor": rule.lr if on_device else None,
        "beta1": rule.beta1,
        "beta2": rule.beta2,
        "log_beta1": math.log(rule.beta1) if rule.beta1 else -math.inf,
        "log_beta2": math.log(rule.beta2) if rule.beta2 else -math.inf,
        "eps": rule.eps_in_state,
        "second_eps": rule.eps if rule.eps_in_denominator else 0.0,
        "sign": -1.0 if rule.maximize else 1.0,
        "coupled": rule.coupled_weight_decay,
        "decoupled": rule.weight_decay if rule.decoupled_weight_decay else 0.0,
        "alpha": alpha,
        "beta": beta,
        "xi": rule.xi,
        "P": _triton_type(layers.params[0].dtype),
        "S": _triton_type(_DTYPES[layers.params[0].dtype]),
        "TIME": _triton_type(layers.steps[0].dtype),
        "COUPLED": rule.coupled_weight_decay != 0,
        "SUMS": 5 if rule.layer_mean == "statistic" else 3,
        "TRACK": track,
        "K": rule.k if track else 0,
        "MOMENTUM": not rule.takes_sums,
        "TOTALS": len(rule.of_no_elements or ()),
        "SUPPRESSED": rule.suppresses_range,
        "ALIGNMENT": table.alignment,
        "CHUNK": _CHUNK,
        "BLOCK": _BLOCK,
    }


class _Table(NamedTuple):
    """What the sweeps know of the layers, on their device (see triton_sweeps.py)."""

    records: Tensor  # (n, 7)
    clock: Tensor | None  # (n,): the steps, if they are kept on the host
    alignment: int  # of all addresses, in bytes
    chunks: Tensor  # (chunks, 2): the layer, and which of its chunks
    offsets: dict[int, Tensor]  # where the layers' partial sums begin, by the number of sums

    @property
    def layers(self) -> int:
        return len(self.records)

    @property
    def programs(self) -> int:
        return len(self.chunks)

    def new_partials(self, sums: int) -> Tensor:
        return self.records.new_empty(self.programs * sums, dtype=torch.float64)

    def sum(self, partials: Tensor, *, least: bool = False) -> Tensor:
        """Add up what the programs left of each sum, or find the least of it."""
        # Always in the same order, unlike index_add on CUDA; unchecked, for checks wait.
        offsets = self.offsets[len(partials) // self.programs]
        return torch.segment_reduce(
            partials,
            "min" if least else "sum",
            offsets=offsets,
            unsafe=True,
            initial=math.inf if least else 0,
        )

    def set_clock(self, steps: list[Tensor]) -> None:
        if self.clock is not None:
            now = torch.stack(steps)
            pinned = now.pin_memory() if now.is_cpu and self.clock.is_cuda else now
            self.clock.copy_(pinned, non_blocking=True)


def _table(layers: Layers, rule: UpdateRule) -> _Table:
    device = layers.params[0].device
    lists = layers.tensors()[:4] if not rule.capturable else layers.tensors()
    addresses = tuple(tuple(map(Tensor.data_ptr, tensors)) for tensors in lists)
    cut, dtypes = layers.cut, (layers.params[0].dtype, layers.steps[0].dtype)
    averaged = rule.layer_mean == "statistic"
    records, clock, alignment = _records(addresses, cut, *dtypes, device, averaged)
    return _Table(records, clock, alignment, *_chunks(cut, device, _CHUNK))


# Most steps find the addresses of the one before; groups and optimizers take turns, hence several.
@lru_cache(maxsize=16)
def _records(
    addresses: tuple[tuple[int, ...], ...],
    cut: Cut,
    dtype: torch.dtype,
    step_dtype: torch.dtype,
    device: torch.device,
    averaged: bool,
) -> tuple[Tensor, Tensor | None, int]:
    clock = None
    columns: list[Sequence[int]] = [*addresses]
    if len(columns) == 4:
        tensors = len(cut.parts)
        clock = torch.empty(tensors, dtype=step_dtype, device=device)
        columns.append([clock.data_ptr() + i * clock.itemsize for i in range(tensors)])
    rows, plan = cut.addresses(columns, (dtype, _DTYPES[dtype]), averaged=averaged), plan_of(cut)
    vectors = rows[: 3 if averaged else 4]  # of which elements are read side by side
    alignment = dtype.itemsize if (vectors % 16).any() else 16
    records = torch.cat((rows, torch.stack((plan.here, plan.whole)))).t().contiguous()
    return to_device(device, records), clock, alignment


@lru_cache(maxsize=16)
def _chunks(cut: Cut, device: torch.device, size: int) -> tuple[Tensor, dict[int, Tensor]]:
    # A layer without elements has a chunk too, so that its sums are written.
    counts = (-(-plan_of(cut).here // size)).clamp(min=1)
    first = counts.cumsum(0) - counts
    layer = torch.repeat_interleave(torch.arange(len(counts), device="cpu"), counts)
    index = torch.arange(len(layer), device="cpu") - first[layer]
    offsets = {}
    for sums in (1, 3, 5):
        ends = counts.repeat_interleave(sums).cumsum(0)
        offsets[sums] = to_device(device, torch.cat((torch.zeros_like(ends[:1]), ends)))
    return to_device(device, torch.stack((layer, index), dim=1)), offsets


def _triton_type(dtype: torch.dtype) -> Any:
    return getattr(_sweeps().tl, str(dtype).removeprefix("torch."))


@cache
def _sweeps() -> ModuleType:
    try:
        from aida_lightning.optim._kernels import triton_sweeps
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "triton":
            raise
        raise ModuleNotFoundError(
            "the Triton kernel needs the package triton, which is not installed: on Linux "
            "`pip install triton` in the version that your torch names, on Windows "
            "`triton-windows`; there is none for macOS",
            name="triton",
        ) from error
    version: str = sys.modules["triton"].__version__
    if tuple(map(int, version.split(".")[:2])) < (3, 4):
        # They would pass the options in float32, where 1 - 0.999 is off by 1e-5.
        raise ImportError(f"the Triton kernel needs triton 3.4 (torch 2.8) or newer, got {version}")
    return triton_sweeps
