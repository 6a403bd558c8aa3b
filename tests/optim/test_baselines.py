import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import reference
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from aida_lightning.optim import MSVAG, Fromage, Yogi

BASELINES = [Yogi, MSVAG, Fromage]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (5,), (4, 3), (2, 3, 2, 2)]
STEPS = 6

every_baseline = pytest.mark.parametrize("baseline", BASELINES, ids=lambda c: c.__name__)


def random_layers(
    dtype: torch.dtype = torch.float64, steps: int = STEPS
) -> tuple[list[Parameter], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    params = [Parameter(draw(shape)) for shape in SHAPES]
    return params, [[draw(shape) for shape in SHAPES] for _ in range(steps)]


def take_steps(
    optimizer: Optimizer, params: list[Parameter], gradients: list[list[Tensor]]
) -> list[list[Tensor]]:
    """Step once for each list of gradients; return the parameters after every step."""
    seen = []
    for step_gradients in gradients:
        for p, g in zip(params, step_gradients, strict=True):
            p.grad = g.clone()
        optimizer.step()
        seen.append([p.detach().clone() for p in params])
    return seen


def assert_follows(
    optimizer: Callable[..., Optimizer],
    oracle: Callable[..., list[reference.LayerHistory]],
    *,
    dtype: torch.dtype = torch.float64,
    gradients: list[list[Tensor]] | None = None,
    **options: Any,
) -> None:
    params, drawn = random_layers(dtype)
    gradients = drawn if gradients is None else gradients
    expected = oracle(params, gradients, **options)
    built = optimizer(params, **options)
    seen = take_steps(built, params, gradients)
    close = partial(torch.testing.assert_close, check_dtype=False)
    if dtype != torch.float64:
        close = partial(close, rtol=1e-5, atol=1e-6)
    for layer, history in enumerate(expected):
        for t in range(len(gradients)):
            close(seen[t][layer], history.x[t])
        state = built.state[params[layer]]
        if history.m:
            close(state["exp_avg"], history.m[-1])
            close(state["exp_avg_sq"], history.v[-1])
            assert state["step"].item() == len(gradients)


def minimized(optimizer: Optimizer, weight: Parameter, steps: int) -> float:
    for _ in range(steps):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    return weight.square().sum().item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-8},
        {"weight_decay": 0.3},
        {"initial_accumulator": 0.25},
        {"maximize": True, "weight_decay": 0.3},
    ],
    ids=str,
)
def test_yogi_follows_its_equation_over_steps(dtype: torch.dtype, options: dict[str, Any]) -> None:
    assert_follows(Yogi, reference.run_yogi, dtype=dtype, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.5, "betas": (0.5, 0.9)},
        {"betas": (0.9, 0.9)},
        {"weight_decay": 0.3},
        {"maximize": True, "weight_decay": 0.3},
    ],
    ids=str,
)
def test_msvag_follows_its_equation_over_steps(dtype: torch.dtype, options: dict[str, Any]) -> None:
    assert_follows(MSVAG, reference.run_msvag, dtype=dtype, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", [{}, {"lr": 0.5}, {"maximize": True}], ids=str)
def test_fromage_follows_its_equation_over_steps(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    assert_follows(Fromage, reference.run_fromage, dtype=dtype, **options)


@pytest.mark.parametrize(
    ("baseline", "oracle"),
    [
        (Yogi, reference.run_yogi),
        (MSVAG, reference.run_msvag),
        (Fromage, reference.run_fromage),
    ],
)
@pytest.mark.parametrize("first_zero", [0, 2], ids=["always", "later"])
def test_zero_gradients_are_stepped_over_as_the_equation_says(
    baseline: type[Optimizer], oracle: Callable[..., Any], first_zero: int
) -> None:
    _, gradients = random_layers()
    for step_gradients in gradients[first_zero:]:
        for g in step_gradients:
            g.zero_()
    assert_follows(baseline, oracle, gradients=gradients)


def test_yogi_lets_the_second_moment_fall_no_faster_than_the_squared_gradient() -> None:
    weight = Parameter(torch.tensor([1.0]))
    optimizer = Yogi([weight], initial_accumulator=1.0)
    weight.grad = torch.tensor([0.1])
    optimizer.step()
    expected = torch.tensor([1.0 - 0.001 * 0.01])
    torch.testing.assert_close(optimizer.state[weight]["exp_avg_sq"], expected)


def test_msvag_does_not_move_in_its_first_step() -> None:
    params, gradients = random_layers(steps=1)
    before = [p.detach().clone() for p in params]
    take_steps(MSVAG(params), params, gradients)
    torch.testing.assert_close([p.detach() for p in params], before, rtol=0, atol=0)


def test_msvag_with_equal_betas_takes_plain_steps_where_gradients_do_not_vary() -> None:
    weight = Parameter(torch.zeros(3, dtype=torch.float64))
    gradient = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    take_steps(MSVAG([weight], lr=0.1, betas=(0.9, 0.9)), [weight], [[gradient]] * 3)
    torch.testing.assert_close(weight.detach(), -0.2 * gradient)


def test_fromage_moves_each_layer_by_the_same_fraction_of_its_norm() -> None:
    params, gradients = random_layers(steps=1)
    before = [p.detach().clone() for p in params]
    take_steps(Fromage(params, lr=0.1), params, gradients)
    for x, p in zip(before, params, strict=True):
        moved = torch.linalg.vector_norm(p.detach() * math.sqrt(1.01) - x)
        torch.testing.assert_close(moved, 0.1 * torch.linalg.vector_norm(x))


def test_fromage_steps_by_the_plain_gradient_from_a_zero_layer() -> None:
    weight = Parameter(torch.zeros(2, dtype=torch.float64))
    gradient = torch.tensor([3.0, -4.0], dtype=torch.float64)
    take_steps(Fromage([weight], lr=0.1), [weight], [[gradient]])
    torch.testing.assert_close(weight.detach(), -0.1 * gradient / math.sqrt(1.01))


@pytest.mark.parametrize(
    "optimizer",
    [partial(Yogi, lr=0.1), partial(MSVAG, betas=(0.9, 0.9)), partial(Fromage, lr=0.1)],
    ids=["Yogi", "MSVAG", "Fromage"],
)
def test_a_quadratic_is_minimized(optimizer: Callable[..., Optimizer]) -> None:
    weight = Parameter(torch.tensor([1.0, -2.0, 0.5]))
    assert minimized(optimizer([weight]), weight, steps=100) < 0.1


@every_baseline
def test_gradients_are_left_as_they_were(baseline: type[Optimizer]) -> None:
    params, gradients = random_layers(steps=1)
    options = {"maximize": True}
    if baseline is not Fromage:
        options["weight_decay"] = 0.1
    take_steps(baseline(params, **options), params, gradients)
    for p, g in zip(params, gradients[0], strict=True):
        assert torch.equal(p.grad, g)


@every_baseline
def test_parameters_without_gradient_are_skipped(baseline: type[Optimizer]) -> None:
    used, unused = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    optimizer = baseline([used, unused])
    for _ in range(2):
        used.grad = torch.tensor([1.0, 2.0, 3.0])
        optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(3))
    assert unused not in optimizer.state
    assert not torch.equal(used.detach(), torch.ones(3))


@every_baseline
def test_step_returns_what_its_closure_returns(baseline: type[Optimizer]) -> None:
    weight = Parameter(torch.tensor([1.0, -2.0]))
    optimizer = baseline([weight])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 5.0
    assert optimizer.step() is None


@every_baseline
def test_a_group_keeps_its_own_learning_rate(baseline: type[Optimizer]) -> None:
    params, gradients = random_layers()
    grouped = baseline([{"params": params[:3]}, {"params": params[3:], "lr": 0.5}], lr=0.01)
    seen = take_steps(grouped, params, gradients)[-1]
    for lr, layers in ((0.01, slice(0, 3)), (0.5, slice(3, None))):
        alone, _ = random_layers()
        last = take_steps(baseline(alone, lr=lr), alone, gradients)[-1]
        torch.testing.assert_close(seen[layers], last[layers], rtol=0, atol=0)


@every_baseline
def test_a_one_element_tensor_serves_as_learning_rate(baseline: type[Optimizer]) -> None:
    results = []
    for lr in (0.25, torch.tensor(0.25), torch.tensor([0.25])):
        params, gradients = random_layers()
        results.append(take_steps(baseline(params, lr=lr), params, gradients)[-1])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=0)


