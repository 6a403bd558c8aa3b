"""The fused CPU kernel: all layers of a dtype in two sweeps of the memory, compiled on first use.

The first sweep updates the momentum and takes the sums over each layer, the second updates all
else; members that take no sums need one sweep. Per element, Aida accesses 9 numbers, of which the
second sweep finds 2 in a cache where no layer is spread over processes. The members with an
averaged statistic access 6, and AdaBelief and AdamPlus 7, as torch's fused Adam does. SETAdam's
first sweep updates the momentum and the statistic and takes the sums over that; it accesses 9, of
which the second sweep finds 2. Sums are in double.

The source is compiled by what torch.compile compiles C++ with, which chooses the flags and caches
the library across processes.
"""

import ctypes
import platform
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aida_lightning._private import cpp_code_cache
from aida_lightning.optim._kernels.layers import Layers, Parts, plan_of
from aida_lightning.optim._kernels.memory import is_safe
from aida_lightning.optim._kernels.rule import LayerMean, UpdateRule

# The dtype of the statistic and of the arithmetic, by that of the parameter; their numbers in
# fused.cpp are their places here.
_STATISTICS = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
}
# With these, loops with a square root become vector instructions.
_FLAGS = ("-fno-math-errno", "-ftree-loop-vectorize", "-ffp-contract=fast")
_MOMENTUM, _UPDATE, _MOVE = 1, 2, 4  # sweeps; added up where one call makes several
_LAYER_MEANS = {None: 0, "statistic": 1, "stepsize": 2}
_SUMS = 5


def is_available() -> bool:
    """Tell whether the sweeps could be compiled; if not, one warning was given."""
    return _library() is not None


def takes(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    layer_mean: LayerMean = None,
    parts: Parts | None = None,
) -> bool:
    """Tell whether the compiled code can update the layer."""
    on_host = param.is_cpu and step.is_cpu
    return on_host and is_safe(
        param, grad, exp_avg, exp_avg_sq, step, _STATISTICS, layer_mean, parts
    )


def step(layers: Layers, rule: UpdateRule) -> None:
    """Make all sweeps, over layers of which no other process holds a part."""
    sweeps = _UPDATE + (_MOVE if rule.layer_mean or rule.suppresses_range else 0)
    if rule.takes_sums:
        _sweep(_MOMENTUM + sweeps, layers, rule, sums=_zeros(layers.number, _SUMS))
    else:
        _sweep(sweeps, layers, rule)


def momentum(layers: Layers, rule: UpdateRule) -> Tensor:
    """Update every momentum and return the sums over each layer."""
    sums = _zeros(layers.number, _SUMS)
    _sweep(_MOMENTUM, layers, rule, sums=sums)
    return sums if rule.layer_mean == "statistic" else sums[:, :3].contiguous()


def update(layers: Layers, rule: UpdateRule, sums: Tensor | None) -> Tensor | None:
    """Update the statistic and the parameter of every layer."""
    if sums is not None:
        sums = sums.double().contiguous()
    if not rule.of_no_elements:
        _sweep(_UPDATE + (_MOVE if rule.layer_mean else 0), layers, rule, sums=sums)
        return None
    totals = _totals(layers, rule)
    _sweep(_UPDATE, layers, rule, sums=sums, stepsizes=totals)
    return totals


def move(layers: Layers, rule: UpdateRule, stepsizes: Tensor) -> None:
    """Move every parameter by the stepsizes of its layer."""
    _sweep(_MOVE, layers, rule, stepsizes=stepsizes.contiguous())


def _zeros(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64, device="cpu")


def _totals(layers: Layers, rule: UpdateRule) -> Tensor:
    """Make room for what the stepsizes depend on, or for one number per layer."""
    of_none = rule.of_no_elements or (0.0,)
    totals = _zeros(layers.number, len(of_none))
    totals[:, -1].fill_(of_none[-1])
    return totals


class _Options(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "eps", "second_eps")),
        *((name, ctypes.c_double) for name in ("coupled", "decoupled", "sign")),
        *((name, ctypes.c_double) for name in ("alpha", "beta", "xi", "root_eps", "tau")),
        *((name, ctypes.c_int64) for name in ("k", "track", "layer_mean", "suppresses_range")),
        *((name, ctypes.c_int64) for name in ("double_step", "threads")),
    ]


