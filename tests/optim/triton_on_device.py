"""The Triton kernel against the boxes: on a GPU, or on the CPU in Triton's interpreter.

Collected by test_triton.py, in a process of its own: the interpreter has to be chosen in the
environment (TRITON_INTERPRET=1) before triton is first imported, for all of the process.
"""

import pytest
import reference
import torch
from kernel_steps import build, layers_of, step
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from aida_lightning import optim
from aida_lightning.optim._kernels import triton as kernel
from aida_lightning.optim._kernels.tracking import Track
from aida_lightning.optim._partition import layout_of, parts_of
from aida_lightning.optim._reading import sizes_of
from aida_lightning.optim._state import new_state

DEVICE = "cpu" if kernel._sweeps().INTERPRETED else "cuda"
OPTIMIZERS = sorted(reference.MEMBERS)
LAUNCHES = dict.fromkeys(OPTIMIZERS, 2)
LAUNCHES |= {"AdaBelief": 1, "AdamPlus": 1, "LAdaBelief": 3, "LAdam": 3, "LAida": 3}
# Two blocks and a tail in two chunks; a tail alone; a whole chunk; no element.
SHAPES = [(7, 13), (), (64,), (0,)]

each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(kernel, "_CHUNK", 64)
    monkeypatch.setattr(kernel, "_BLOCK", 32)


@pytest.fixture(autouse=True)
def default_device():
    with torch.device(DEVICE):
        yield


def make_problem(dtype, steps, shapes=SHAPES, scale=1.0):
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(shape):
        return torch.randn(shape, generator=generator, device="cpu").to(DEVICE, dtype)

    start = [draw(shape) for shape in shapes]
    # A common part, so that momentum predicts something, and scales far apart.
    common = [draw(shape) for shape in shapes]
    gradients = [
        [scale * 10.0 ** (layer - 2) * (c + draw(c.shape)) for layer, c in enumerate(common)]
        for _ in range(steps)
    ]
    return start, gradients


def train(name, start, gradients, **options):
    optimizer = build(name, start, **options)
    for grads in gradients:
        copies = [grad.clone() for grad in grads]
        layers, rule = layers_of(optimizer, grads)
        assert all(kernel.takes(*layer, rule.layer_mean) for layer in zip(*layers[:5], strict=True))
        step(kernel, (layers, rule))
        torch.testing.assert_close(grads, copies, rtol=0, atol=0, equal_nan=True)  # the user's own
    return optimizer, optimizer.param_groups[0]["params"]


def assert_follows_the_box(name, start, gradients, rtol, **options):
    optimizer, params = train(name, start, gradients, **options)
    options["lr"] = float(options.get("lr", 1e-3))
    options.pop("capturable", None)
    for param, layer in zip(params, reference.run(name, start, gradients, **options), strict=True):
        state = optimizer.state[param]
        m, v = state["exp_avg"].double(), state["exp_avg_sq"].double()
        torch.testing.assert_close(param.double(), layer.x[-1], rtol=rtol, atol=rtol / 10)
        torch.testing.assert_close(m, layer.m[-1], rtol=rtol, atol=rtol)
        torch.testing.assert_close(v, layer.v[-1], rtol=10 * rtol, atol=0)


def cut_into(optimizer, gradients, parts):
    """Return a kernel's arguments for tensors that hold several layers."""
    layers, rule = layers_of(optimizer, gradients)
    return layers._replace(parts=parts), rule


PROJECTIONS = [(name, {"k": k}) for name in ("Aida", "LAida") for k in (0, 1, 3)]


@pytest.mark.parametrize("partition", ["rows", 2, (1, 4, 1)])
@pytest.mark.parametrize(("name", "options"), [*((n, {}) for n in OPTIMIZERS), *PROJECTIONS])
def test_parts_follow_the_box_as_layers_of_their_own(name, options, partition):
    start, gradients = make_problem(torch.float64, steps=4, shapes=[(6, 37), (6,), (6, 0)])
    params = [nn.Parameter(x.clone()) for x in start]
    optimizer = getattr(optim, name)(params, partition=partition, weight_decay=0.1, **options)
    layouts = [layout_of(optimizer.param_groups[0]["partition"], param) for param in params]
    for param, layout in zip(params, layouts, strict=True):
        optimizer.state[param] = new_state(
            param, optimizer.layer_mean, capturable=False, layout=layout
        )
    for grads in gradients:
        arguments = cut_into(optimizer, grads, [*map(parts_of, params, layouts)])
        for *layer, parts in zip(*arguments[0][:5], arguments[0].parts, strict=True):
            assert kernel.takes(*layer, arguments[1].layer_mean, parts)
        step(kernel, arguments)
    cut = lambda tensors: [  # noqa: E731
        part for tensor in tensors for part in tensor.split(sizes_of(layouts[0], len(tensor)))
    ]
    options = {**options, "weight_decay": 0.1}
    boxes = reference.run(name, cut(start), [cut(g) for g in gradients], **options)
    for part, box in zip(cut(params), boxes, strict=True):
        torch.testing.assert_close(part.detach(), box.x[-1], rtol=1e-9, atol=1e-10)


