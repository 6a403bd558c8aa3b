"""The stepsizes of torch's optimizers, against the weights before and after each of ten steps."""

import pytest
import torch
from stepping import along_gradient, along_momentum, assert_moves, assert_near, real, steps

from aida_lightning import MSVAG, Fromage, Yogi, stepsize
from aida_lightning.diagnostics import effective_learning_rate, has_stepsize, momentum, why_none


def nadam(step):
    mu = 0.9 * (1 - 0.5 * 0.96 ** (step.t * step.group["momentum_decay"]))
    of_gradient = step.group["lr"] * (1 - mu) / (1 - step.state["mu_product"].item())
    return along_momentum(step) - of_gradient * step.grad * step.s


def decoupled(step):
    return along_momentum(step) - step.group["lr"] * step.group["weight_decay"] * step.before


def summed_up(step):
    """RMSprop with a momentum sums up what it would have moved by without."""
    earlier = real(step.earlier.get("momentum_buffer", torch.zeros_like(step.grad)))
    buffer = step.group["momentum"] * earlier + step.grad * step.s
    assert_near(step.momentum, buffer)
    return -step.rate * buffer


def with_earlier_updates(step):
    """Adadelta's last update was by the average of squared updates without the last one."""
    earlier = real(step.earlier.get("acc_delta", torch.zeros_like(step.grad)))
    ratio = (earlier + step.group["eps"]) / (real(step.state["acc_delta"]) + step.group["eps"])
    return along_gradient(step) * ratio.sqrt()


def scaled_and_clipped(step):
    (_, eps2), d = step.group["eps"], step.group["d"]
    scale = max(eps2, step.before.square().mean().sqrt().item())
    clip = max(1.0, (step.s * step.grad).square().mean().sqrt().item() / d)
    decay = step.group["lr"] * step.group["weight_decay"] * step.before
    return -step.rate * scale / clip * step.grad * step.s - decay


def along_sign(step):
    return -step.rate * step.s * real(step.state["prev"]).sign()


EXACT = [
    ("Adam", {}, along_momentum),
    ("Adam", {"amsgrad": True, "foreach": True}, along_momentum),
    ("Adam", {"fused": True, "maximize": True, "eps": 1e-2}, along_momentum),
    ("AdamW", {"amsgrad": True}, decoupled),
    ("AdamW", {"lr": torch.tensor(0.02, dtype=torch.float64)}, decoupled),
    ("NAdam", {}, nadam),
    ("NAdam", {"foreach": True, "maximize": True}, nadam),
    ("RAdam", {"betas": (0.9, 0.99)}, along_momentum),
    ("RAdam", {"foreach": True, "eps": 1e-2}, along_momentum),
    ("Adamax", {}, along_momentum),
    ("Adamax", {"foreach": True, "eps": 1e-2, "maximize": True}, along_momentum),
    ("Adagrad", {}, along_gradient),
    ("Adagrad", {"lr_decay": 0.1, "eps": 1e-2, "initial_accumulator_value": 0.1,
                 "weight_decay": 0.1}, along_gradient),
    ("Adagrad", {"fused": True, "maximize": True}, along_gradient),
    ("RMSprop", {}, along_gradient),
    ("RMSprop", {"centered": True, "eps": 1e-2, "weight_decay": 0.1}, along_gradient),
    ("RMSprop", {"centered": True, "momentum": 0.8, "foreach": True}, summed_up),
    ("RMSprop", {"momentum": 0.8, "maximize": True}, summed_up),
    ("Adadelta", {}, with_earlier_updates),
    ("Adadelta", {"rho": 0.7, "eps": 1e-3, "foreach": True}, with_earlier_updates),
    ("Adafactor", {}, scaled_and_clipped),
    ("Adafactor", {"lr": 0.5, "weight_decay": 0.1, "foreach": True}, scaled_and_clipped),
    ("Adafactor", {"eps": (0.01, 10.0), "maximize": True}, scaled_and_clipped),
    ("Adafactor", {"lr": torch.tensor(0.5, dtype=torch.float64)}, scaled_and_clipped),
    ("Rprop", {}, along_sign),
    ("Rprop", {"foreach": True, "maximize": True}, along_sign),
]  # fmt: skip


def rate(name, options):
    return {"lr": 0.02 if name != "Adadelta" else 1.0, **options}


@pytest.mark.parametrize(("name", "options", "expected"), EXACT)
def test_stepsizes_reproduce_the_update_that_the_weights_took(name, options, expected):
    optimizer_class = getattr(torch.optim, name)
    for step in steps(optimizer_class, **rate(name, options)):
        assert has_stepsize(step.optimizer)
        assert step.s.shape == step.before.shape
        assert_moves(step, expected(step))


