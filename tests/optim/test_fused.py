"""The compiled kernel: what it takes, what it leaves to the loop, and how it fails."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from kernel_steps import build, layers_of, step
from torch import nn

from aida_lightning import AdaBelief, AdamPlus, Aida, LAida
from aida_lightning.optim import AdaBeliefL, SETAdam
from aida_lightning.optim._kernels import fused


def pair(shape, dtype=torch.float32, memory_format=torch.contiguous_format):
    torch.manual_seed(0)
    start = torch.randn(shape).to(dtype=dtype, memory_format=memory_format)
    return [nn.Parameter(start.clone(memory_format=torch.preserve_format)) for _ in range(2)]


def assert_alike(ours, loop, gradients, cls=Aida, **options):
    fused_one, loop_one = cls([ours], fused=True, **options), cls([loop], **options)
    for gradient in gradients:
        ours.grad, loop.grad = gradient, gradient
        fused_one.step()
        loop_one.step()
    torch.testing.assert_close(ours, loop, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [Aida, LAida, AdamPlus, SETAdam])
@pytest.mark.parametrize("size", [1, (1 << 14) - 1, 1 << 14, (1 << 14) + 1, 100_003])
def test_every_size_about_a_block_is_right(cls, size):
    ours, loop = pair((size,))
    assert_alike(ours, loop, [torch.randn(size) for _ in range(3)], cls, weight_decay=0.1)


def test_channels_last_is_swept_as_it_lies_in_memory():
    ours, loop = pair((2, 3, 4, 5), memory_format=torch.channels_last)
    gradient = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert fused.takes(ours, gradient, gradient, gradient, torch.ones(()))
    assert_alike(ours, loop, [gradient])


def test_layouts_that_differ_go_to_the_loop():
    ours, loop = pair((4, 5))
    gradient = torch.randn(5, 4).t()
    assert not fused.takes(ours, gradient, ours, ours, torch.ones(()))
    assert_alike(ours, loop, [gradient])
    ours, loop = pair((4, 5))
    expanded = torch.randn(1, 5).expand(4, 5)
    assert not fused.takes(ours, expanded, ours, ours, torch.ones(()))
    assert_alike(ours, loop, [expanded])


def test_float16_goes_to_the_loop():
    ours, loop = pair((4, 5), torch.float16)
    assert not fused.takes(ours, ours, ours, ours, torch.ones(()))
    assert_alike(ours, loop, [torch.randn(4, 5).half()])


def test_the_result_does_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            ours, _ = pair((300, 300))
            optimizer = Aida([ours], fused=True)
            for seed in range(3):
                ours.grad = torch.randn(300, 300, generator=torch.Generator().manual_seed(seed))
                optimizer.step()
            results.append(ours.detach().clone())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])


def test_the_sums_are_exact_where_momentum_and_gradient_nearly_agree():
    """The mean of (m - g)^2 at |m - g| / |g| = 1e-4, which sums in float32 would lose."""
    torch.manual_seed(0)
    gradient = torch.randn(40_000)
    param = nn.Parameter(torch.zeros(40_000))
    optimizer = LAida([param], fused=True, k=2, eps=1e-30)
    m = gradient + 1e-4 * torch.randn(40_000)
    param.grad = gradient.clone()
    optimizer.state[param] = {
        "step": torch.tensor(5.0), "exp_avg": m.clone(), "exp_avg_sq": torch.tensor(0.0),
    }  # fmt: skip
    optimizer.step()
    m, g = (0.9 * m.double() + 0.1 * gradient.double()), gradient.double()
    expected = 0.001 * (m - g).square().mean()  # cos(m, g) is 1 to 1e-8
    assert optimizer.state[param]["exp_avg_sq"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_missing_compiler_gives_one_warning_and_the_loop(tmp_path):
    code = """