class _Layers(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "g", "m", "v", "step")),
        *((name, ctypes.c_void_p) for name in ("owner", "index", "begin", "part", "whole")),
        *((name, ctypes.c_int64) for name in ("n", "tensors")),
    ]


def _sweep(
    sweeps: int,
    layers: Layers,
    rule: UpdateRule,
    *,
    sums: Tensor | None = None,
    stepsizes: Tensor | None = None,
) -> None:
    """Make one sweep over every layer, or all sweeps over a few layers at a time.

    Args:
        sweeps: the sum of the sweeps to make.
        layers: the layers to update.
        rule: how to update them.
        sums: over each layer, where the rule takes any; the momentum sweep writes them.
        stepsizes: one per layer, where they are averaged, or three numbers that make them of v
            where their range is suppressed. The update sweep, made alone, writes what they depend
            on, over the local elements.
    """
    # What autograd kept of the parameters is no longer what it kept.
    torch.autograd.graph.increment_version(layers.params)
    if stepsizes is None and (rule.layer_mean or rule.suppresses_range):
        stepsizes = _totals(layers, rule)
    track, alpha, beta = rule.compiled_track
    lr = float(rule.lr)
    options = _Options(
        lr=lr,
        beta1=rule.beta1,
        beta2=rule.beta2,
        eps=rule.eps_in_state,
        second_eps=rule.eps if rule.eps_in_denominator else 0.0,
        coupled=rule.coupled_weight_decay,
        decoupled=lr * rule.weight_decay if rule.decoupled_weight_decay else 0.0,
        sign=-1.0 if rule.maximize else 1.0,
        alpha=alpha,
        beta=beta,
        xi=rule.xi,
        root_eps=rule.eps,
        tau=rule.tau,
        k=rule.k,
        track=track,
        layer_mean=_LAYER_MEANS[rule.layer_mean],
        suppresses_range=rule.suppresses_range,
        double_step=layers.steps[0].dtype == torch.float64,
        threads=torch.get_num_threads(),
    )
    if "addresses" not in layers.kept:
        addresses = [[tensor.data_ptr() for tensor in column] for column in layers.tensors()]
        layers.kept["addresses"] = torch.tensor(addresses, device="cpu")
        layers.kept["plan"] = plan_of(layers.cut)
    addresses, plan = layers.kept["addresses"], layers.kept["plan"]
    columns = (*addresses, plan.owners, plan.indices, plan.begins, plan.here, plan.whole)
    pointers = [column.data_ptr() for column in columns]
    _library().aida_step(
        ctypes.c_int64([*_STATISTICS].index(layers.params[0].dtype)),
        ctypes.c_int64(sweeps),
        ctypes.byref(_Layers(*pointers, n=len(plan.owners), tensors=addresses.shape[1])),
        ctypes.byref(options),
        ctypes.c_void_p(None if sums is None else sums.data_ptr()),
        ctypes.c_int64(0 if sums is None else sums.shape[1]),
        ctypes.c_void_p(None if stepsizes is None else stepsizes.data_ptr()),
    )


def cpu_features() -> str:
    """Describe the CPU by all that a compiler may make use of."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line for line in file if line.partition("\t")[0] in ("flags", "Features")]
    except OSError:  # not Linux
        lines = []
    return f"{platform.machine()} {platform.processor()} {(lines or [''])[0].strip()}"


@cache
def _library() -> Any:
    """Compile and load the sweeps; warn once and return None where that is not possible."""
    try:
        # The code is for this CPU, and torch names what it compiled by the text that it compiled:
        # several machines may share the folder.
        source = Path(__file__).with_suffix(".cpp").read_text(encoding="utf-8")
        source += f"// {cpu_features()}\n"
        library = cpp_code_cache().load_async(source, extra_flags=_FLAGS)()
        library.aida_step.restype = None
        return library
    except Exception as error:  # no compiler, no right to write its cache, another torch, …
        first_line = (str(error).splitlines() or [""])[0]
        warnings.warn(
            "fused=True needs a C++ compiler that torch.compile can use, the step falls back to "
            f"the loop: {type(error).__name__}: {first_line}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
