"""The ten members, with every kernel, against the paper's boxes."""

import pytest
import reference
import torch
from parameters import KERNELS, OPTIMIZERS, each_kernel, each_optimizer
from stepping import train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from aida_lightning import optim
from aida_lightning.optim._kernels import loop
from aida_lightning.optim._kernels import rule as kernel_rule
from aida_lightning.optim._kernels.tracking import Track

PROJECTING = ["Aida", "LAida"]
AVERAGED_STATISTIC = ["LAdaBelief", "LAdam", "LAida"]
SHAPES = [(), (1,), (0,), (5, 7), (3, 2, 4), (2, 3, 3, 3)]


def make_problem(dtype, steps=6, seed=0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)

    def draw(shape):
        # In float32 first, so that every dtype gets the same problem.
        return torch.randn(shape, generator=generator).to(dtype)

    start = [draw(shape) for shape in shapes]
    # A common part, so that momentum predicts something, and scales far apart.
    common = [draw(shape) for shape in shapes]
    gradients = [
        [10.0 ** (layer - 3) * (c + draw(c.shape)) for layer, c in enumerate(common)]
        for _ in range(steps)
    ]
    return start, gradients


def assert_follows_the_paper(name, start, gradients, *, rtol, options, kernel):
    optimizer, params = train(name, start, gradients, **kernel, **options)
    history = reference.run(name, start, gradients, **options)
    for param, layer in zip(params, history, strict=True):
        if not param.numel():
            continue
        torch.testing.assert_close(param.double(), layer.x[-1], rtol=rtol, atol=rtol / 10)
        state = optimizer.state[param]
        torch.testing.assert_close(state["exp_avg"].double(), layer.m[-1], rtol=rtol, atol=rtol)
        torch.testing.assert_close(
            state["exp_avg_sq"].double(), layer.v[-1], rtol=10 * rtol, atol=0
        )
        torch.testing.assert_close(
            optimizer.stepsize(param).double(), layer.stepsize[-1], rtol=10 * rtol, atol=0
        )


@each_kernel
@each_optimizer
@pytest.mark.parametrize(
    "decay",
    [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        {"weight_decay": 0.1, "maximize": True},
    ],
    ids=["no decay", "coupled", "decoupled", "maximize"],
)
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_each_member_follows_its_box(name, kernel, decay, dtype, rtol):
    start, gradients = make_problem(dtype)
    options = {"lr": 0.05, "betas": (0.8, 0.99), **decay}
    assert_follows_the_paper(name, start, gradients, rtol=rtol, options=options, kernel=kernel)


@each_optimizer
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("decoupled", [False, True])
def test_a_layer_in_blocks_follows_the_boxes_too(name, dtype, rtol, decoupled, monkeypatch):
    monkeypatch.setattr(loop, "BLOCK", 8)
    options = {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": decoupled}
    start, gradients = make_problem(dtype, shapes=[(5, 7), (8,), (9,), (2, 3, 2, 3), (7,)])
    start[3] = start[3].to(memory_format=torch.channels_last)
    for step in gradients[::2]:  # in other steps the layout differs from the layer's
        step[3] = step[3].to(memory_format=torch.channels_last)
    assert_follows_the_paper(
        name, start, gradients, rtol=rtol, options=options, kernel={"foreach": False}
    )


@each_kernel
@pytest.mark.parametrize("name", PROJECTING)
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 9])
def test_every_number_of_projections_follows_the_boxes(name, kernel, k):
    start, gradients = make_problem(torch.float64, seed=k)
    assert_follows_the_paper(
        name, start, gradients, rtol=1e-12, options={"k": k, "lr": 0.01}, kernel=kernel
    )


@each_kernel
@each_optimizer
@pytest.mark.parametrize("eps", [1e-18, 1e-12, 1e-3])
def test_small_gradients_and_every_eps_follow_the_boxes(name, kernel, eps):
    start, gradients = make_problem(torch.float32)
    gradients = [[1e-6 * g for g in step] for step in gradients]
    assert_follows_the_paper(name, start, gradients, rtol=2e-5, options={"eps": eps}, kernel=kernel)


