"""No address of memory that is not what it is taken for reaches compiled code."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from parameters import each_kernel, each_optimizer
from torch import nn
from torch._inductor import codecache

from aida_lightning import Aida, LAida, optim
from aida_lightning.optim._kernels import fused
from aida_lightning.optim._kernels.layers import Layers
from aida_lightning.optim._kernels.memory import overlap

TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made as Linux has them")
def test_no_state_whatever_makes_the_compiled_kernel_leave_its_memory():
    run = subprocess.run(
        [sys.executable, "-m", "optim.guarded", "0", "1000"],
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    raised, equal = map(int, run.stdout.split())
    assert raised > 200
    assert equal > 200


def trained(name, kernel, size=4):
    param = nn.Parameter(torch.ones(size))
    optimizer = getattr(optim, name)([param], **kernel)
    param.grad = torch.ones(size)
    optimizer.step()
    return optimizer, param


def snapshot(optimizer):
    return [
        (param.detach().clone(), {key: value.clone() for key, value in state.items()})
        for param, state in optimizer.state.items()
    ]


def assert_unchanged(optimizer, before):
    for (param, state), (other, others) in zip(optimizer.state.items(), before, strict=True):
        assert torch.equal(param, other)
        assert all(torch.equal(state[key], others[key]) for key in others)


@each_kernel
@each_optimizer
@pytest.mark.parametrize("forgotten", ["grad", "exp_avg", "exp_avg_sq"])
def test_a_layer_that_was_enlarged_in_part_is_refused_and_stays_as_it_is(name, kernel, forgotten):
    if forgotten == "exp_avg_sq" and getattr(optim, name).layer_mean == "statistic":
        pytest.skip("it has one number per layer")
    optimizer, param = trained(name, kernel)
    state = optimizer.state[param]
    param.data = torch.ones(50_000)
    if forgotten != "grad":
        param.grad = torch.ones(50_000)
    for key in {"exp_avg", "exp_avg_sq"} - {forgotten}:
        if state[key].ndim:
            state[key] = torch.zeros(50_000)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"cannot update a layer of the shape \[50000\]"):
        optimizer.step()
    assert_unchanged(optimizer, before)


@each_kernel
def test_a_layer_whose_state_lacks_a_part_is_refused(kernel):
    optimizer, param = trained("Aida", kernel)
    del optimizer.state[param]["exp_avg_sq"]
    with pytest.raises(RuntimeError, match="it lacks 'exp_avg_sq'"):
        optimizer.step()


class Wrapper(torch.Tensor):
    """A tensor whose elements are in another one, as those of quantized weights are."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def unwrapped(value):
            return value.inner if isinstance(value, cls) else value

        tree = torch.utils._pytree.tree_map(unwrapped, (args, kwargs or {}))
        result = function(*tree[0], **tree[1])
        if function is torch.ops.aten.detach.default:
            return cls(result)
        return args[0] if function._schema.name.endswith("_") else result


def test_a_parameter_whose_memory_is_elsewhere_goes_to_the_loop():
    params = [nn.Parameter(Wrapper(torch.ones(3))), nn.Parameter(torch.ones(3))]
    for param in params:
        optimizer = Aida([param], fused=param is params[0], foreach=False)
        param.grad = torch.full((3,), 2.0)
        optimizer.step()
    assert torch.equal(params[0].inner, params[1])


def test_layers_that_share_memory_are_updated_one_after_the_other():
    def build(**options):
        whole = torch.ones(100_000)
        params = [nn.Parameter(whole[:60_000]), nn.Parameter(whole[40_000:])]
        for index, param in enumerate(params):
            param.grad = torch.full_like(param, index + 1.0)
        Aida(params, **options).step()
        return whole

    assert torch.equal(build(fused=True), build(foreach=False))


def test_memory_overlaps_where_any_of_what_is_written_does():
    def layers(**changed):
        tensors = {name: [torch.ones(4), torch.ones(4)] for name in ("x", "g", "m", "v")} | changed
        return Layers(*tensors.values(), steps=[], numels=[4, 4], kept={})

    assert not overlap(layers())
    shared, buffer = torch.ones(4), torch.ones(8)
    assert not overlap(layers(g=[shared, shared]))  # which is only read
    assert not overlap(layers(m=[buffer[:4], buffer[4:]]))
    assert overlap(layers(m=[buffer[:4], buffer[3:7]]))
    assert overlap(layers(x=[shared, torch.ones(4)], m=[torch.ones(4), shared]))
    assert overlap(layers(v=[shared, shared]))
    assert not overlap(layers(**dict.fromkeys("xgmv", [torch.ones(0)] * 2)))


@each_kernel
def test_an_error_in_the_second_group_changes_nothing_of_the_first(kernel):
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = LAida([{"params": [param]} for param in params], **kernel)
    for param in params:
        param.grad = torch.ones(3)
    optimizer.step()
    before = snapshot(optimizer)
    params[1].grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert_unchanged(optimizer, before)


@each_kernel
@each_optimizer
def test_a_gradient_that_is_conjugated_lazily_is_taken_as_it_is(name, kernel):
    def step(conjugate):
        param = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
        factor = torch.tensor([2 - 1j, 1j])
        param.grad = torch.autograd.grad((param.conj() * factor).real.sum(), param)[0]
        assert param.grad.is_conj() == (torch.is_complex(param) and param.grad.is_conj())
        if conjugate:
            param.grad = param.grad.conj().resolve_conj().conj()
            assert param.grad.is_conj()
        else:
            param.grad = param.grad.resolve_conj()
        optimizer = getattr(optim, name)([param], lr=0.1, **kernel)
        optimizer.step()
        return param.detach()

    assert torch.equal(step(True), step(False))


def test_the_text_that_names_the_compiled_code_has_the_cpus_features(monkeypatch):
    compiled = []

    def load_async(source, **options):
        compiled.append(source)
        return lambda: SimpleNamespace(aida_step=SimpleNamespace())

    monkeypatch.setattr(codecache.CppCodeCache, "load_async", load_async)
    for features in ("one", "another", "one"):
        monkeypatch.setattr(fused, "cpu_features", lambda features=features: features)
        fused._library.__wrapped__()
    assert compiled[0] == compiled[2] != compiled[1]
    assert compiled[0].endswith("// one\n")


def test_what_the_cpu_is_called_has_its_instruction_sets():
    features = fused.cpu_features()
    if sys.platform == "linux":
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        assert len(features) > 20
        assert features.split()[-1] in flags