@each_optimizer
def test_twenty_steps_follow_the_box(name):
    start, gradients = make_problem(torch.float32, 20, [(65,), ()])
    assert_follows_the_box(name, start, gradients, 2e-5, lr=0.01, weight_decay=0.1)


CASES = [(name, k) for name in OPTIMIZERS for k in (range(4) if name.endswith("Aida") else (2,))]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("name", "k"), CASES)
def test_every_dtype_and_number_of_projections_follow_the_box(name, k, dtype):
    start, gradients = make_problem(dtype, 4, [(65,), (64,), ()])
    start = [torch.zeros_like(x) for x in start]  # of which halves would lose the small steps
    options = {"k": k} if name in ("Aida", "LAida") else {}
    optimizer, params = train(name, start, gradients, **options)
    tolerance = TOLERANCES[dtype]
    for param, layer in zip(params, reference.run(name, start, gradients, **options), strict=True):
        s = optimizer.stepsize(param).double()
        torch.testing.assert_close(s, layer.stepsize[-1], rtol=tolerance, atol=0)
        x, expected = param.double(), layer.x[-1]
        assert (x - expected).norm() <= 2 * tolerance * expected.norm()


@each_optimizer
def test_the_options_in_double_precision(name):
    start, gradients = make_problem(torch.float64, 3)
    options = {"lr": torch.tensor(0.01, dtype=torch.float64), "betas": (0.4, 0.99), "eps": 1e-6}
    options |= {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}
    # With capturable the learning rate and the steps are read where they are, on the device.
    assert_follows_the_box(name, start, gradients, 1e-12, capturable=True, **options)


@pytest.mark.parametrize("name", ["AdaBeliefL", "Aida", "LAida"])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float16, 1e-6)])
def test_half_precision_follows_the_box_to_its_own_rounding(name, dtype, scale):
    start, gradients = make_problem(dtype, 4, [(65,)], 100 * scale)
    start = [torch.zeros_like(x) for x in start]
    optimizer, (param,) = train(name, start, gradients)
    (layer,) = reference.run(name, start, gradients)
    s, expected = optimizer.stepsize(param), layer.stepsize[-1]
    assert s.dtype == torch.float32
    torch.testing.assert_close(s.double(), expected, rtol=0.05, atol=0)
    assert (param.double() - layer.x[-1]).abs().max() < 0.1 * layer.x[-1].abs().max() + 1e-7


@each_optimizer
def test_neither_launches_nor_torchs_operations_grow_with_the_layers(name, monkeypatch):
    launches, operations, launch = [], [], kernel._launch

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not func.is_view:
                operations.append(func)
            return func(*args, **(kwargs or {}))

    def record_launch(sweep, programs, arguments):
        launches.append(sweep)
        with _disable_current_modes():  # the interpreter's own operations
            launch(sweep, programs, arguments)

    monkeypatch.setattr(kernel, "_launch", record_launch)
    counts = []
    for layers in (2, 9):
        start, (gradients,) = make_problem(torch.float32, 1, [(3,)] * layers)
        optimizer, _ = train(name, start, [gradients])
        launches.clear()
        operations.clear()
        with Record():
            step(kernel, layers_of(optimizer, gradients))
        assert len(launches) == LAUNCHES[name]
        counts.append(len(operations))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("name", ["Aida", "LAida", "AdaBeliefL", "SETAdam"])
def test_the_parts_of_a_divided_layer_move_as_the_whole(name):
    start, gradients = make_problem(torch.float64, 3, [(97,)])
    _, (whole,) = train(name, start, gradients)
    cuts = [slice(0, 31), slice(31, 97)]
    optimizers = [build(name, [start[0][cut]]) for cut in cuts]
    for (gradient,) in gradients:
        step(
            kernel,
            *(
                layers_of(optimizer, [gradient[cut]], numels=[97])
                for optimizer, cut in zip(optimizers, cuts, strict=True)
            ),
        )
    parts = torch.cat([optimizer.param_groups[0]["params"][0] for optimizer in optimizers])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "columns"), [("Aida", 3), ("LAida", 5)])
