"""The fused CPU kernel: all layers of a dtype in two sweeps of the memory, compiled on first use.

The first sweep updates the momentum and takes the sums over each layer, the second updates all
else; members that take no sums need one sweep. float32 accesses an element: Aida 9, the members
with an averaged statistic 6, AdaBelief and AdamPlus 7 as torch's fused Adam. Sums are in double.

The source is compiled by what torch.compile compiles C++ with, which chooses the flags and caches
the library across processes.
"""

import ctypes
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aida_lightning._kernels.rule import Layers, UpdateRule, finite_sums

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
# So that loops with a square root are made of vector instructions.
_FLAGS = ("-fno-math-errno", "-ftree-loop-vectorize")
_MOMENTUM, _UPDATE, _ALL, _MOVE = range(4)


def is_available() -> bool:
    """Tell whether the sweeps could be compiled; if not, there was one warning."""
    return _library() is not None


def takes(param: Tensor, grad: Tensor, exp_avg: Tensor, v: Tensor) -> bool:
    """Tell whether the compiled code can update the layer."""
    if not param.dtype == grad.dtype == exp_avg.dtype or param.dtype not in _DTYPES:
        return False
    if not param.is_cpu or type(grad) is not Tensor:
        return False
    if param.is_neg() or grad.is_neg():  # memory that holds the negative of the values
        return False
    # All must lie in memory in one order, without gaps.
    if param.is_contiguous() and grad.is_contiguous() and exp_avg.is_contiguous():
        return v.is_contiguous()
    vectors = [param, grad, exp_avg] + ([v] if v.ndim or not param.ndim else [])
    dense = torch.empty_like(param, memory_format=torch.preserve_format).stride()
    return all(vector.stride() == dense for vector in vectors)


def momentum(layers: Layers, rule: UpdateRule) -> Tensor:
    """Update every momentum and give the sums over each layer."""
    sums = _sweep(_MOMENTUM, layers, rule, sums=4)
    if rule.layer_mean != "statistic":
        return sums[:, :3]
    _, g_sq, m_dot_g, _ = sums.unbind(1)
    # <m - g, g>, of which double leaves enough.
    return torch.cat((sums, (m_dot_g - g_sq).unsqueeze(1)), 1)


def update(layers: Layers, rule: UpdateRule, sums: Tensor | None) -> Tensor | None:
    """Update the statistic and the parameter of every layer."""
    if not rule.beta2:
        # A statistic that overflowed would become NaN, times 0.
        torch._foreach_zero_(layers.exp_avg_sqs)
    correction1, correction2 = _bias_corrections(layers, rule)
    if rule.layer_mean == "statistic":
        assert sums is not None
        statistics = torch.stack(layers.exp_avg_sqs).double()
        means = layers.mean(rule.squares(sums))
        statistics = rule.beta2 * statistics + (1 - rule.beta2) * means + rule.eps
        new = statistics.to(layers.exp_avg_sqs[0].dtype)
        torch._foreach_copy_(layers.exp_avg_sqs, list(new.unbind()))
        move(layers, rule, (statistics / correction2).rsqrt())
        return None

    of_layers = (0.0, 0.0, 0.0) if sums is None else finite_sums(sums)[:, :3].unbind(1)
    alpha, beta = rule.coefficients(*of_layers)
    totals = _sweep(
        _ALL if sums is None else _UPDATE,
        layers,
        rule,
        sums=1,
        alpha=torch.as_tensor(alpha, dtype=torch.float64).expand_as(correction1),
        beta=torch.as_tensor(beta, dtype=torch.float64).expand_as(correction1),
        correction2=correction2,
        scale=-float(rule.lr) / correction1,
    )
    return totals.squeeze(1) if rule.layer_mean == "stepsize" else None


def move(layers: Layers, rule: UpdateRule, stepsizes: Tensor) -> None:
    """Move every parameter by the one stepsize of its layer."""
    correction1, _ = _bias_corrections(layers, rule)
    _sweep(_MOVE, layers, rule, sums=0, scale=-float(rule.lr) / correction1 * stepsizes)


def _bias_corrections(layers: Layers, rule: UpdateRule) -> tuple[Tensor, Tensor]:
    steps = torch.stack(layers.steps).double()
    return 1 - rule.beta1**steps, 1 - rule.beta2**steps


class _Options(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_double)
        for name in ("beta1", "beta2", "eps", "second_eps", "coupled", "decoupled", "sign")
    ] + [(name, ctypes.c_int64) for name in ("averages_stepsize", "threads")]


_OF_LAYERS = ("alpha", "beta", "correction2", "scale")  # one number a layer, in double


class _Layers(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "g", "m", "v", "numel", *_OF_LAYERS)),
        ("n", ctypes.c_int64),
    ]


def _sweep(
    sweep: int, layers: Layers, rule: UpdateRule, *, sums: int, **of_layers: Tensor
) -> Tensor:
    """Run one sweep; give its sums over each layer, of shape ``(n, sums)``, in double."""
    # What autograd kept of the parameters is no longer what it kept.
    torch.autograd.graph.increment_version(layers.params)
    if "addresses" not in layers.kept:
        tensors = [[tensor.data_ptr() for tensor in column] for column in layers[:4]]
        layers.kept["addresses"] = torch.tensor(tensors)
        layers.kept["numel"] = torch.tensor([param.numel() for param in layers.params])
    # Held until the call has returned, for only their addresses are passed.
    vectors = {name: vector.contiguous() for name, vector in of_layers.items()}
    arguments = _Layers(
        *(column.data_ptr() for column in layers.kept["addresses"]),
        numel=layers.kept["numel"].data_ptr(),
        n=len(layers.params),
        **{name: vector.data_ptr() for name, vector in vectors.items()},
    )
    options = _Options(
        beta1=rule.beta1,
        beta2=rule.beta2,
        eps=rule.eps,
        second_eps=rule.eps if rule.eps_in_denominator else 0.0,
        coupled=rule.coupled_weight_decay,
        decoupled=float(rule.lr) * rule.weight_decay if rule.decoupled_weight_decay else 0.0,
        sign=-1.0 if rule.maximize else 1.0,
        averages_stepsize=rule.layer_mean == "stepsize",
        threads=torch.get_num_threads(),
    )
    totals = torch.zeros(len(layers.params), sums, dtype=torch.float64)
    _library().aida_sweep(
        ctypes.c_int64(_DTYPES[layers.params[0].dtype]),
        ctypes.c_int64(sweep),
        ctypes.byref(arguments),
        ctypes.byref(options),
        ctypes.c_void_p(totals.data_ptr()),
    )
    return totals


@cache
def _library() -> Any:
    """Compile and load the sweeps; None, with one warning, where that is not possible."""
    try:
        from torch._inductor.codecache import CppCodeCache

        source = Path(__file__).with_suffix(".cpp").read_text(encoding="utf-8")
        library = CppCodeCache.load_async(source, extra_flags=_FLAGS)()
        library.aida_sweep.restype = None
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
