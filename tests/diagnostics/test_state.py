import pytest
import torch
from torch import nn

from aida_lightning import (
    AdaBelief,
    AdaBeliefL,
    AdamL,
    AdamPlus,
    Aida,
    AidaGrad,
    LAdaBelief,
    LAdam,
    LAida,
    SETAdam,
    Yogi,
    stepsize,
)
from aida_lightning.diagnostics import (
    effective_learning_rate,
    has_stepsize,
    last_update,
    momentum,
    stepsize_ceiling,
    why_none,
)


def step(optimizer_class, steps=8, **options):
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))
    optimizer = optimizer_class([param], **options)
    for _ in range(steps):
        param.grad = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        before = param.detach().clone()
        optimizer.step()
    (group,) = optimizer.param_groups
    state = optimizer.state[param]
    return optimizer, group, state, param.detach() - before


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (Aida, {}), (Aida, {"k": 1}), (LAida, {}), (AdaBelief, {"eps": 1e-2}),
        (Yogi, {}), (torch.optim.Adam, {"eps": 1e-2}), (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {"weight_decay": 0.0}), (torch.optim.RAdam, {"eps": 1e-2}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_the_stepsize_is_what_multiplies_the_momentum_in_the_update(
    optimizer_class, options, steps
):
    optimizer, group, state, moved = step(optimizer_class, steps, **options)
    before = {name: value.clone() for name, value in state.items()}
    s = stepsize(optimizer, group, state)
    momentum = state["exp_avg"] / (1 - 0.9 ** state["step"].item())
    torch.testing.assert_close(moved, -group["lr"] * momentum * s, rtol=1e-8, atol=1e-15)
    assert all(torch.equal(before[name], state[name]) for name in state)


def test_nadams_stepsize_divides_by_its_denominator():
    optimizer, group, state, _ = step(torch.optim.NAdam)
    expected = 1 / ((state["exp_avg_sq"] / (1 - 0.999**8)).sqrt() + 1e-8)
    torch.testing.assert_close(stepsize(optimizer, group, state), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_nadams_effective_learning_rate_is_that_of_its_momentum(steps):
    """Its update is linear in momentum and gradient: the part of the momentum is left without."""
    optimizer, group, state, moved = step(torch.optim.NAdam, steps, lr=0.01)
    s = stepsize(optimizer, group, state)
    factor = effective_learning_rate(group, state)
    (param,) = group["params"]
    mu = 0.9 * (1 - 0.5 * 0.96 ** (steps * group["momentum_decay"]))
    of_gradient = 0.01 * (1 - mu) / (1 - state["mu_product"].item()) * param.grad * s
    torch.testing.assert_close(
        moved, -factor * state["exp_avg"] * s - of_gradient, rtol=1e-5, atol=1e-9
    )


def test_complex_layers_have_real_stepsizes():
    param = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    for optimizer in (torch.optim.Adam([param]), torch.optim.RAdam([param]), Aida([param])):
        param.grad = torch.ones_like(param)
        optimizer.step()
        s = stepsize(optimizer, optimizer.param_groups[0], optimizer.state[param])
        assert s.shape == (2, 2)
        assert not s.is_complex()


def test_optimizers_without_stepsizes_are_known_as_such():
    optimizer, group, state, _ = step(torch.optim.SGD, lr=0.1, momentum=0.9)
    assert not has_stepsize(optimizer)
    assert why_none(optimizer) == "one learning rate moves all elements of a layer"
    with pytest.raises(NotImplementedError, match="SGD has no adaptive stepsizes: one learning"):
        stepsize(optimizer, group, state)


def test_no_reason_is_made_up_for_an_optimizer_that_has_stepsizes_or_is_not_known():
    class Unknown(torch.optim.Optimizer):
        pass

    unknown = Unknown([torch.zeros(1)], {})
    assert not has_stepsize(unknown)
    assert why_none(unknown) is None
    with pytest.raises(NotImplementedError, match="no known adaptive stepsizes"):
        stepsize(unknown, unknown.param_groups[0], {})
    assert why_none(torch.optim.Adam([torch.zeros(1)])) is None


def test_the_momentum_is_the_first_tensor_of_the_names_in_use():
    for optimizer_class, options, name in (
        (torch.optim.Adam, {}, "exp_avg"),
        (torch.optim.SGD, {"momentum": 0.9}, "momentum_buffer"),
    ):
        optimizer, group, state, _ = step(optimizer_class, **options)
        assert momentum(optimizer, group, state) is state[name]
    optimizer, group, state, _ = step(torch.optim.SGD)
    assert momentum(optimizer, group, state) is None
    assert momentum(optimizer, group, {"momentum_buffer": {0.9: torch.zeros(1)}}) is None


def test_users_can_register_their_own_optimizer():
    class Mine(torch.optim.SGD):
        pass

    @stepsize.register
    def _(optimizer: Mine, group, state):
        return torch.full((2,), group["lr"])

    optimizer, group, state, _ = step(Mine, lr=0.25)
    assert has_stepsize(optimizer)
    assert why_none(optimizer) is None  # though there is a reason for SGD
    assert stepsize(optimizer, group, state).tolist() == [0.25, 0.25]


FAMILY = [Aida, LAida, AdaBelief, AdaBeliefL, AdamPlus, AdamL, LAdam, LAdaBelief, AidaGrad, SETAdam]


@pytest.mark.parametrize("optimizer_class", FAMILY)
@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "lr": 0.5},
        {"lr": torch.tensor(0.1, dtype=torch.float64), "maximize": True},
    ],
)
def test_the_familys_last_update_is_what_the_parameter_moved_by(optimizer_class, steps, options):
    optimizer, group, state, moved = step(optimizer_class, steps, **options)
    (param,) = group["params"]
    before = {name: value.clone() for name, value in state.items()}
    update = last_update(optimizer, group, state, param.detach())
    torch.testing.assert_close(update, moved, rtol=1e-8, atol=1e-15)
    assert all(torch.equal(before[name], state[name]) for name in state)
    # A scheduler that has changed the learning rate since does not matter.
    lr = group["lr"]
    group["lr"] = 100.0
    torch.testing.assert_close(
        last_update(optimizer, group, state, param.detach(), lr), moved, rtol=1e-8, atol=1e-15
    )