@pytest.mark.parametrize(("name", "options", "expected"), EXACT)
def test_stepsizes_reproduce_the_update_in_float32(name, options, expected):
    optimizer_class = getattr(torch.optim, name)
    for step in steps(optimizer_class, torch.float32, **rate(name, options)):
        assert step.s.dtype == torch.float32
        assert_moves(step, expected(step))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [case for case in EXACT if case[0] != "Adafactor" and "fused" not in case[1]],
)
def test_stepsizes_reproduce_the_update_of_complex_weights(name, options, expected):
    optimizer_class = getattr(torch.optim, name)
    for step in steps(optimizer_class, torch.complex128, **rate(name, options)):
        assert step.s.shape == step.before.shape  # of the real and imaginary parts
        assert_moves(step, expected(step))


@pytest.mark.parametrize(
    "build", [torch.optim.Adafactor, pytest.importorskip("pytorch_optimizer").AdaFactor]
)
def test_stepsizes_of_higher_dimensions_are_factored_in_the_last_two(build):
    param = torch.nn.Parameter(torch.randn(2, 3, 4, dtype=torch.float64))
    optimizer = build([param])
    param.grad = torch.randn_like(param)
    squares = param.grad.square()
    optimizer.step()
    (group,) = optimizer.param_groups
    s = stepsize(optimizer, group, optimizer.state[param])
    for square, of_matrix in zip(squares, s, strict=True):
        v = square.mean(1, keepdim=True) @ square.mean(0, keepdim=True) / square.mean()
        torch.testing.assert_close(of_matrix, v.rsqrt(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("optimizer_class", "options"), [(Yogi, {}), (MSVAG, {"betas": (0.8, 0.9)}), (MSVAG, {})]
)
def test_stepsizes_of_the_baselines_reproduce_their_updates(optimizer_class, options):
    for step in steps(optimizer_class, **options):
        if step.t > 1 or optimizer_class is not MSVAG:  # whose first step moves nothing
            assert_moves(step, along_momentum(step))
        else:
            assert not step.s.any()


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("Adam", {}, "exp_avg"), ("Adamax", {}, "exp_avg"),
        ("SGD", {"momentum": 0.9, "nesterov": True}, "momentum_buffer"), ("SGD", {}, None),
        ("RMSprop", {"momentum": 0.9}, "momentum_buffer"), ("RMSprop", {"centered": True}, None),
        ("Adagrad", {}, None), ("Adadelta", {}, None), ("Adafactor", {}, None),
        ("Rprop", {}, None), ("ASGD", {}, None),
    ],
)  # fmt: skip
def test_the_momentum_is_what_the_step_goes_along(name, options, found):
    for step in steps(getattr(torch.optim, name), count=2, **options):
        value = momentum(step.optimizer, step.group, step.state)
        assert value is (step.state[found] if found else None)


@pytest.mark.parametrize(
    ("optimizer_class", "reason"),
    [
        (torch.optim.SGD, "one learning rate"), (torch.optim.ASGD, "one learning rate"),
        (torch.optim.LBFGS, "one direction"), (torch.optim.SparseAdam, "sparse gradient"),
        (getattr(torch.optim, "Muon", None), "orthogonalized"), (Fromage, "one rate"),
    ],
)  # fmt: skip
def test_optimizers_without_stepsizes_say_why(optimizer_class, reason):
    if optimizer_class is None:
        pytest.skip("this torch has no Muon")
    optimizer = optimizer_class([torch.nn.Parameter(torch.ones(2, 2))])
    assert not has_stepsize(optimizer)
    assert reason in why_none(optimizer)


def test_stepsizes_of_an_optimizer_that_is_differentiated_have_no_graph():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([param], differentiable=True)
    x = param.clone()
    optimizer.param_groups[0]["params"] = [x]
    x.grad = (param * 2).requires_grad_()
    optimizer.step()
    state = optimizer.state[x]
    assert state["exp_avg_sq"].requires_grad
    assert not stepsize(optimizer, optimizer.param_groups[0], state).requires_grad


def test_the_effective_learning_rate_has_the_decay_of_adagrad_and_the_bound_of_adafactor():
    for t, step in enumerate(steps(torch.optim.Adagrad, lr=0.1, lr_decay=0.5)):
        assert step.rate == pytest.approx(0.1 / (1 + t // 4 * 0.5))
        rate = effective_learning_rate(step.group, step.state, 0.2, step.optimizer)
        assert rate == pytest.approx(2 * step.rate)
    for t, step in enumerate(steps(torch.optim.Adafactor, lr=0.5)):
        assert step.rate == pytest.approx(min(0.5, (t // 4 + 1) ** -0.5))