def test_the_sums_are_those_of_the_momentum_as_it_is_stored(name, columns):
    start, (gradients,) = make_problem(torch.bfloat16, 1, [(7, 13), (0,), ()])
    optimizer = build(name, start, weight_decay=0.5, maximize=True)
    layers, rule = layers_of(optimizer, gradients)
    layers.exp_avgs[0].copy_(start[0] + 1)
    with torch.no_grad():
        sums = kernel.momentum(layers, rule)
    assert sums.dtype == torch.float64
    assert sums.shape == (3, columns)
    for x, g, m, row in zip(start, gradients, layers.exp_avgs, sums, strict=True):
        m, g = m.double(), -g.double() + 0.5 * x.double()
        r = m - g
        expected = torch.stack([(a * b).sum() for a, b in ((m, m), (g, g), (m, g), (r, r), (r, g))])
        torch.testing.assert_close(row, expected[:columns], rtol=1e-5, atol=1e-9)


def test_the_sums_are_exact_where_momentum_and_gradient_nearly_agree():
    """The mean of (m - g)^2 at |m - g| / |g| = 1e-4, lost to <m, m> - 2 <m, g> + <g, g>."""
    generator = torch.Generator("cpu").manual_seed(0)
    gradient = torch.randn(1000, generator=generator, device="cpu").to(DEVICE)
    optimizer = build("LAida", [torch.zeros(1000)], k=2, eps=1e-30)
    layers, rule = layers_of(optimizer, [gradient])
    noise = torch.randn(1000, generator=generator, device="cpu").to(DEVICE)
    layers.exp_avgs[0].copy_(gradient + 1e-4 * noise)
    m, g = 0.9 * layers.exp_avgs[0].double() + 0.1 * gradient.double(), gradient.double()
    step(kernel, (layers, rule))
    expected = 0.001 * (m - g).square().mean()  # cos(m, g) is 1 to 1e-8
    assert layers.exp_avg_sqs[0].item() == pytest.approx(expected.item(), rel=1e-3)


@each_optimizer
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the interpreter
def test_sums_beyond_the_range_of_float32_stay_finite_and_nan_stays_in_its_layer(name):
    start = [torch.ones(65), torch.ones(3), torch.ones(3)]
    huge, nan, usual = 1e30, torch.nan, 1.0
    values = ([huge, nan, usual], [-huge, usual, usual], [huge, usual, usual])
    gradients = [
        [torch.full_like(x, value) for x, value in zip(start, row, strict=True)] for row in values
    ]
    optimizer, params = train(name, start, gradients)
    for param in (params[0], params[2]):
        assert torch.isfinite(param).all()
        assert torch.isfinite(optimizer.stepsize(param)).all()
    assert optimizer.stepsize(params[0]).max() == 0
    assert params[1].isnan().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_sum_that_overflows_alone_does_not_change_the_projection(monkeypatch):
    """A chunk of 7e4 elements is summed in float32, where <g, g> overflows and <m, g> does not."""
    monkeypatch.setattr(kernel, "_CHUNK", 1 << 17)
    monkeypatch.setattr(kernel, "_BLOCK", 1 << 13)
    gradient = torch.full((70_000,), 1e17)
    optimizer, (param,) = train("AidaGrad", [torch.zeros(70_000)], [[gradient]])
    torch.testing.assert_close(param.data, torch.full((70_000,), -1e-3), rtol=1e-4, atol=0)
    gradients = [[gradient], [gradient.index_fill(0, torch.tensor([3]), torch.inf)]]
    optimizer, (param,) = train("AidaGrad", [torch.zeros(70_000)], gradients)
    assert not optimizer.stepsize(param).isnan().any()


