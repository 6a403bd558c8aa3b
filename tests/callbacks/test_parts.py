"""Parts of packed layers, against optimizers that hold each part as a parameter of its own."""

import math

import pytest
import torch
from torch import nn

from aida_lightning import build_optimizer, measure_step
from aida_lightning._lightning import MisconfigurationException
from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.diagnostics import stepsize
from aida_lightning.measuring._statistics import STATISTICS

EVERY = [*STATISTICS, "median", "q05"]


def attention():
    torch.manual_seed(0)
    return nn.MultiheadAttention(6, 2)


def attend(module):
    x = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(1))
    return module(x, x, x)[0].square().sum()


def lstm():
    torch.manual_seed(0)
    return nn.LSTM(4, 3)


def unroll(module):
    return module(torch.randn(5, 2, 4))[0].square().sum()


def split_twin(module, names):
    """Hold each part of each parameter of a module as a parameter of its own."""
    chunks = [[*p.detach().clone().chunk(len(names))] for p in module.parameters()]
    return nn.ModuleList(nn.ParameterDict(dict(zip(names, c, strict=True))) for c in chunks)


@pytest.mark.parametrize(
    ("build", "loss", "names"),
    [(attention, attend, ["q", "k", "v"]), (lstm, unroll, ["i", "f", "g", "o"])],
)
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("adamw", {}),
        ("adabelief", {"weight_decay": 0.1}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("torch.optim.RMSprop", {}),
    ],
)
def test_parts_have_the_statistics_of_separate_parameters(build, loss, names, optimizer, options):
    module = build()
    packed = {n: p for n, p in module.named_parameters() if n.startswith(("in_proj_w", "weight_"))}
    whole = build_optimizer(optimizer, [*packed.values()], lr=0.01, **options)
    twin = split_twin(nn.ParameterList(packed.values()), names)
    apart = build_optimizer(optimizer, [*twin.parameters()], lr=0.01, **options)
    for _ in range(3):
        whole.zero_grad()
        loss(module).backward()
        for param, parts in zip(packed.values(), twin, strict=True):
            for name, gradient in zip(names, param.grad.chunk(len(names)), strict=True):
                parts[name].grad = gradient.clone()
        with measure_step(whole, module, EVERY, [*packed], parts={"*": names}) as found:
            whole.step()
        with measure_step(apart, twin, EVERY, "*") as expected:
            apart.step()
    with_parts = {tag: number for tag, number in found.items() if tag.endswith("]")}
    assert len(with_parts) == len(expected) >= 4 * len(names)
    for tag, number in expected.items():
        statistic, layer = tag.split("/")
        index, _, name = layer.partition(".")
        theirs = found[f"{statistic}/{[*packed][int(index)]}[{name}]"]
        assert theirs == pytest.approx(number, rel=1e-5, abs=1e-7), tag


@pytest.mark.parametrize("optimizer", ["aida", "laida", "torch.optim.Adafactor"])
def test_the_layers_own_numbers_stay_and_its_stepsizes_are_divided(optimizer):
    numbers = []
    for parts in (None, {"in_proj_weight": {"q": 6, "k": 3, "v": 9}}):
        module = attention()
        built = build_optimizer(optimizer, module.parameters(), lr=0.01)
        attend(module).backward()
        with measure_step(built, module, EVERY, parts=parts) as found:
            built.step()
        numbers.append(found)
    without, with_parts = numbers
    assert without == {tag: with_parts[tag] for tag in without}
    param = module.in_proj_weight
    s = stepsize(built, built.param_groups[0], built.state[param])
    rows = s.expand_as(param).split([6, 3, 9])
    for name, of_part in zip("qkv", rows, strict=True):
        mean = with_parts[f"stepsize_mean/in_proj_weight[{name}]"]
        assert mean == pytest.approx(of_part.mean().item(), rel=1e-5)
        std = with_parts[f"stepsize_std/in_proj_weight[{name}]"]
        assert std == pytest.approx(of_part.std(correction=0).item(), rel=1e-4, abs=1e-4)


