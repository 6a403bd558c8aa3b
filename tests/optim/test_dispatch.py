"""Layers of several dtypes, on several devices, and with state of another dtype."""

import pytest
import torch
from parameters import KERNELS, each_kernel, each_optimizer
from torch import nn

from aida_lightning import optim
from aida_lightning.optim._kernels import fused


def give_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def train(optimizer, params, step=None, steps=3):
    for seed in range(steps):
        give_gradients(params, seed)
        (step or optimizer.step)()
    return [param.detach().clone() for param in params]


@each_optimizer
@each_kernel
@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16])
def test_two_dtypes_in_a_group_are_both_updated_under_compile_too(name, kernel, other):
    def build():
        params = [nn.Parameter(torch.ones(2, 3, dtype=dtype)) for dtype in (torch.float32, other)]
        return getattr(optim, name)(params, lr=0.1, **kernel), params

    expected = train(*build())
    optimizer, params = build()
    torch._dynamo.reset()
    found = train(optimizer, params, torch.compile(optimizer.step, backend="eager"))
    assert all((param != 1).all() for param in found)
    torch.testing.assert_close(found, expected)


@each_optimizer
@each_kernel
@pytest.mark.parametrize("size", [4, 1 << 20], ids=["small", "in blocks"])
def test_the_default_device_does_not_matter(name, kernel, size):
    def build():
        params = [nn.Parameter(torch.ones(size, device="cpu")), nn.Parameter(torch.ones(2, 2))]
        return getattr(optim, name)(params, **kernel), params

    expected = train(*build())
    optimizer, params = build()

    def step_elsewhere():
        with torch.device("meta"):
            optimizer.step()

    torch.testing.assert_close(train(optimizer, params, step_elsewhere), expected, rtol=0, atol=0)


@each_optimizer
@each_kernel
def test_the_state_of_a_layer_that_was_cast_stays_as_it_is_beside_a_new_one(name, kernel):
    def build(options):
        params = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))]
        optimizer = getattr(optim, name)(params, **options)
        params[0].grad = torch.ones(4)
        optimizer.step()
        for param in params:
            param.grad = None
            param.data = param.data.double()
        return optimizer, params

    expected = train(*build(KERNELS["loop"]))
    optimizer, params = build(kernel)
    torch.testing.assert_close(train(optimizer, params), expected, rtol=1e-5, atol=1e-6)
    assert all((optimizer.state[param]["exp_avg"] != 0).all() for param in params)


@each_kernel
def test_steps_of_two_dtypes_count_for_their_own_layers(kernel):
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    optimizer = optim.AdamPlus(params, **kernel)
    params[0].grad = torch.ones(3)
    optimizer.step()
    torch.set_default_dtype(torch.float64)
    try:
        for param in params:
            param.grad = torch.ones(3, dtype=torch.float32)
        optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert [optimizer.state[param]["step"].item() for param in params] == [2, 1]
    torch.testing.assert_close(params[0].data, torch.full((3,), 0.998))
    torch.testing.assert_close(params[1].data, torch.full((3,), 0.999))


@pytest.mark.parametrize("name", ["LAdam", "LAdaBelief"])
def test_the_loop_takes_layers_of_two_devices_in_one_group(name):
    params = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, device="meta"))]
    optimizer = getattr(optim, name)(params, foreach=False)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert (params[0] != 1).all()
    assert all(state["step"].item() == 1 for state in optimizer.state.values())


@pytest.mark.parametrize("name", ["AdaBelief", "Aida", "LAida", "AdaBeliefL"])
def test_fused_leaves_state_of_another_dtype_to_the_loop(name):
    def build(**options):
        params = [nn.Parameter(torch.ones(300))]
        optimizer = getattr(optim, name)(params, **options)
        train(optimizer, params, steps=1)
        params[0].grad = None
        params[0].data = params[0].data.bfloat16()
        for key in ("exp_avg", "exp_avg_sq"):
            optimizer.state[params[0]][key] = optimizer.state[params[0]][key].bfloat16()
        return optimizer, params

    expected = train(*build(foreach=False))
    torch.testing.assert_close(train(*build(fused=True)), expected, rtol=0, atol=0)


def test_fused_takes_no_state_that_is_elsewhere_or_of_another_size():
    x, g, m, v = (torch.ones(4) for _ in range(4))
    step = torch.ones(())
    assert fused.takes(x, g, m, v, step)
    assert not fused.takes(x, g, m, torch.ones(()), step)
    assert fused.takes(x, g, m, torch.ones(()), step, "statistic")
    assert not fused.takes(x, g, m, torch.ones(4, dtype=torch.bfloat16), step)
    assert not fused.takes(x, g, torch.ones(3), v, step)
    assert not fused.takes(x, g, m, torch.ones(4, device="meta"), step)
    assert not fused.takes(x, g, torch.ones(4, device="meta"), v, step)
    half = (torch.ones(4, dtype=torch.bfloat16) for _ in range(3))
    assert fused.takes(*half, v, step)
    assert not fused.takes(x, g, m, v, step.bfloat16())
    assert not fused.takes(x, g, m, v, step.to("meta"))