@each_kernel
def test_a_gradient_that_vanishes_follows_the_boxes(kernel):
    """Its coefficient squared, 4.6e39, is beyond the numbers that torch's operations take."""
    gradients = [[torch.full((3,), size, dtype=torch.float64)] for size in (1e11, 1e-10)]
    start = [torch.ones(3, dtype=torch.float64)]
    assert_follows_the_paper("Aida", start, gradients, rtol=1e-12, options={"k": 1}, kernel=kernel)


@each_kernel
def test_groups_keep_their_own_options(kernel):
    start, gradients = make_problem(torch.float64)
    params = [nn.Parameter(x.clone()) for x in start]
    groups = [
        {"params": params[:3], "k": 1, "lr": 0.1},
        {"params": params[3:], "betas": (0.5, 0.9), "weight_decay": 0.1},
    ]
    optimizer = optim.Aida(groups, k=3, **kernel)
    for step in gradients:
        for param, gradient in zip(params, step, strict=True):
            param.grad = gradient
        optimizer.step()
    first = reference.run("Aida", start[:3], [s[:3] for s in gradients], k=1, lr=0.1)
    second = reference.run(
        "Aida", start[3:], [s[3:] for s in gradients], k=3, betas=(0.5, 0.9), weight_decay=0.1
    )
    for param, layer in zip(params, first + second, strict=True):
        torch.testing.assert_close(param.data, layer.x[-1], rtol=1e-12, atol=1e-12)


