import pytest
import torch
from torch import nn

from aida_lightning import AdaBelief, Aida, LAida, Yogi, stepsize
from aida_lightning.diagnostics import has_stepsize, mean_and_std


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
    with pytest.raises(NotImplementedError, match="SGD has no adaptive stepsizes"):
        stepsize(optimizer, group, state)


def test_users_can_register_their_own_optimizer():
    class Mine(torch.optim.SGD):
        pass

    @stepsize.register
    def _(optimizer: Mine, group, state):
        return torch.full((2,), group["lr"])

    optimizer, group, state, _ = step(Mine, lr=0.25)
    assert has_stepsize(optimizer)
    assert stepsize(optimizer, group, state).tolist() == [0.25, 0.25]


def test_a_spread_far_below_the_mean_is_not_lost():
    values = 300 + torch.linspace(-1e-2, 1e-2, 100_001)
    mean, std = mean_and_std(values).tolist()
    assert mean == pytest.approx(values.double().mean().item(), rel=1e-6)
    assert std == pytest.approx(values.double().std(correction=0).item(), rel=1e-4)
    assert mean_and_std(torch.tensor(7.0)).tolist() == [7.0, 0.0]