def test_norms_of_the_parts_of_complex_and_sparse_layers():
    module = nn.ParameterDict({"c": torch.randn(4, 2, dtype=torch.complex64)})
    optimizer = build_optimizer("aida", module.parameters())
    module["c"].grad = torch.randn(4, 2, dtype=torch.complex64)
    gradient = module["c"].grad.clone()
    statistics = ["mean", "gradient_norm", "update_norm", "weight_norm", "gradient_cosine"]
    with measure_step(optimizer, module, statistics, parts={"c": 2}) as found:
        optimizer.step()
    for part, rows in enumerate(gradient.chunk(2)):
        norm = rows.abs().square().sum().sqrt().item()
        assert found[f"gradient_norm/c[{part}]"] == pytest.approx(norm, rel=1e-5)
        halves = math.hypot(*(found[f"update_norm/c[{p}]"] for p in range(2)))
        assert halves == pytest.approx(found["update_norm/c"], rel=1e-5)

    words = nn.Embedding(6, 3, sparse=True)
    sgd = torch.optim.SGD(words.parameters(), lr=0.1)
    words(torch.tensor([0, 0, 2, 4])).square().sum().backward()
    dense = words.weight.grad.to_dense()
    with measure_step(sgd, words, "gradient_norm", parts={"weight": 3}) as found:
        sgd.step()
    for part, rows in enumerate(dense.chunk(3)):
        norm = rows.norm().item()
        assert found[f"gradient_norm/weight[{part}]"] == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["q"], "must map globs of layer names"),
        ({"*": "columns"}, r"parts\['\*'\] must be a list of names"),
        ({"*": 0}, r"parts\['\*'\] must be .*>= 1, .* got 0"),
        ({"*": True}, "got True"),
        ({"*": []}, r"got \[\]"),
        ({"*": ["q", "k/v"]}, r"has the name 'k/v'; a name is a string of letters"),
        ({"*": ["q", "q"]}, "has a name twice"),
        ({"*": {"q": 0, "k": 3}}, r"parts\['\*'\]\['q'\] must be a number of rows >= 1, got 0"),
    ],
)
def test_bad_parts_are_refused_when_the_monitor_is_built(parts, message):
    with pytest.raises(MisconfigurationException, match=message):
        StepsizeMonitor(parts=parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"in_proj_weight": 4}, r"'in_proj_weight' of shape \[18, 6\]: .* 4, must divide .* 18"),
        ({"in_proj_weight": {"q": 6, "kv": 6}}, "add up to 12; they must .* dimension 0, 18"),
        ({"gain": 1}, r"'gain' of shape \[\]: a layer needs at least one dimension"),
    ],
)
def test_a_layer_that_has_no_such_parts_is_named(parts, message):
    module = attention()
    module.gain = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.Adam(module.parameters())
    with (
        pytest.raises(ValueError, match=message),
        measure_step(optimizer, module, layers="*", parts=parts),
    ):
        pass


@pytest.mark.parametrize(
    ("shape", "expected"), [((), [2.0, 2.0]), ((6, 1), [1.5, 3.5]), ((1, 2), [2.0, 2.0])]
)
def test_averaged_stepsizes_are_divided_if_they_differ_between_rows(shape, expected):
    class Averaging(torch.optim.SGD):
        """Its stepsizes broadcast to the layer."""

        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for param in group["params"]:
                    self.state[param]["s"] = torch.full(shape, 2.0)
                    if shape == (6, 1):
                        self.state[param]["s"] = torch.tensor([[1.0], [2], [1], [5], [5], [3]])

    stepsize.register(Averaging, lambda optimizer, group, state: state["s"])
    module = nn.ParameterDict({"w": torch.zeros(6, 2)})
    module["w"].grad = torch.ones(6, 2)
    optimizer = Averaging(module.parameters(), lr=0.1)
    with measure_step(optimizer, module, "mean", parts={"w": {"a": 2, "b": 4}}) as found:
        optimizer.step()
    means = [found["stepsize_mean/w[a]"], found["stepsize_mean/w[b]"]]
    assert means == pytest.approx(expected)


def test_stepsizes_without_rows_cannot_be_divided():
    class Flat(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.state[self.param_groups[0]["params"][0]]["s"] = torch.ones(12)

    stepsize.register(Flat, lambda optimizer, group, state: state["s"])
    module = nn.ParameterDict({"w": torch.ones(6, 2)})
    module["w"].grad = torch.ones(6, 2)
    optimizer = Flat(module.parameters(), lr=0.1)
    with (
        pytest.raises(TypeError, match=r"6 rows need .* for Flat returned the shape \[12\]"),
        measure_step(optimizer, module, "mean", parts={"w": 2}),
    ):
        optimizer.step()