import warnings, torch
from aida_lightning import Aida
param = torch.nn.Parameter(torch.ones(3)); param.grad = torch.ones(3)
twin = torch.nn.Parameter(torch.ones(3)); twin.grad = torch.ones(3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    optimizer = Aida([param], fused=True)
    optimizer.step(); optimizer.step()
loop = Aida([twin]); loop.step(); loop.step()
print(torch.equal(param, twin), [str(w.message) for w in caught if "fused" in str(w.message)])
"""
    environment = {"PATH": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "CXX": "no-such-compiler"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    same, _, messages = run.stdout.strip().partition(" ")
    assert same == "True"
    assert messages.count("falls back to the loop") == 1


def test_the_library_is_compiled_once_for_all_processes(tmp_path):
    code = """
from aida_lightning.optim._kernels.fused import _library
assert _library() is not None
"""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    libraries = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        libraries.append({p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.so")})
    assert len(libraries[0]) >= 1
    assert libraries[0] == libraries[1]


def test_nothing_is_warned_about_where_there_is_a_compiler():
    fused._library.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fused.is_available()
        ours, loop = pair((4, 5))
        assert_alike(ours, loop, [torch.randn(4, 5)])


def test_gradients_that_are_stored_negated_are_read_right():
    ours, loop = pair((3,))
    gradient = torch._neg_view(torch.ones(3))
    assert gradient.is_neg()
    assert_alike(ours, loop, [gradient])
    assert torch.equal(ours, loop)


def test_autograd_notices_that_the_parameters_changed():
    param = nn.Parameter(torch.ones(3))
    loss = (param * param).sum()
    param.grad = torch.ones(3)
    Aida([param], fused=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_momentum_the_residual_is_zero_with_every_kernel():
    for kernel in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        param = nn.Parameter(torch.zeros(1000))
        optimizer = AdaBelief([param], betas=(0.0, 0.999), **kernel)
        for seed in range(3):
            param.grad = torch.randn(1000, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
        assert torch.equal(optimizer.state[param]["exp_avg"], param.grad)
        assert optimizer.state[param]["exp_avg_sq"].max().item() < 1e-7


def test_other_devices_are_refused():
    param = nn.Parameter(torch.ones(3, device="meta"))
    param.grad = torch.ones(3, device="meta")
    optimizer = Aida([param], fused=True)
    with pytest.raises(RuntimeError, match=r"supported devices: \['cpu', 'cuda'\], got \['meta'\]"):
        optimizer.step()


@pytest.mark.parametrize("name", ["Aida", "LAida", "AdaBeliefL", "AdamPlus"])
def test_layers_run_by_run_get_what_they_get_sweep_by_sweep(name):
    torch.manual_seed(0)
    sizes = [300_000, 300_000, 10, 0, 700_000, 1]  # of four runs
    start = [torch.randn(size) for size in sizes]
    runs, sweeps = build(name, start, weight_decay=0.1), build(name, start, weight_decay=0.1)
    for _ in range(3):
        gradients = [torch.randn(size) for size in sizes]
        layers, rule = layers_of(runs, gradients)
        torch._foreach_add_(layers.steps, 1)
        with torch.no_grad():
            fused.step(layers, rule)
        step(fused, layers_of(sweeps, gradients))
    for ours, theirs in zip(runs.state.items(), sweeps.state.items(), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert all(torch.equal(ours[1][key], theirs[1][key]) for key in ours[1])


def test_a_step_of_any_number_of_layers_is_one_call(monkeypatch):
    calls, library = [], fused._library()

    class Counting:
        def aida_step(self, *arguments):
            calls.append(arguments)
            library.aida_step(*arguments)

    monkeypatch.setattr(fused, "_library", Counting)
    params = [nn.Parameter(torch.randn(100_000)) for _ in range(20)]
    for param in params:
        param.grad = torch.randn(100_000)
    for cls in (Aida, LAida, AdaBeliefL, AdamPlus):
        cls(params, fused=True).step()
    assert len(calls) == 4
