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
    same = param.dtype == grad.dtype == exp_avg.dtype and param.dtype in _DTYPES
    if not same or not param.is_cpu or type(grad) is not Tensor:
        return False
    if param.is_neg() or grad.is_neg():  # memory that holds the negative of the values
        return False
    # All must lie in memory in one order, without gaps.
    vectors = [param, grad, exp_avg] + ([v] if v.ndim or not param.ndim else [])
    if all(vector.is_contiguous() for vector in vectors):
        return True
    dense = torch.empty_like(param, memory_format=torch.preserve_format).stride()
    return all(vector.stride() == dense for vector in vectors)


def momentum(layers: Layers, rule: UpdateRule) -> Tensor:
    """Update every momentum and give the sums over each layer."""
    m_sq, g_sq, m_dot_g, r_sq = _Sweeps(layers, rule).run(_MOMENTUM, 4)
    if rule.layer_mean != "statistic":
        return torch.stack((m_sq, g_sq, m_dot_g), 1)
    # <m - g, g>, of which double leaves enough.
    return torch.stack((m_sq, g_sq, m_dot_g, r_sq, m_dot_g - g_sq), 1)


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

    ones = torch.ones(len(layers.params), dtype=torch.float64)
    of_rule = (0.0, 0.0, 0.0) if sums is None else finite_sums(sums)[:, :3].unbind(1)
    sweeps = _Sweeps(layers, rule)
    sweeps.alpha, sweeps.beta = (c * ones for c in rule.coefficients(*of_rule))
    sweeps.scale, sweeps.correction2 = -float(rule.lr) / correction1, correction2
    (totals,) = sweeps.run(_ALL if sums is None else _UPDATE, 1)
    return totals if rule.layer_mean == "stepsize" else None


def move(layers: Layers, rule: UpdateRule, stepsizes: Tensor) -> None:
    """Move every parameter by the one stepsize of its layer."""
    correction1, _ = _bias_corrections(layers, rule)
    sweeps = _Sweeps(layers, rule)
    sweeps.scale = -float(rule.lr) / correction1 * stepsizes
    sweeps.run(_MOVE, 0)


def _bias_corrections(layers: Layers, rule: UpdateRule) -> tuple[Tensor, ...]:
    corrections = [rule.bias_corrections(step) for step in layers.steps]
    return torch.tensor(corrections, dtype=torch.float64).unbind(1)


class _Options(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_double)
        for name in ("beta1", "beta2", "eps", "second_eps", "coupled", "decoupled", "sign")
    ] + [(name, ctypes.c_int64) for name in ("averages_stepsize", "threads")]


class _Pointers(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in (
            "x", "g", "m", "v", "first_block", "numel", "alpha", "beta", "correction2", "scale",
        )
    ] + [("n", ctypes.c_int64)]  # fmt: skip


class _Sweeps:
    """The arguments of the compiled sweeps over the layers of one dtype."""

    def __init__(self, layers: Layers, rule: UpdateRule) -> None:
        # What autograd kept of the parameters is no longer what it kept.
        torch.autograd.graph.increment_version(layers.params)
        self.library, self.n = _library(), len(layers.params)
        self.dtype = _DTYPES[layers.params[0].dtype]
        self.addresses = torch.tensor(
            [[tensor.data_ptr() for tensor in tensors] for tensors in layers[:4]]
        )
        self.numel = torch.tensor([param.numel() for param in layers.params])
        blocks = -(-self.numel // self.library.aida_block_size())
        self.first_block = torch.cat((torch.zeros(1, dtype=torch.int64), blocks.cumsum(0)))
        self.layer_of_block = torch.repeat_interleave(torch.arange(self.n), blocks)
        ones = torch.ones(self.n, dtype=torch.float64)
        self.alpha = self.beta = self.correction2 = self.scale = ones
        decay = rule.weight_decay
        self.options = _Options(
            beta1=rule.beta1,
            beta2=rule.beta2,
            eps=rule.eps,
            second_eps=rule.eps if rule.eps_in_denominator else 0.0,
            coupled=rule.coupled_weight_decay,
            decoupled=float(rule.lr) * decay if rule.decoupled_weight_decay else 0.0,
            sign=-1.0 if rule.maximize else 1.0,
            averages_stepsize=rule.layer_mean == "stepsize",
            threads=torch.get_num_threads(),
        )

    def run(self, sweep: int, sums: int) -> tuple[Tensor, ...]:
        """Run one sweep and give its sums over each layer, each of shape (n,), in double."""
        of_blocks = torch.zeros(len(self.layer_of_block), max(sums, 1), dtype=torch.float64)
        per_layer = (self.numel, self.alpha, self.beta, self.correction2, self.scale)
        # Held until the call has returned, for only their addresses are passed.
        arrays = [array.contiguous() for array in (self.first_block, *per_layer)]
        pointers = _Pointers(
            *(row.data_ptr() for row in self.addresses),
            *(array.data_ptr() for array in arrays),
            self.n,
        )
        self.library.aida_sweep(
            ctypes.c_int64(self.dtype),
            ctypes.c_int64(sweep),
            ctypes.byref(pointers),
            ctypes.byref(self.options),
            ctypes.c_void_p(of_blocks.data_ptr()),
        )
        totals = torch.zeros(self.n, max(sums, 1), dtype=torch.float64)
        totals.index_add_(0, self.layer_of_block, of_blocks)
        return totals.unbind(1)


@cache
def _library() -> Any:
    """Compile and load the sweeps; None, with one warning, where that is not possible."""
    try:
        from torch._inductor.codecache import CppCodeCache

        source = Path(__file__).with_suffix(".cpp").read_text(encoding="utf-8")
        library = CppCodeCache.load_async(source, extra_flags=_FLAGS)()
        library.aida_block_size.restype = ctypes.c_int64
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