@every_baseline
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_follows_float64_within_its_own_precision(
    baseline: type[Optimizer], dtype: torch.dtype
) -> None:
    params, gradients = random_layers(dtype)
    doubles = [Parameter(p.detach().double()) for p in params]
    seen = take_steps(baseline(params, lr=0.01), params, gradients)[-1]
    expected = take_steps(
        baseline(doubles, lr=0.01), doubles, [[g.double() for g in step] for step in gradients]
    )[-1]
    tolerance = STEPS * 4 * torch.finfo(dtype).eps
    for x, y in zip(seen, expected, strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance)


@every_baseline
@pytest.mark.parametrize("size", [300.0, 1e-5], ids=["overflow", "underflow"])
def test_float16_gradients_may_have_squares_that_float16_cannot_hold(
    baseline: type[Optimizer], size: float
) -> None:
    ends = []
    for dtype in (torch.float16, torch.float64):
        weight = Parameter(torch.ones(8, dtype=dtype))
        gradient = torch.full((8,), size, dtype=torch.float16).to(dtype)
        take_steps(baseline([weight], lr=0.01), [weight], [[gradient]] * 3)
        ends.append(weight.detach().double())
    torch.testing.assert_close(ends[0], ends[1], rtol=5e-3, atol=5e-3)