@pytest.mark.parametrize("name", ["AdamPlus", "AdamL", "LAdam", "SETAdam"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_infinite_gradient_takes_one_element_with_it(name):
    start, gradients = make_problem(torch.float32, 4, [(65,)])
    gradients[1][0][3] = torch.inf
    optimizer, (param,) = train(name, start, gradients)
    assert param.isfinite().sum() == 64
    assert not optimizer.stepsize(param).isnan().any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_statistic_that_overflowed_is_forgotten_without_beta2():
    gradients = [[torch.full((3,), value)] for value in (1e30, 1.0)]
    optimizer, (param,) = train("AdamPlus", [torch.zeros(3)], gradients, betas=(0.0, 0.0))
    torch.testing.assert_close(optimizer.state[param]["exp_avg_sq"], torch.ones(3))


def test_without_momentum_the_residual_is_zero():
    start, gradients = make_problem(torch.float32, 2, [(65,)])
    optimizer, (param,) = train("AdaBelief", start, gradients, betas=(0.0, 0.999))
    assert torch.equal(optimizer.state[param]["exp_avg"], gradients[-1][0])
    assert optimizer.state[param]["exp_avg_sq"].max().item() < 1e-7


def test_each_layer_is_corrected_for_its_own_number_of_steps():
    start, gradients = make_problem(torch.float64, 3, [(3,), (3,)])
    optimizer = build("Aida", start)
    late = optimizer.param_groups[0]["params"][1]
    for index, grads in enumerate(gradients):
        if index == 1:  # as if the layer had had no gradient before
            late.data.copy_(start[1])
            optimizer.state[late] = new_state(late, None, capturable=False)
        step(kernel, layers_of(optimizer, grads))
    (layer,) = reference.run("Aida", start[1:], [grads[1:] for grads in gradients[1:]])
    torch.testing.assert_close(late.data, layer.x[-1], rtol=1e-12, atol=0)


def test_a_table_serves_until_an_address_changes():
    start, (gradients,) = make_problem(torch.float32, 1)
    optimizer, _ = train("Aida", start, [gradients])
    misses = kernel._records.cache_info().misses
    step(kernel, layers_of(optimizer, gradients))
    assert kernel._records.cache_info().misses == misses
    step(kernel, layers_of(optimizer, [gradient.clone() for gradient in gradients]))
    assert kernel._records.cache_info().misses == misses + 1


def test_addresses_that_are_not_those_of_vectors_are_told_to_the_compiler():
    start, (gradients,) = make_problem(torch.float32, 1, [(8,)])
    table = kernel._table(*layers_of(build("Aida", start), gradients))
    assert table.alignment == 16
    shifted = torch.zeros(9)[1:]
    table = kernel._table(*layers_of(build("Aida", start), [shifted]))
    assert table.alignment == 4


def test_channels_last_is_swept_as_it_lies_in_memory():
    start, gradients = make_problem(torch.float64, 2, [(2, 3, 4, 5)])
    start, *gradients = (
        [tensor.to(memory_format=torch.channels_last) for tensor in tensors]
        for tensors in (start, *gradients)
    )
    assert not start[0].is_contiguous()
    assert_follows_the_box("Aida", start, gradients, 1e-12)


def test_other_tensors_are_left_to_other_kernels():
    x, t = torch.ones(4, 5), torch.ones(())
    assert kernel.takes(x, x, x, x, t)
    assert kernel.takes(x, x, x, torch.ones(()), t, "statistic")
    assert kernel.takes(x.half(), x.half(), x.half(), x, t)
    for param, grad, v in [
        (x, torch.ones(5, 4).t(), x),
        (x, torch.ones(1, 5).expand(4, 5), x),
        (x, torch._neg_view(x), x),
        (x, x.to_sparse(), x),
        (x, x.double(), x),
        (x, x, x.double()),
        (x.half(), x.half(), x.half()),
        (x.to(torch.complex64), x.to(torch.complex64), x),
        (x[:, ::2], x[:, ::2], x[:, ::2]),
        (x.to("meta"), x.to("meta"), x.to("meta")),
    ]:
        assert not kernel.takes(param, grad, param, v, t)


def test_autograd_notices_that_the_parameters_changed():
    for name in ("Aida", "LAida", "AdamL"):
        optimizer = build(name, [torch.ones(3)])
        (param,) = optimizer.param_groups[0]["params"]
        loss = (param * param).sum()
        step(kernel, layers_of(optimizer, [torch.ones(3)]))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_vector_that_needs_other_sums_is_refused():
    def sign_of_momentum(m_sq, g_sq, m_dot_g, *, k, xi):
        return 1 / m_sq, 0.0

    class Another(optim.Aida):
        track = Track(sign_of_momentum)

    optimizer = Another([nn.Parameter(torch.ones(3))])
    optimizer.state[optimizer.param_groups[0]["params"][0]] = new_state(
        torch.ones(3), None, capturable=False
    )
    with pytest.raises(NotImplementedError, match="no compiled kernel tracks `sign_of_momentum`"):
        step(kernel, layers_of(optimizer, [torch.ones(3)]))