@each_kernel
@pytest.mark.parametrize("name", PROJECTING)
def test_no_projection_is_adabelief_without_its_second_eps(name, kernel):
    start, gradients = make_problem(torch.float64)
    options = {**kernel, "eps": 1e-2}
    _, ours = train(name, start, gradients, k=0, **options)
    base = optim.AdaBelief if name == "Aida" else optim.LAdaBelief

    class WithoutSecondEps(base):
        eps_in_denominator = False

    params = [nn.Parameter(x.clone()) for x in start]
    optimizer = WithoutSecondEps(params, **options)
    for step in gradients:
        for param, gradient in zip(params, step, strict=True):
            param.grad = gradient
        optimizer.step()
    for a, b in zip(ours, params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_projections_change_nothing_on_one_element_layers_and_in_the_first_step(k):
    start, gradients = make_problem(torch.float64, shapes=[(), (1,), (1, 1)])
    without, with_k = (train("Aida", start, gradients, k=n) for n in (0, k))
    for a, b in zip(without[1], with_k[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)

    start, gradients = make_problem(torch.float64, steps=1)
    without, with_k = (train("Aida", start, gradients, k=n) for n in (0, k))
    for a, b in zip(without[1], with_k[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@each_kernel
@each_optimizer
@pytest.mark.parametrize("eps", [1e-8, 1e-4])
def test_no_stepsize_exceeds_the_ceiling(name, kernel, eps):
    start, gradients = make_problem(torch.float32, steps=30)
    gradients = [[1e-9 * g for g in step] for step in gradients]
    optimizer, params = train(name, start, gradients, eps=eps, **kernel)
    ceiling = reference.ceiling(name, 0.999, eps)
    largest = max(optimizer.stepsize(p).max().item() for p in params if p.numel())
    assert largest <= ceiling * (1 + 1e-6)
    if eps == 1e-8 and name != "SETAdam":
        assert ceiling == pytest.approx(316.2, abs=0.1)
    assert largest > 0.99 * ceiling or name in ("AdaBelief", "AdamPlus")


@pytest.mark.parametrize("kernel", ["loop", "foreach"])
def test_a_track_of_ones_own_trains_and_compiled_kernels_refuse_it(kernel):
    def projected(m_sq, g_sq, m_dot_g, *, k, xi):
        return m_dot_g / (m_sq + xi), 0.0 * g_sq

    class Projecting(optim.AidaGrad):
        track = Track(projected)

    start, gradients = make_problem(torch.float64)
    _, expected = train("AidaGrad", start, gradients, **KERNELS[kernel])
    params = [nn.Parameter(x.clone()) for x in start]
    optimizer = Projecting(params, **KERNELS[kernel])
    for step in gradients:
        for param, gradient in zip(params, step, strict=True):
            param.grad = gradient
        optimizer.step()
    torch.testing.assert_close(params, expected, rtol=1e-12, atol=1e-12)
    optimizer.param_groups[0].update(KERNELS["fused"], foreach=None)
    with pytest.raises(NotImplementedError, match="no compiled kernel tracks `projected`"):
        optimizer.step()


@each_kernel
@each_optimizer
def test_a_parameter_without_gradient_is_skipped(name, kernel):
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = getattr(optim, name)([used, unused], **kernel)
    used.grad = torch.ones(3)
    optimizer.step()
    assert unused not in optimizer.state
    assert torch.equal(unused.data, torch.ones(3))
    assert not torch.equal(used.data, torch.ones(3))


@each_kernel
@each_optimizer
def test_a_zero_gradient_moves_nothing_and_stays_finite(name, kernel):
    start = [torch.ones(4), torch.ones(2, 3), torch.ones(())]
    optimizer, params = train(name, start, [[torch.zeros_like(x) for x in start]] * 3, **kernel)
    for param, x in zip(params, start, strict=True):
        assert torch.equal(param.data, x)
        assert torch.isfinite(optimizer.stepsize(param)).all()


@each_kernel
@each_optimizer
def test_a_layer_with_nan_poisons_no_other(name, kernel):
    start, gradients = make_problem(torch.float32, shapes=[(3,), (4,), (2, 2)])
    for step in gradients:
        step[1][0] = torch.nan
    params = [nn.Parameter(x.clone()) for x in start]
    optimizer = getattr(optim, name)(params, **kernel)
    for step in gradients:
        for param, gradient in zip(params, step, strict=True):
            param.grad = gradient
        optimizer.step()
    assert torch.isfinite(params[0]).all()
    assert torch.isfinite(params[2]).all()
    assert not torch.isfinite(params[1]).all()


@each_kernel
@each_optimizer
def test_sums_beyond_the_range_of_float32_stay_finite(name, kernel):
    start = [torch.ones(4), torch.ones(2, 3)]
    signs = [[torch.full_like(x, 1e30 * (-1) ** t) for x in start] for t in range(4)]
    optimizer, params = train(name, start, signs, **kernel)
    for param in params:
        assert torch.isfinite(param).all()
        assert torch.isfinite(optimizer.stepsize(param)).all()


@each_optimizer
def test_sparse_gradients_are_refused_in_torchs_words(name):
    param = nn.Parameter(torch.ones(3))
    optimizer = getattr(optim, name)([param])
    param.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match=f"^{name} does not support sparse gradients$"):
        optimizer.step()


@each_optimizer
def test_the_state_is_named_as_torchs_and_half_as_large_with_an_averaged_statistic(name):
    start, gradients = make_problem(torch.float32, shapes=[(64, 64), (64,)])
    optimizer, params = train(name, start, gradients)
    adam = torch.optim.Adam([nn.Parameter(x.clone()) for x in start])
    for param, x in zip(adam.param_groups[0]["params"], start, strict=True):
        param.grad = x
    adam.step()

    def count(state):
        return sum(value.numel() for layer in state.values() for value in layer.values())

    elements = sum(x.numel() for x in start)
    assert set(optimizer.state[params[0]]) == {"step", "exp_avg", "exp_avg_sq"}
    averaged = name in AVERAGED_STATISTIC
    # Beside the vectors, a layer holds its step and, where averaged, the statistic.
    assert count(optimizer.state) == (elements + 4 if averaged else 2 * elements + 2)
    assert count(adam.state) == 2 * elements + 2
    assert optimizer.state[params[0]]["exp_avg_sq"].shape == (() if averaged else (64, 64))


class CountReductions(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "dot" or "norm" in name:
            outputs = len(args[0]) if "foreach" in name else 1
            self.count += outputs
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", [KERNELS["loop"], KERNELS["foreach"]])
@pytest.mark.parametrize("k", [0, 1, 2, 7])
def test_three_reductions_per_layer_whatever_k_is(k, kernel):
    start, gradients = make_problem(torch.float32, shapes=[(8, 8), (8,), (4, 8)])
    optimizer, params = train("Aida", start, gradients, k=k, **kernel)
    for param, gradient in zip(params, gradients[0], strict=True):
        param.grad = gradient
    with CountReductions() as reductions:
        optimizer.step()
    assert reductions.count == 3 * len(start)


def test_named_parameters_keep_their_names():
    layer = nn.Linear(3, 2)
    optimizer = optim.Aida(layer.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


def test_the_loop_is_the_default_on_the_cpu():
    optimizer = optim.Aida([torch.ones(1)])
    group = optimizer.param_groups[0]
    assert optimizer._kernel(group, group["params"]) == "loop"


def test_a_closure_gives_the_loss():
    param = nn.Parameter(torch.tensor([2.0]))
    optimizer = optim.Aida([param])

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0


def test_the_bias_correction_is_that_of_double_precision():
    optimizer = optim.Aida([torch.ones(1)], betas=(0.9, 0.999))
    rule = optimizer._rule(optimizer.param_groups[0])
    correction1, correction2 = rule.bias_corrections(torch.tensor(1.0))
    assert correction1 == pytest.approx(0.1, rel=1e-15)
    assert correction2 == pytest.approx(0.001, rel=1e-12)
    in_float32 = 1 - torch.tensor(0.999) ** torch.tensor(1.0)
    assert abs(in_float32.item() / 0.001 - 1) > 1e-6


def test_sums_that_overflow_become_finite_ones_that_vectors_can_have_and_nan_stays():
    inf, nan = torch.inf, torch.nan
    sums = kernel_rule.finite_sums(
        torch.tensor([[inf, inf, -inf], [inf, 4.0, 1e30], [inf, 0.0, 0.0], [nan, 2.0, 3.0]])
    )
    assert sums.dtype == torch.float64
    largest = torch.finfo(torch.float32).max
    assert sums[0].tolist() == [largest, largest, -largest]
    assert sums[1].tolist() == pytest.approx([1e60 / 4, 4, 1e30], rel=1e-6)
    assert sums[2].tolist() == [largest, 0, 0]
    assert sums[3, 0].isnan()
    assert sums[3, 1:].tolist() == [2, 3]


@each_kernel
def test_a_sum_that_overflows_alone_does_not_change_the_projection(kernel):
    """1e5 elements of 1e17: <g, g> exceeds float32, <m, m> and <m, g> do not."""
    gradient = torch.full((100_000,), 1e17)
    _, (param,) = train("AidaGrad", [torch.zeros(100_000)], [[gradient]], **kernel)
    torch.testing.assert_close(param.data, torch.full((100_000,), -1e-3), rtol=1e-4, atol=0)


@each_kernel
@pytest.mark.parametrize("xi", [1e-20, 1.0, 1e3])
def test_a_gradient_that_explodes_moves_nothing_far_whatever_xi_is(kernel, xi):
    generator = torch.Generator().manual_seed(0)
    gradients = [[size * torch.randn(1000, generator=generator)] for size in (1.0, 1e20)]
    _, (param,) = train("Aida", [torch.zeros(1000)], gradients, xi=xi, **kernel)
    assert param.abs().max() < 2


@each_kernel
@pytest.mark.parametrize("size", [1e15, 1e20, 1e25, 1e31, 1e36])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in OPTIMIZERS),
        *((name, {"k": k}) for name in PROJECTING for k in (1, 5, 10)),
    ],
)
def test_a_gradient_that_explodes_stops_a_layer_and_loses_nothing(name, kernel, size, options):
    start, gradients = make_problem(torch.float32, shapes=[(50,), (3, 4)])
    gradients[1] = [size * gradient for gradient in gradients[1]]
    optimizer, params = train(name, start, gradients, **kernel, **options)
    for param in params:
        assert not param.isnan().any()
        stepsize = optimizer.stepsize(param)
        assert (stepsize >= 0).all()
        assert size < 1e20 or (stepsize < 1e-10).any()


@each_kernel
def test_an_infinite_gradient_leaves_the_projection_of_other_elements(kernel):
    start, gradients = make_problem(torch.float32, shapes=[(50,)])
    gradients[1][0][3] = torch.inf
    optimizer, (param,) = train("AidaGrad", start, gradients[:2], **kernel)
    assert param.isfinite().sum() == 49
    assert not optimizer.stepsize(param).isnan().any()


@each_kernel
@pytest.mark.parametrize("name", ["AdamPlus", "AdamL", "LAdam", "SETAdam"])
def test_an_infinite_gradient_takes_one_element_with_it(name, kernel):
    start, gradients = make_problem(torch.float32, shapes=[(50,)])
    gradients[1][0][3] = torch.inf
    optimizer, (param,) = train(name, start, gradients, **kernel)
    assert param.isfinite().sum() == 49
    assert not optimizer.stepsize(param).isnan().any()