def test_fromage_takes_norms_that_float16_cannot_hold() -> None:
    weight = Parameter(torch.ones(8, dtype=torch.float16))
    gradient = torch.full((8,), 3e4, dtype=torch.float16)
    take_steps(Fromage([weight], lr=0.75), [weight], [[gradient]])
    torch.testing.assert_close(weight.detach(), torch.full_like(gradient, 0.25 / 1.25))


@every_baseline
def test_training_resumes_exactly_from_a_state_dict(baseline: type[Optimizer]) -> None:
    params, gradients = random_layers(torch.float32)
    optimizer = baseline(params, lr=0.05)
    take_steps(optimizer, params, gradients[:3])
    saved = copy.deepcopy(optimizer.state_dict())
    resumed = [Parameter(p.detach().clone()) for p in params]
    expected = take_steps(optimizer, params, gradients[3:])[-1]

    loaded = baseline(resumed)
    loaded.load_state_dict(saved)
    assert loaded.param_groups[0]["lr"] == 0.05
    seen = take_steps(loaded, resumed, gradients[3:])[-1]
    torch.testing.assert_close(seen, expected, rtol=0, atol=0)


@pytest.mark.parametrize("baseline", [Yogi, MSVAG])
def test_state_bears_torchs_names(baseline: type[Optimizer]) -> None:
    params, gradients = random_layers(torch.bfloat16, steps=1)
    optimizer = baseline(params)
    take_steps(optimizer, params, gradients)
    for p in params:
        state = optimizer.state[p]
        assert list(state) == ["step", "exp_avg", "exp_avg_sq"]
        assert state["step"].dtype == torch.float32
        assert state["step"].shape == ()
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == p.shape
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == p.dtype


def test_fromage_keeps_no_state() -> None:
    params, gradients = random_layers(steps=2)
    optimizer = Fromage(params)
    take_steps(optimizer, params, gradients)
    assert optimizer.state_dict()["state"] == {}


@every_baseline
def test_sparse_gradients_are_refused(baseline: type[Optimizer]) -> None:
    weight = Parameter(torch.ones(3))
    weight.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match=f"^{baseline.__name__} does not support sparse grad"):
        baseline([weight]).step()


@every_baseline
def test_complex_gradients_are_refused(baseline: type[Optimizer]) -> None:
    weight = Parameter(torch.ones(3, dtype=torch.complex64))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RuntimeError, match=f"^{baseline.__name__} does not support complex grad"):
        baseline([weight]).step()


