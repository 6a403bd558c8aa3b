"""Steps of the compiled kernel on memory between guard pages, with states that do not fit.

Run as a script with the seeds to try. A read or a write past the memory of a tensor ends the
process with a segmentation fault. Each step must raise, or give what the loop gives.
"""

import ctypes
import mmap
import random
import sys

import torch
from torch import nn

from aida_lightning import optim
from aida_lightning.optim._partition import is_cut, layout_of, number_of

OPTIMIZERS = [
    *("Aida", "AidaGrad", "LAida", "AdaBelief", "AdaBeliefL", "LAdam", "AdamPlus", "SETAdam")
]
SHAPES = [(), (1,), (5,), (3, 4), (2, 3, 4), (0,), (1, 1), (40_000,)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
PARTITIONS = {
    "whole": lambda param: None,
    "rows": lambda param: "rows" if param.ndim else None,
    "halves": lambda param: 2 if param.ndim and len(param) % 2 == 0 else None,
    "uneven": lambda param: (1, len(param) - 1) if param.ndim and len(param) > 1 else None,
}
PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
KEPT = []  # the memory of tensors that are alive


class Subclass(torch.Tensor):
    """A tensor of another class."""


def guarded(tensor, rng):
    """Copy a tensor to memory that begins or ends at a page that may not be touched."""
    flat = tensor.detach().contiguous()
    size = flat.nbytes
    pages = max(-(-size // PAGE), 1)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    KEPT.append(memory)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (begin, begin + (pages + 1) * PAGE):
        assert LIBC.mprotect(ctypes.c_void_p(guard), PAGE, 0) == 0
    if not size:
        return flat.clone()
    offset = PAGE if rng.random() < 0.3 else (pages + 1) * PAGE - size
    copy = torch.frombuffer(memory, dtype=flat.dtype, count=flat.numel(), offset=offset)
    copy.copy_(flat.view(-1))
    return copy.view(flat.shape)


def changed(tensor, rng):
    """Give a tensor that does not fit in the place of another."""
    ways = {
        "longer": lambda: torch.rand(tensor.numel() + rng.randint(1, 9)).to(tensor.dtype),
        "shorter": lambda: torch.rand(max(tensor.numel() - 1, 0)).to(tensor.dtype),
        "scalar": lambda: torch.rand(()).to(tensor.dtype),
        "another dtype": lambda: tensor.to(rng.choice(DTYPES)),
        "another shape": lambda: tensor.reshape(-1, 1).clone(),
        "gaps": lambda: torch.rand(2 * tensor.numel()).to(tensor.dtype)[::2].view(tensor.shape),
        "expanded": lambda: torch.rand(()).to(tensor.dtype).expand(tensor.shape),
        "transposed": lambda: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor,
        "offset": lambda: torch.rand(tensor.numel() + 3).to(tensor.dtype)[3:].view(tensor.shape),
        "subclass": lambda: tensor.clone().as_subclass(Subclass),
        "negated": lambda: torch._neg_view(tensor.clone()),
        "sparse": lambda: tensor.to_sparse(),
    }
    return ways[rng.choice(sorted(ways))]()


def problem(rng):
    """Give an optimizer's name, its partition, and layers of which some do not fit."""
    name, dtype = rng.choice(OPTIMIZERS), rng.choice(DTYPES)
    partition = PARTITIONS[rng.choice(["whole", "whole", "whole", "rows", "halves", "uneven"])]
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    layers = []
    for _ in range(rng.randint(1, 3)):
        shape = rng.choice(SHAPES)
        averaged = getattr(optim, name).layer_mean == "statistic"
        layout = layout_of(partition, torch.empty(shape))
        per_layer = (number_of(layout),) if is_cut(layout) else ()
        tensors = {
            "param": torch.rand(shape).to(dtype),
            "grad": torch.rand(shape).to(dtype),
            "exp_avg": torch.rand(shape).to(dtype),
            "exp_avg_sq": torch.rand(per_layer if averaged else shape).to(wide) + 0.1,
        }
        for key in rng.sample(sorted(tensors), k=rng.choice([0, 0, 1, 1, 2])):
            tensors[key] = changed(tensors[key], rng)
        layers.append(tensors)
    if len(layers) > 1 and rng.random() < 0.2:  # two layers in one memory
        one = layers[0]["exp_avg"]
        inside = plain(one) and one.ndim > 0 and len(one) > 1 and rng.random() < 0.5
        layers[1]["exp_avg"] = one[1:] if inside else one
    return name, partition, layers


def step(name, partition, layers, place, **kernel):
    """Take a step; give what it changed, or the error."""
    try:
        placed = {}  # by identity, so that what was shared stays so
        for tensors in layers:
            for tensor in tensors.values():
                placed[id(tensor)] = place(tensor)
        params = [nn.Parameter(placed[id(t["param"])], requires_grad=False) for t in layers]
        optimizer = getattr(optim, name)(params, partition=partition, **kernel)
        for param, tensors in zip(params, layers, strict=True):
            param.grad = placed[id(tensors["grad"])]
            optimizer.state[param] = {
                "step": torch.tensor(3.0),
                "exp_avg": placed[id(tensors["exp_avg"])],
                "exp_avg_sq": placed[id(tensors["exp_avg_sq"])],
            }
        optimizer.step()
        return [param.detach().as_subclass(torch.Tensor).clone() for param in params]
    except Exception as error:
        return error


def plain(tensor):
    """Tell whether guard pages can be put about a tensor's memory without changing what it is."""
    return (
        type(tensor) is torch.Tensor
        and tensor.layout is torch.strided
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


def try_seed(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    name, partition, layers = problem(rng)
    expected = step(name, partition, layers, lambda t: t.clone() if plain(t) else t, foreach=False)
    torch.manual_seed(seed)
    name, partition, layers = problem(random.Random(seed))
    found = step(name, partition, layers, lambda t: guarded(t, rng) if plain(t) else t, fused=True)
    if isinstance(found, Exception):
        return "raised"
    if isinstance(expected, Exception):
        raise AssertionError(f"seed {seed}: the loop raises {expected!r}, the kernel does not")
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3, equal_nan=True)
    return "equal"


if __name__ == "__main__":
    first, last = map(int, sys.argv[1:])
    outcomes = []
    for seed in range(first, last):
        print(seed, file=sys.stderr, flush=True)  # which one it was that crashed
        outcomes.append(try_seed(seed))
        KEPT.clear()
    print(outcomes.count("raised"), outcomes.count("equal"))
