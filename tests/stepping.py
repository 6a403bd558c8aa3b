"""Steps of any optimizer on a small net, and what the package says of each of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aida_lightning import optim
from aida_lightning.diagnostics import effective_learning_rate, momentum, stepsize


@dataclass
class Step:
    """One layer at one step; the gradient is the one from before the step, turned by maximize."""

    optimizer: torch.optim.Optimizer
    group: dict[str, Any]
    state: dict[str, Any]
    earlier: dict[str, Any]  # the state before the step
    grad: Tensor
    before: Tensor
    after: Tensor

    @property
    def t(self):
        return int(self.state.get("step", self.group.get("step", self.group.get("k"))))

    @property
    def s(self):
        return real(stepsize(self.optimizer, self.group, self.state))

    @property
    def momentum(self):
        return real(momentum(self.optimizer, self.group, self.state))

    @property
    def rate(self):
        return effective_learning_rate(self.group, self.state, optimizer=self.optimizer)

    @property
    def moved(self):
        return self.after - self.before


def train(name, start, gradients, **options):
    """Train copies of some layers by gradients, a list per step, which must stay as they are."""
    params = [nn.Parameter(x.clone()) for x in start]
    optimizer = getattr(optim, name)(params, **options)
    for step in gradients:
        for param, gradient in zip(params, step, strict=True):
            param.grad = gradient.clone()
        optimizer.step()
        for param, gradient in zip(params, step, strict=True):
            same = torch.equal(param.grad.nan_to_num(1e9), gradient.nan_to_num(1e9))
            assert same, "the user's gradient was changed"
    return optimizer, params


def real(values):
    return torch.view_as_real(values) if values.is_complex() else values


def copied(state):
    return {k: v.clone() if type(v) is Tensor else v for k, v in state.items()}


def steps(build, dtype=torch.float64, count=10, wide=6, **options):
    """Yield the steps of each layer of a net that an optimizer is built for."""
    torch.manual_seed(0)
    if dtype.is_complex:
        net = nn.Sequential(nn.Linear(4, wide, dtype=dtype), nn.Linear(wide, 2, dtype=dtype))
    else:
        net = nn.Sequential(nn.Linear(4, wide), nn.Tanh(), nn.Linear(wide, 2)).to(dtype)
    params = [*net.parameters()]
    optimizer = build(params, **options)
    maximize = optimizer.param_groups[0].get("maximize", getattr(optimizer, "maximize", False))
    sign = -1 if maximize else 1
    for _ in range(count):
        x = torch.randn(16, 4, dtype=dtype)
        optimizer.zero_grad()
        (net(x) - x[:, :2].sin()).abs().square().mean().backward()
        before = [
            (sign * p.grad.clone(), copied(optimizer.state[p]), p.detach().clone()) for p in params
        ]
        optimizer.step()
        for p, (grad, earlier, x_before) in zip(params, before, strict=True):
            (group,) = optimizer.param_groups
            state = optimizer.state[p]
            held = copied(state)
            yield Step(
                optimizer, group, state, earlier, real(grad), real(x_before), real(p.detach())
            )
            for name, value in held.items():  # nothing of the state was changed
                if type(value) is Tensor:
                    assert torch.equal(value, state[name]), name


def assert_near(actual, expected, rtol=None, rounded=0.0):
    """Compare two tensors, relative to the norm of the first and to that of what was rounded."""
    eps = torch.finfo(actual.dtype).eps
    if rtol is None:
        rtol = 1e-6 if actual.dtype == torch.float64 else 1e-4
    error, length = (expected - actual).norm(), actual.norm()
    assert error <= rtol * length + eps * rounded, (error, length)


def assert_moves(step, expected, rtol=None):
    """Compare an update with the one that the weights took, which are rounded."""
    assert_near(step.moved, expected, rtol, step.before.norm())


def along_momentum(step):
    return -step.rate * step.momentum * step.s


def along_gradient(step):
    return -step.rate * (step.grad + step.group.get("weight_decay", 0) * step.before) * step.s
