"""A step on the CPU and on a GPU: what it gives, what it waits for, and what it holds."""

import pytest
import reference
import torch
from devices import Transfers, each_device, fake_gpu, needs_gpu, no_waits
from parameters import each_kernel, each_optimizer
from torch import nn

from aida_lightning import optim

SHAPES = [(33, 5), (), (7,)]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


def problem(device, dtype=torch.float32, steps=4):
    generator = torch.Generator("cpu").manual_seed(0)

    def draw():
        return [torch.randn(shape, generator=generator) for shape in SHAPES]

    common = draw()
    gradients = [
        [(c + g).to(device, dtype) for c, g in zip(common, draw(), strict=True)]
        for _ in range(steps)
    ]
    # Of larger parameters halves would lose the small steps.
    return [torch.zeros(shape, dtype=dtype, device=device) for shape in SHAPES], gradients


def build(name, start, **options):
    params = [nn.Parameter(x.clone()) for x in start]
    return getattr(optim, name)(params, **options), params


def take_step(optimizer, params, grads):
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()


@each_device
@each_kernel
@each_optimizer
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_steps_follow_the_box(device, kernel, name, dtype):
    start, gradients = problem(device, dtype)
    optimizer, params = build(name, start, **kernel)
    for grads in gradients:
        take_step(optimizer, params, grads)
    on_host = [[x.cpu() for x in tensors] for tensors in (start, *gradients)]
    tolerance = TOLERANCES[dtype]
    for param, layer in zip(params, reference.run(name, on_host[0], on_host[1:]), strict=True):
        s = optimizer.stepsize(param).double().cpu()
        torch.testing.assert_close(s, layer.stepsize[-1], rtol=tolerance, atol=0)
        x, expected = param.detach().double().cpu(), layer.x[-1]
        assert (x - expected).norm() <= 2 * tolerance * expected.norm()


OPTIONS = [
    {},
    {"weight_decay": 0.1, "maximize": True},
    {"weight_decay": 0.1, "decoupled_weight_decay": True},
]


@each_device
@each_kernel
@each_optimizer
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_step_waits_for_no_gpu(device, kernel, name, options):
    start, gradients = problem(device)
    optimizer, params = build(name, start, **kernel, **options)
    take_step(optimizer, params, gradients[0])  # makes the state
    with no_waits(device):
        for grads in gradients[1:]:
            take_step(optimizer, params, grads)


def fake_step(monkeypatch, name, **options):
    """Take a step on tensors that say that they are on a GPU, and return its transfers."""
    with fake_gpu(monkeypatch):
        start = [torch.empty(shape, device="cuda") for shape in SHAPES]
        optimizer, params = build(name, start, **options)
        take_step(optimizer, params, [torch.empty_like(x) for x in start])  # makes the state
        with Transfers() as transfers:
            optimizer.step()
    return transfers


@each_optimizer
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_step_of_torchs_operations_would_wait_for_no_gpu(name, foreach, options, monkeypatch):
    assert fake_step(monkeypatch, name, foreach=foreach, **options).waits == []


@pytest.mark.parametrize("k", [0, 1])
def test_no_number_of_projections_would_have_a_step_wait_for_a_gpu(k, monkeypatch):
    assert fake_step(monkeypatch, "Aida", foreach=True, k=k).waits == []


@each_optimizer
@pytest.mark.parametrize("foreach", [False, True])
def test_a_graph_would_capture_no_copy_from_the_host(name, foreach, monkeypatch):
    """At a replay the memory that it was copied from would hold something else."""
    assert fake_step(monkeypatch, name, foreach=foreach, capturable=True).copies == []


@needs_gpu
@each_optimizer
@pytest.mark.parametrize("foreach", [False, True])
def test_a_captured_step_replays_with_new_gradients_and_rates(name, foreach):
    device = "cuda"
    start, gradients = problem(device, steps=6)
    results = []
    for captured in (False, True):
        lr = torch.tensor(1e-3, device=device)
        optimizer, params = build(name, start, lr=lr, foreach=foreach, capturable=True)
        buffers = [torch.zeros_like(x) for x in start]
        graph = None
        for index, grads in enumerate(gradients):
            torch._foreach_copy_(buffers, grads)
            lr.fill_(1e-3 / (1 + index))
            if index == 3 and captured:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):  # which runs nothing yet
                    take_step(optimizer, params, buffers)
                # What was pinned while the graph was captured is somebody else's from now on.
                others = [torch.full((n,), 7.0).double().pin_memory() for n in range(1, 64)]
                assert others
            graph.replay() if graph else take_step(optimizer, params, buffers)
        results.append([param.detach().clone() for param in params])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


@needs_gpu
@each_optimizer
@pytest.mark.parametrize(
    ("kernel", "layers"),
    [({"foreach": True}, 3.05), ({"foreach": False}, 1.05), ({"fused": True}, 0.05)],
    ids=["foreach", "loop", "fused"],
)
def test_the_peak_of_a_gpus_memory_is_as_the_documentation_says(name, kernel, layers):
    """In multiples of one layer, of three of the same size."""
    params = [nn.Parameter(torch.randn(1 << 21, device="cuda")) for _ in range(3)]
    optimizer = getattr(optim, name)(params, weight_decay=0.1, **kernel)
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra <= layers * params[0].nbytes
