"""The fused CPU kernel: all layers of a dtype in two sweeps of the memory, compiled on first use.

The first sweep updates the momentum and takes the sums over each layer, the second updates all
else; members that take no sums need one sweep. float32 accesses an element: Aida 9, the members
with an averaged statistic 6, AdaBelief and AdamPlus 7 as torch's fused Adam. Sums are in double.

The source is compiled by what torch.compile compiles C++ with, which chooses the flags and caches
the library across processes.
"""

import ctypes
import warnings
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aida_lightning._kernels.rule import Layers, UpdateRule
from aida_lightning._kernels.single_tensor import single_tensor
from aida_lightning.optim.tracking import gradient, needs_inner_products, residual

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
# So that loops with a square root are made of vector instructions.
_FLAGS = ("-fno-math-errno", "-ftree-loop-vectorize")
_MOMENTUM, _UPDATE, _ALL, _MOVE = range(4)


def fused(layers: Layers, rule: UpdateRule) -> None:
    """Update every layer in place; layers that the compiled code cannot take go to the loop."""
    library = None if torch.compiler.is_compiling() else _library()
    if library is None:
        return single_tensor(layers, rule)
    groups: defaultdict[torch.dtype | None, list[int]] = defaultdict(list)
    for index, tensors in enumerate(zip(*layers[:4], strict=True)):
        groups[_fused_dtype(*tensors)].append(index)
    for dtype, indices in groups.items():
        group = Layers(*([tensors[i] for i in indices] for tensors in layers))
        if dtype is None:
            single_tensor(group, rule)
        else:
            _update_group(library, _DTYPES[dtype], group, rule)
    return None


def _update_group(library: Any, dtype: int, layers: Layers, rule: UpdateRule) -> None:
    torch._foreach_add_(layers.steps, torch.ones(()), alpha=1)
    # What autograd kept of the parameters is no longer what it kept.
    torch.autograd.graph.increment_version(layers.params)
    corrections = torch.tensor(
        [rule.bias_corrections(step) for step in layers.steps], dtype=torch.float64
    )
    if not rule.beta2:
        # A statistic that overflowed would become NaN, times 0.
        torch._foreach_zero_(layers.exp_avg_sqs)
    sweeps = _Sweeps(library, dtype, layers, rule)
    scale = -float(rule.lr) / corrections[:, 0]
    correction2 = corrections[:, 1]
    numel = sweeps.numel.clamp(min=1)

    if rule.layer_mean == "statistic":
        m_sq, g_sq, m_dot_g, r_sq = sweeps.run(_MOMENTUM, 4)
        alpha, beta = rule.coefficients(m_sq, g_sq, m_dot_g)
        if rule.track is gradient:
            d_sq = g_sq
        elif rule.track is residual:
            d_sq = r_sq
        else:
            # |alpha m + beta g|^2 from |m - g|^2, which was subtracted before it was squared.
            both = alpha + beta
            d_sq = alpha**2 * r_sq + 2 * alpha * both * (m_dot_g - g_sq) + both**2 * g_sq
        statistics = torch.stack(layers.exp_avg_sqs).double()
        means = d_sq.clamp(min=0) / numel
        statistics = rule.beta2 * statistics + (1 - rule.beta2) * means + rule.eps
        new = statistics.to(layers.exp_avg_sqs[0].dtype)
        torch._foreach_copy_(layers.exp_avg_sqs, list(new.unbind()))
        sweeps.scale = scale / (statistics / correction2).sqrt()
        sweeps.run(_MOVE, 0)
        return

    sweeps.scale, sweeps.correction2 = scale, correction2
    if needs_inner_products(rule.track):
        m_sq, g_sq, m_dot_g, _ = sweeps.run(_MOMENTUM, 4)
        sweeps.coefficients(rule, m_sq, g_sq, m_dot_g)
        (sums,) = sweeps.run(_UPDATE, 1)
    else:
        sweeps.coefficients(rule, 0.0, 0.0, 0.0)
        (sums,) = sweeps.run(_ALL, 1)
    if rule.layer_mean == "stepsize":
        sweeps.scale = scale * sums / numel
        sweeps.run(_MOVE, 0)


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

    def __init__(self, library: Any, dtype: int, layers: Layers, rule: UpdateRule) -> None:
        self.library, self.dtype, self.n = library, dtype, len(layers.params)
        self.addresses = torch.tensor(
            [[tensor.data_ptr() for tensor in tensors] for tensors in layers[:4]]
        )
        self.numel = torch.tensor([param.numel() for param in layers.params])
        blocks = -(-self.numel // library.aida_block_size())
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
            coupled=0.0 if rule.decoupled_weight_decay else decay,
            decoupled=float(rule.lr) * decay if rule.decoupled_weight_decay else 0.0,
            sign=-1.0 if rule.maximize else 1.0,
            averages_stepsize=rule.layer_mean == "stepsize",
            threads=torch.get_num_threads(),
        )

    def coefficients(self, rule: UpdateRule, m_sq: Any, g_sq: Any, m_dot_g: Any) -> None:
        ones = torch.ones(self.n, dtype=torch.float64)
        self.alpha, self.beta = (c * ones for c in rule.coefficients(m_sq, g_sq, m_dot_g))

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


def _fused_dtype(param: Tensor, grad: Tensor, exp_avg: Tensor, v: Tensor) -> torch.dtype | None:
    """Give the dtype that the layer is updated in by the compiled code, None if it cannot be."""
    same = param.dtype == grad.dtype == exp_avg.dtype and param.dtype in _DTYPES
    if not same or not param.is_cpu or type(grad) is not Tensor:
        return None
    if param.is_neg() or grad.is_neg():  # memory that holds the negative of the values
        return None
    # All must lie in memory in one order, without gaps.
    vectors = [param, grad, exp_avg] + ([v] if v.ndim or not param.ndim else [])
    if all(vector.is_contiguous() for vector in vectors):
        return param.dtype
    dense = torch.empty_like(param, memory_format=torch.preserve_format).stride()
    return param.dtype if all(vector.stride() == dense for vector in vectors) else None


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
