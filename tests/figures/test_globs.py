"""Globs decide as the choices that they stand for, and there are few of them."""

import random
from fnmatch import fnmatchcase

import pytest

from aida_lightning.figures.globs import globs_of

ATTENTION = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
OTHERS = [f"{layer}.{tensor}" for layer in ("linear1", "norm1") for tensor in ("weight", "bias")]
LAYERS = [
    "embed.weight",
    *(f"blocks.{n}.{x}" for n in range(12) for x in [f"attn.{a}" for a in ATTENTION] + OTHERS),
    "head.weight",
]
ODD = ["a[0].weight", "a0.weight", "b*.weight", "bx.weight", "c?.weight", "cx.weight", "weight"]


def decided(globs, name, default):
    return next((choice for glob, choice in globs.items() if fnmatchcase(name, glob)), default)


@pytest.mark.parametrize("names", [LAYERS, ODD], ids=["layers", "odd"])
@pytest.mark.parametrize("seed", range(20))
def test_every_name_is_decided_as_given(names, seed):
    generator = random.Random(seed)
    weights = generator.sample([1, 5, 30], 3)
    choices = {name: generator.choices([None, "rows", "elements"], weights)[0] for name in names}
    globs = globs_of(choices, default=None)
    assert {name: decided(globs, name, None) for name in names} == choices
    assert None not in globs.values()
    assert len(globs) <= len([choice for choice in choices.values() if choice])


@pytest.mark.parametrize(
    ("choose", "expected"),
    [
        (lambda name: None, {}),
        (lambda name: "rows", {"*": "rows"}),
        (lambda name: "rows" if "bias" in name else None, {"*bias": "rows"}),
        (lambda name: "rows" if "in_proj_w" in name else None,
         {"blocks.*.attn.in_proj_weight": "rows"}),
        (lambda name: "elements" if name == "head.weight" else "rows",
         {"head.weight": "elements", "*": "rows"}),
        (lambda name: {"embed.weight": "rows", "head.weight": None}.get(name, "elements"),
         {"embed.weight": "rows", "blocks.*": "elements"}),
        (lambda name: "rows" if ".norm1." in name or ".linear1." in name else None,
         {"*.linear1.*": "rows", "*.norm1.*": "rows"}),
    ],
)  # fmt: skip
def test_layers_of_a_kind_share_a_glob(choose, expected):
    globs = globs_of({name: choose(name) for name in LAYERS}, default=None)
    assert [*globs.items()] == [*expected.items()]


def test_a_layer_alone_keeps_its_name():
    choices = {name: "rows" if name == "blocks.3.norm1.weight" else None for name in LAYERS}
    assert globs_of(choices, default=None) == {"blocks.3.norm1.weight": "rows"}
    assert globs_of(dict.fromkeys(ODD) | {"a[0].weight": 1}, None) == {"a[[]0].weight": 1}
