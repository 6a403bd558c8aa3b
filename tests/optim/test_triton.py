"""The Triton kernel: in Triton's interpreter, compiled, and on a GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import reference
import torch
from devices import needs_gpu, no_waits
from kernel_steps import build, layers_of, step

from aida_lightning.optim._kernels import dispatch
from aida_lightning.optim._kernels import triton as kernel

OPTIMIZERS = sorted(reference.MEMBERS)
LAUNCHES = dict.fromkeys(OPTIMIZERS, 2)
LAUNCHES |= {"AdaBelief": 1, "AdamPlus": 1, "LAdaBelief": 3, "LAdam": 3, "LAida": 3}
INTERPRETED = Path(__file__).with_name("triton_on_device.py")


def test_triton_is_imported_when_it_is_asked_for_and_missed_in_plain_words():
    code = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch, aida_lightning
from aida_lightning.optim._kernels import dispatch
from aida_lightning.optim._kernels import triton as kernel
x = torch.ones(3)
try:
    kernel.takes(x, x, x, x, x[0])
except ModuleNotFoundError as error:
    print(error.name, "|", error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name, _, message = run.stdout.strip().partition(" | ")
    assert name == "triton"
    assert "needs the package triton, which is not installed" in message
    assert "`pip install triton`" in message


def test_the_kernel_agrees_with_the_boxes_in_tritons_interpreter():
    pytest.importorskip("triton", "3.4")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INTERPRETED)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=INTERPRETED.parents[2]
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]


def test_an_older_triton_is_refused_by_its_version(monkeypatch):
    triton = pytest.importorskip("triton", "3.4")
    monkeypatch.setattr(triton, "__version__", "3.3.1")
    kernel._sweeps.cache_clear()
    x = torch.ones(3)
    with pytest.raises(ImportError, match=r"needs triton 3\.4 .* or newer, got 3\.3\.1"):
        kernel.takes(x, x, x, x, x[0])


class DriverWithoutDevice:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch  # the compiled kernels are kept by device

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def compile_for(monkeypatch, tmp_path):
    """Return a function that compiles what a step would launch, by the way that a launch takes."""
    triton = pytest.importorskip("triton", "3.4")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    # Its name in triton up to 3.4 and since.
    active = "active" if "active" in vars(triton.runtime.driver) else "_active"
    compiled = []

    def compile_it(name, programs, arguments):
        function = getattr(kernel._sweeps(), name)
        chosen = {name: arguments[name] for name in function.arg_names}
        compiled.append(function.warmup(**chosen, grid=(programs,), num_warps=kernel._WARPS))

    def compile_step(name, capability, dtype, **options):
        monkeypatch.setattr(triton.runtime.driver, active, DriverWithoutDevice(capability))
        compiled.clear()
        x = torch.ones(5, dtype=dtype)
        step(kernel, layers_of(build(name, [x], **options), [x]))
        return list(compiled)

    monkeypatch.setattr(kernel, "_launch", compile_it)
    return compile_step


HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize(
    ("capability", "dtypes"), [(80, [torch.float32]), (90, [*HALVES, torch.float32, torch.float64])]
)
def test_every_sweep_compiles_to_machine_code(compile_for, capability, dtypes):
    names = [name for name in OPTIMIZERS if not name.endswith("Aida")]
    options = [(name, {"weight_decay": w}) for name in names for w in (0.0, 0.1)]
    options += [(name, {"k": k}) for name in ("Aida", "LAida") for k in range(4)]
    for dtype in dtypes:
        for name, chosen in options:
            sweeps = compile_for(name, capability, dtype, **chosen)
            assert len(sweeps) == LAUNCHES[name]
            for sweep in sweeps:
                assert sweep.metadata.target.arch == capability
                assert sweep.asm["cubin"].startswith(b"\x7fELF")


def test_whole_blocks_are_read_in_vectors_and_options_stay_in_double(compile_for):
    for name in ("Aida", "AdamL", "LAida"):
        for sweep in compile_for(name, 90, torch.float32):
            options = {"beta1", "beta2", "log_beta1", "lr", "eps", "xi"} & set(sweep.src.signature)
            assert options
            assert all(sweep.src.signature[option] == "fp64" for option in options)
            if sweep.src.fn.__name__ != "statistics":
                assert "ld.global.v4.b32" in sweep.asm["ptx"]
                assert "st.global.v4.b32" in sweep.asm["ptx"]


def gpu_problem(dtype, steps=5):
    generator = torch.Generator().manual_seed(0)
    chunk = kernel._CHUNK
    shapes = [(), (1,), (0,), (5, 7), (chunk - 1,), (chunk,), (chunk + 1,), (3 * chunk + 5,)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    gradients = [
        [1 + torch.randn(shape, generator=generator) for shape in shapes] for _ in range(steps)
    ]
    return [x.cuda().to(dtype) for x in start], [[g.cuda().to(dtype) for g in s] for s in gradients]


@needs_gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_on_a_gpu_the_kernel_agrees_with_the_loop(name):
    tolerances = {torch.float64: 1e-10, torch.float32: 2e-5}
    options = [
        {},
        {"weight_decay": 0.1, "maximize": True},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "lr": torch.tensor(0.01)},
    ]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        start, gradients = gpu_problem(dtype)
        for chosen in options:
            ours, loop = build(name, start, **chosen), build(name, start, **chosen)
            compare_steps(ours, loop, gradients, tolerances.get(dtype, 2e-2))


def compare_steps(ours, loop, gradients, tolerance):
    pairs = list(zip(*(o.param_groups[0]["params"] for o in (ours, loop)), strict=True))
    for grads in gradients:
        layers, rule = layers_of(ours, grads)
        assert all(kernel.takes(*layer, rule.layer_mean) for layer in zip(*layers[:5], strict=True))
        step(kernel, (layers, rule))
        for (_, param), grad in zip(pairs, grads, strict=True):
            param.grad = grad
        loop.step()
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        for key in ("exp_avg", "exp_avg_sq"):
            x, y = ours.state[a][key], loop.state[b][key]
            torch.testing.assert_close(x, y, rtol=10 * tolerance, atol=tolerance)


@needs_gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_on_a_gpu_a_step_launches_at_most_three_of_our_kernels_and_waits_for_none(
    name, monkeypatch
):
    launched, launch = [], kernel._launch
    start, gradients = gpu_problem(torch.float32)
    layers, rule = layers_of(build(name, start), gradients[0])
    step(kernel, (layers, rule))  # compiles
    monkeypatch.setattr(kernel, "_launch", lambda *args: (launched.append(args), launch(*args)))
    with no_waits("cuda"):
        step(kernel, (layers, rule))
    assert len(launched) == LAUNCHES[name]


def test_without_triton_a_gpus_layers_go_to_foreach_with_one_warning(monkeypatch):
    def missing(*vectors):
        raise ImportError("the Triton kernel needs the package triton")

    monkeypatch.setattr(kernel, "takes", missing)
    dispatch._warn_once.cache_clear()
    layer = torch.ones(3, device="meta")  # any device but the CPU goes this way
    with pytest.warns(
        RuntimeWarning, match="falls back to foreach: the Triton kernel needs"
    ) as seen:
        taken = [dispatch._compiled(*[layer] * 5, None) for _ in range(2)]
    assert taken == [False, False]
    assert len(seen) == 1
