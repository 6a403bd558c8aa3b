"""Stepsizes whose range is suppressed: SET-Adam, and the sums over v that they depend on."""

import math

import pytest
import reference
import torch
from parameters import each_kernel
from torch import nn

from aida_lightning import optim
from aida_lightning.optim._kernels.stepsizes import joined_sums, partial_sums, suppression


def train(cls, start, gradients, **options):
    param = nn.Parameter(start.clone())
    optimizer = cls([param], **options)
    for gradient in gradients:
        param.grad = gradient.clone()
        optimizer.step()
    return optimizer, param


def draw(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(5)]


@each_kernel
@pytest.mark.parametrize("tau", [0.0, 0.5, 0.9])
def test_every_tau_follows_the_equations(kernel, tau):
    start, *gradients = draw(6, 7)
    options = {"tau": tau, "eps": 1e-10, "lr": 0.01}
    optimizer, param = train(optim.SETAdam, start, gradients, **options, **kernel)
    (layer,) = reference.run("SETAdam", [start], [[g] for g in gradients], **options)
    torch.testing.assert_close(param.data, layer.x[-1], rtol=1e-12, atol=0)
    torch.testing.assert_close(optimizer.stepsize(param), layer.stepsize[-1], rtol=1e-12, atol=0)


@each_kernel
@pytest.mark.parametrize("size", [1e-11, 1e-6, 1e6, 1e15])
def test_squares_of_v_beyond_float32_are_no_matter(kernel, size):
    """From gradients of 1e-11 v is 1e-25; of 1e15 it is 1e27."""
    start, *gradients = draw(6, 7, dtype=torch.float32)
    gradients = [size * gradient for gradient in gradients]
    optimizer, param = train(optim.SETAdam, start, gradients, eps=1e-30, **kernel)
    (layer,) = reference.run("SETAdam", [start], [[g] for g in gradients], eps=1e-30)
    s = optimizer.stepsize(param).double()
    torch.testing.assert_close(s, layer.stepsize[-1], rtol=1e-5, atol=0)
    torch.testing.assert_close(param.double(), layer.x[-1], rtol=1e-5, atol=1e-7)


@each_kernel
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_layer_of_one_element_has_its_root_less_tau_times_it(kernel, shape):
    start, gradient = torch.zeros(shape), torch.full(shape, 3.0)
    optimizer, param = train(optim.SETAdam, start, [gradient], eps=1e-2, tau=0.25, **kernel)
    expected = torch.full(shape, 1 / (0.75 * math.sqrt(9 + 1e-2)))
    torch.testing.assert_close(optimizer.stepsize(param), expected)
    torch.testing.assert_close(param.data, -1e-3 * 3 * expected)


@each_kernel
def test_gradients_of_either_zero_move_nothing_at_the_ceiling(kernel):
    zeros = torch.tensor([0.0, -0.0])
    optimizer, param = train(optim.SETAdam, zeros, [zeros] * 2, eps=1e-4, **kernel)
    assert (param == 0).all()
    torch.testing.assert_close(optimizer.stepsize(param), torch.full((2,), 200.0))


@each_kernel
def test_an_infinite_statistic_counts_as_one_that_is_not_scaled(kernel):
    start, *gradients = draw(50, dtype=torch.float32)
    gradients[1][3] = 1e25  # of which the square is infinite
    optimizer, param = train(optim.SETAdam, start, gradients[:2], **kernel)
    v = optimizer.state[param]["exp_avg_sq"].double() / (1 - 0.999**2)
    w = (v + 1e-5).sqrt()
    expected = 1 / (w - 0.5 * w.min())
    torch.testing.assert_close(optimizer.stepsize(param).double(), expected, rtol=1e-5, atol=0)
    assert optimizer.stepsize(param)[3] == 0


@each_kernel
def test_the_equations_hold_of_complex_layers_as_of_pairs_of_numbers(kernel):
    start, *gradients = draw(6, 2)
    _, pairs = train(optim.SETAdam, start, gradients, **kernel)
    as_complex = torch.view_as_complex
    optimizer, param = train(
        optim.SETAdam, as_complex(start), [as_complex(g) for g in gradients], **kernel
    )
    torch.testing.assert_close(torch.view_as_real(param), pairs, rtol=1e-12, atol=0)
    assert optimizer.stepsize(param).shape == (6, 2)


@pytest.mark.parametrize("base", [optim.Aida, optim.AidaGrad, optim.AdaBelief])
def test_any_tracked_vector_can_have_it_with_every_kernel(base):
    class Suppressed(base):
        suppresses_range = True
        eps_in_denominator = False

    start, *gradients = draw(6, 7)
    kernels = ({"foreach": False}, {"foreach": True}, {"fused": True})
    options = {"weight_decay": 0.1, "lr": 0.1}
    (first, x), *others = (
        train(Suppressed, start, gradients, **options, **kernel) for kernel in kernels
    )
    assert not torch.equal(x, train(base, start, gradients, **options)[1])
    for optimizer, param in others:
        torch.testing.assert_close(param, x, rtol=1e-11, atol=0)
        s, expected = optimizer.stepsize(param), first.stepsize(x)
        torch.testing.assert_close(s, expected, rtol=1e-11, atol=0)


def test_parts_join_to_the_sums_over_the_layer():
    v = torch.rand(100, dtype=torch.float64)
    parts = [v[:1], v[1:40], v[:0], v[40:]]
    sums = joined_sums(torch.stack([torch.stack(partial_sums(part)) for part in parts]))
    expected = torch.stack((v.sum(), v.square().sum(), v.min()))
    torch.testing.assert_close(sums, expected, rtol=1e-14, atol=0)
    nothing = joined_sums(torch.stack(partial_sums(v[:0])).unsqueeze(0))
    assert nothing.tolist() == [0, 0, torch.inf]


@pytest.mark.parametrize("number", [torch.inf, torch.nan])
def test_what_overflowed_is_infinite_in_the_sums_and_nan_stays(number):
    sums = joined_sums(torch.stack(partial_sums(torch.tensor([1.0, number]))).unsqueeze(0))
    torch.testing.assert_close(sums[:2], torch.full_like(sums[:2], number), equal_nan=True)


def test_the_three_numbers_make_the_stepsizes():
    v = torch.rand(10, dtype=torch.float64)
    arguments = (v.mean(), v.square().mean(), v.min(), torch.tensor(0.1, dtype=torch.float64))
    unit, inner, outer = suppression(*(a.view(1) for a in arguments), eps=1e-3, tau=0.5)[0]
    w = (v * v.mean() ** 2 / v.square().mean() / 0.1 + 1e-3).sqrt()
    expected = 1 / (w - 0.5 * w.min())
    torch.testing.assert_close(unit / ((v + inner).sqrt() + outer), expected, rtol=1e-12, atol=0)