def test_the_last_update_of_complex_layers_is_real():
    param = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = Aida([param])
    param.grad = torch.tensor([1 + 2j, 3 - 1j])
    optimizer.step()
    update = last_update(
        optimizer, optimizer.param_groups[0], optimizer.state[param], param.detach()
    )
    torch.testing.assert_close(torch.view_as_complex(update), param.detach() - 1)


def test_the_last_update_of_other_optimizers_is_not_known():
    optimizer, group, state, _ = step(torch.optim.Adam)
    assert last_update(optimizer, group, state, group["params"][0]) is None


@pytest.mark.parametrize("optimizer_class", FAMILY)
@pytest.mark.parametrize("options", [{}, {"eps": 1e-2}, {"betas": (0.9, 0.5), "eps": 1e-4}])
def test_without_gradient_stepsizes_reach_the_ceiling_and_stay_there(optimizer_class, options):
    param = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = optimizer_class([param], **options)
    (group,) = optimizer.param_groups
    ceiling = stepsize_ceiling(optimizer, group)
    for _ in range(5):
        param.grad = torch.zeros_like(param)
        optimizer.step()
        s = stepsize(optimizer, group, optimizer.state[param])
        torch.testing.assert_close(s, torch.full_like(s, ceiling), rtol=1e-10, atol=0)


def test_other_optimizers_have_no_ceiling_that_is_known():
    for optimizer_class in (torch.optim.Adam, Yogi):
        optimizer, group, _, _ = step(optimizer_class)
        assert stepsize_ceiling(optimizer, group) is None


def test_the_effective_learning_rate_has_the_corrected_bias_of_the_momentum():
    for steps in (1, 8):
        _, group, state, _ = step(torch.optim.Adam, steps, lr=0.1)
        expected = 0.1 / (1 - 0.9**steps)
        assert effective_learning_rate(group, state) == pytest.approx(expected)
        assert effective_learning_rate(group, state, 0.2) == pytest.approx(2 * expected)
    tensor = effective_learning_rate(group, state, torch.tensor([0.1]))
    assert tensor.shape == ()
    assert tensor.item() == pytest.approx(expected)
    _, group, state, _ = step(torch.optim.RMSprop, lr=0.1)
    assert effective_learning_rate(group, state) == 0.1
