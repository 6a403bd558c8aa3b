"""Half precision, torch.compile, memory, and trajectories of other people's optimizers."""

from collections import Counter

import pytest
import pytorch_optimizer
import reference
import torch
from parameters import KERNELS, each_kernel, each_optimizer
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from aida_lightning import optim
from aida_lightning.optim._kernels import loop


def gradients_of(shape, steps, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(shape, generator=generator)
    return [
        (scale * (common + torch.randn(shape, generator=generator))).to(dtype) for _ in range(steps)
    ]


@each_kernel
@each_optimizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_half_precision_follows_the_boxes_to_its_own_rounding(name, kernel, dtype, scale):
    start = torch.zeros(8, 8, dtype=dtype)
    gradients = gradients_of((8, 8), 10, dtype, scale)
    param = nn.Parameter(start.clone())
    optimizer = getattr(optim, name)([param], **kernel)
    for gradient in gradients:
        param.grad = gradient.clone()
        optimizer.step()
    (layer,) = reference.run(name, [start.double()], [[g.double()] for g in gradients])
    s, expected = optimizer.stepsize(param), layer.stepsize[-1]
    assert s.dtype == torch.float32
    torch.testing.assert_close(s.double(), expected, rtol=0.05, atol=0)
    assert (param.double() - layer.x[-1]).abs().max() < 0.05 * layer.x[-1].abs().max() + 1e-7


ROUNDED = [(name, kernel) for name in ("Aida", "AidaGrad", "LAida") for kernel in KERNELS]
# Without sums over layers the fused kernel squares the momentum before it is rounded.
ROUNDED += [("AdaBelief", "loop"), ("AdaBelief", "foreach")]


@pytest.mark.parametrize(("name", "kernel"), ROUNDED)
def test_the_statistic_is_that_of_the_momentum_as_it_is_rounded(name, kernel):
    param = nn.Parameter(torch.zeros(8, 8, dtype=torch.bfloat16))
    optimizer = getattr(optim, name)([param], **KERNELS[kernel])
    before = 0.0
    for gradient in gradients_of((8, 8), 3, torch.bfloat16):
        param.grad = gradient
        optimizer.step()
        m, g = optimizer.state[param]["exp_avg"].double(), gradient.double()
        sums = ((m * m).sum(), (g * g).sum(), (m * g).sum())
        alpha, beta = optimizer.track.function(*sums, k=2, xi=1e-20)
        square = (alpha * m + beta * g).square()
        square = square.mean() if optimizer.layer_mean == "statistic" else square
        expected = 0.999 * before + 0.001 * square + 1e-8
        before = optimizer.state[param]["exp_avg_sq"].double()
        torch.testing.assert_close(before, expected, rtol=1e-5, atol=0)


def test_in_torchs_convention_eps_would_vanish_and_the_statistic_would_not_decay():
    # torch keeps an optimizer's state in the parameter's dtype.
    assert torch.tensor(1e-8, dtype=torch.float16).item() == 0.0
    v = torch.tensor(1.0, dtype=torch.bfloat16)
    assert v.mul(0.999).item() == 1.0
    for dtype in (torch.float16, torch.bfloat16):
        param = nn.Parameter(torch.zeros(4, dtype=dtype))
        optimizer = optim.Aida([param])
        param.grad = torch.zeros_like(param)
        optimizer.step()
        assert optimizer.state[param]["exp_avg_sq"].tolist() == [torch.tensor(1e-8).item()] * 4
        optimizer.state[param]["exp_avg_sq"].fill_(1.0)
        optimizer.step()
        assert optimizer.state[param]["exp_avg_sq"].max().item() < 0.9995


@each_kernel
def test_xi_does_not_underflow_in_float16(kernel):
    param = nn.Parameter(torch.ones(4, dtype=torch.float16))
    optimizer = optim.Aida([param], k=3, **kernel)
    for gradient in (torch.zeros(4), torch.full((4,), 6e-8)):
        param.grad = gradient.half()
        optimizer.step()
        assert torch.isfinite(param).all()
    assert torch.tensor(1e-20, dtype=torch.float16).item() == 0.0


@each_kernel
@pytest.mark.parametrize("name", ["Aida", "LAida", "AdaBeliefL", "AdamPlus", "SETAdam"])
def test_torch_compile_takes_the_step_in_one_graph(name, kernel):
    torch.compiler.reset()
    results = []
    for compiled in (False, True):
        params = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(5))]
        optimizer = getattr(optim, name)(params, lr=0.01, weight_decay=0.1, **kernel)
        counter = CompileCounter()
        step = torch.compile(optimizer.step, backend=counter) if compiled else optimizer.step
        for index in range(3):
            for param in params:
                param.grad = torch.linspace(-1, index + 1, param.numel()).view_as(param)
            step()
        results.append([p.detach().clone() for p in params])
    # Graphs of which each is a whole step: one for the first, which starts the state, and one more.
    assert 1 <= counter.frame_count <= 2
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