LR = [
    ("lr", -1.0, ValueError, r"Invalid learning rate: -1.0, it must be >= 0"),
    ("lr", math.nan, ValueError, r"Invalid learning rate: nan, it must be >= 0"),
    ("lr", torch.tensor(-1.0), ValueError, r"Invalid learning rate: -1.0, it must be >= 0"),
    ("lr", torch.ones(2), ValueError, r"Tensor lr must be 1-element"),
    ("lr", torch.tensor(True), TypeError, r"Invalid learning rate: True, it must be a num"),
    ("lr", torch.tensor(1j), TypeError, r"Invalid learning rate: 1j, it must be a number"),
    ("lr", "0.1", TypeError, r"Invalid learning rate: '0.1', it must be a number"),
    ("lr", True, TypeError, r"Invalid learning rate: True, it must be a number"),
    ("lr", None, TypeError, r"Invalid learning rate: None, it must be a number"),
]
BETAS = [
    ("betas", (1.0, 0.9), ValueError, r"Invalid beta parameter at index 0: 1.0, .* in \[0, 1\)"),
    ("betas", (0.9, -0.1), ValueError, r"Invalid beta parameter at index 1: -0.1, it must be in"),
    ("betas", (math.nan, 0.9), ValueError, r"Invalid beta parameter at index 0: nan, it must be"),
    ("betas", (0.9, "0.9"), TypeError, r"Invalid beta parameter at index 1: '0.9', .* a number"),
    ("betas", (False, 0.9), TypeError, r"Invalid beta parameter at index 0: False, .* a number"),
    ("betas", (0.9,), ValueError, r"Invalid betas: \(0.9,\), they must be a pair of numbers"),
    ("betas", 0.9, TypeError, r"Invalid betas: 0.9, they must be a pair of numbers"),
    ("betas", "99", TypeError, r"Invalid betas: '99', they must be a pair of numbers"),
]
WEIGHT_DECAY = [
    ("weight_decay", -1, ValueError, r"Invalid weight_decay value: -1, it must be >= 0"),
    ("weight_decay", math.nan, ValueError, r"Invalid weight_decay value: nan, it must be >= 0"),
    ("weight_decay", None, TypeError, r"Invalid weight_decay value: None, it must be a number"),
]
YOGI = [
    ("eps", 0, ValueError, r"Invalid epsilon value: 0, it must be > 0"),
    ("eps", math.nan, ValueError, r"Invalid epsilon value: nan, it must be > 0"),
    ("eps", "1e-8", TypeError, r"Invalid epsilon value: '1e-8', it must be a number"),
    ("initial_accumulator", -1, ValueError, r"Invalid initial_accumulator value: -1, .* >= 0"),
]


@pytest.mark.parametrize(
    ("baseline", "name", "value", "error", "message"),
    [(Yogi, *case) for case in LR + BETAS + WEIGHT_DECAY + YOGI]
    + [(MSVAG, *case) for case in LR + BETAS + WEIGHT_DECAY]
    + [(Fromage, *case) for case in LR],
)
def test_a_bad_option_is_refused_with_its_value_and_what_is_allowed(
    baseline: Callable[..., Optimizer],
    name: str,
    value: object,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        baseline([Parameter(torch.ones(1))], **{name: value})
    with pytest.raises(error, match=message):
        baseline([{"params": [Parameter(torch.ones(1))], name: value}])
    optimizer = baseline([Parameter(torch.ones(1))])
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [Parameter(torch.ones(1))], name: value})
    assert len(optimizer.param_groups) == 1


@every_baseline
@pytest.mark.parametrize("lr", [0, np.float32(0.5), np.float64(0.5)])
def test_any_real_number_serves_as_learning_rate(baseline: type[Optimizer], lr: Any) -> None:
    params, gradients = random_layers()
    take_steps(baseline(params, lr=lr), params, gradients)
    assert all(p.isfinite().all() for p in params)


def test_betas_may_be_a_list() -> None:
    params, gradients = random_layers()
    for baseline in (Yogi, MSVAG):
        take_steps(baseline(params, betas=[0.9, 0.99]), params, gradients)