def peak_of_a_step(optimizer):
    """Measure the most bytes that one step holds beside what was there, by the allocator's log."""
    with torch.profiler.profile(profile_memory=True) as profile:
        optimizer.step()
    events = [
        event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    assert events, "the allocator's log is empty"
    held, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@each_optimizer
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_loop_holds_at_most_one_layer_beside_the_state(name, weight_decay):
    params = [nn.Parameter(torch.ones(256, 256)) for _ in range(3)]
    optimizer = getattr(optim, name)(params, weight_decay=weight_decay, foreach=False)
    for _ in range(2):
        for param in params:
            param.grad = torch.randn_like(param)
        peak = peak_of_a_step(optimizer) if optimizer.state else optimizer.step()
    layer = params[0].numel() * 4
    assert peak <= layer + 1024, f"{peak / layer:.2f} layers"


@each_optimizer
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_of_a_large_layer_the_loop_holds_at_most_one_block(name, weight_decay):
    param = nn.Parameter(torch.ones(4 * loop.BLOCK + 1))
    optimizer = getattr(optim, name)([param], weight_decay=weight_decay, foreach=False)
    for _ in range(2):
        param.grad = torch.randn_like(param)
        peak = peak_of_a_step(optimizer) if optimizer.state else optimizer.step()
    block = loop.BLOCK * 4
    assert peak <= 1.01 * block, f"{peak / block:.2f} blocks"


@each_optimizer
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("size", [64, 300, 512], ids=["small", "one block", "several"])
def test_a_channels_last_layer_takes_no_more_than_a_contiguous_one(name, weight_decay, size):
    x = torch.ones(size, size, 3, 3).to(memory_format=torch.channels_last)
    param = nn.Parameter(x)
    optimizer = getattr(optim, name)([param], weight_decay=weight_decay, foreach=False)
    for _ in range(2):
        param.grad = torch.randn_like(param)
        peak = peak_of_a_step(optimizer) if optimizer.state else optimizer.step()
    layer = min(x.numel(), 1.5 * loop.BLOCK) * 4
    assert peak <= 1.01 * layer + 1024, f"{peak / layer:.2f} layers or blocks"


class CountsSweeps(TorchDispatchMode):
    """Counts by name the operations that read or write tensors with many elements."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        is_large = any(isinstance(a, Tensor) and a.numel() > 1 << 16 for a in args)
        if is_large and not func.is_view and name != "empty_like":
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def test_the_loop_reads_a_block_in_nine_operations_for_every_number_of_projections():
    for k in (1, 2, 5):
        param = nn.Parameter(torch.ones(4 * loop.BLOCK + 1))
        optimizer = optim.Aida([param], k=k, foreach=False)
        for _ in range(2):
            param.grad = torch.randn_like(param)
            with CountsSweeps() as sweeps:
                optimizer.step()
        a_block = {"lerp_": 1, "dot": 3, "add": 2, "addcmul_": 2, "rsqrt": 1}
        assert sweeps.counts == {name: 4 * count for name, count in a_block.items()}


@each_optimizer
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_foreach_holds_at_most_the_layers_once_more_beside_the_state(name, weight_decay):
    params = [nn.Parameter(torch.ones(64, 64)) for _ in range(3)]
    optimizer = getattr(optim, name)(params, weight_decay=weight_decay, foreach=True)
    for _ in range(2):
        for param in params:
            param.grad = torch.randn_like(param)
        peak = peak_of_a_step(optimizer) if optimizer.state else optimizer.step()
    layers = sum(param.numel() for param in params) * 4
    assert peak <= layers + 2048, f"{peak / layers:.2f} times the layers"


@each_optimizer
def test_the_bytes_of_the_state(name):
    param = nn.Parameter(torch.ones(100, 100))
    optimizer = getattr(optim, name)([param])
    param.grad = torch.ones_like(param)
    optimizer.step()
    size = sum(value.numel() * value.element_size() for value in optimizer.state[param].values())
    vectors = 1 if name in ("LAdam", "LAdaBelief", "LAida") else 2
    numbers = 3 - vectors  # the step and, where it is one, the statistic
    assert size == vectors * 40_000 + numbers * 4


@pytest.mark.parametrize("k", [1, 2, 3])
def test_aida_goes_the_way_of_pytorch_optimizers(k):
    theirs, ours = (nn.Parameter(torch.zeros(6, 5)) for _ in range(2))
    # Their loop follows the paper; their other path and small eps do not.
    both = {
        theirs: pytorch_optimizer.Aida([theirs], lr=0.01, k=k, eps=1e-8, foreach=False),
        ours: optim.Aida([ours], lr=0.01, k=k, eps=1e-8),
    }
    for gradient in gradients_of((6, 5), 30):
        for param, optimizer in both.items():
            param.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_adabelief_goes_the_way_of_pytorch_optimizers():
    theirs, ours = (nn.Parameter(torch.zeros(6, 5)) for _ in range(2))
    both = {
        theirs: pytorch_optimizer.AdaBelief([theirs], lr=0.01, eps=1e-8, foreach=False),
        ours: optim.AdaBelief([ours], lr=0.01, eps=1e-8),
    }
    for gradient in gradients_of((6, 5), 30):
        for param, optimizer in both.items():
            param.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_adamplus_goes_the_way_of_torchs_adam_as_eps_vanishes():
    theirs, ours = (nn.Parameter(torch.zeros(6, 5)) for _ in range(2))
    both = {
        theirs: torch.optim.Adam([theirs], lr=0.01, eps=1e-30, weight_decay=0.1),
        ours: optim.AdamPlus([ours], lr=0.01, eps=1e-30, weight_decay=0.1),
    }
    for gradient in gradients_of((6, 5), 30):
        for param, optimizer in both.items():
            param.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
