"""Parameter groups by the names of layers, and the presets."""

import logging
from functools import partial

import pytest
import torch
from parameters import OPTIMIZERS
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from aida_lightning import OptimizerMixin, build_optimizer, optim
from aida_lightning.groups import group_layers


def net():
    torch.manual_seed(0)
    parts = {"backbone": nn.Linear(3, 4), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 2)}
    return nn.ModuleDict(parts)


def run(module, inputs):
    return module["head"](module["norm"](module["backbone"](inputs)).tanh())


def names_in(optimizer, module):
    names = {param: name for name, param in module.named_parameters()}
    return {g["name"]: [names[param] for param in g["params"]] for g in optimizer.param_groups}


GROUPS = {"*.bias": {"weight_decay": 0.0}, "backbone.*": {"lr": 1e-4, "betas": (0.8, 0.9)}}


def by_hand(module, **options):
    def listed(*names):
        return [module.get_parameter(name) for name in names]

    return [
        {"params": listed("norm.weight", "head.weight"), **options},
        {"params": listed("backbone.bias", "norm.bias", "head.bias"), "weight_decay": 0.0},
        {"params": listed("backbone.weight"), "lr": 1e-4, "betas": (0.8, 0.9)},
    ]


@pytest.mark.parametrize("cls", [*(getattr(optim, n) for n in OPTIMIZERS), torch.optim.AdamW])
def test_groups_by_pattern_equal_groups_made_by_hand(cls):
    ours, theirs = net(), net()
    optimizers = [
        build_optimizer(cls, ours, groups=GROUPS, lr=1e-2, weight_decay=0.1),
        cls(by_hand(theirs), lr=1e-2, weight_decay=0.1),
    ]
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        for module, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            run(module, inputs).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_first_pattern_that_matches_takes_a_layer_and_the_rest_comes_first():
    module = net()
    found = names_in(build_optimizer("adamw", module, groups=GROUPS), module)
    assert found == {
        "default": ["norm.weight", "head.weight"],
        "*.bias": ["backbone.bias", "norm.bias", "head.bias"],
        "backbone.*": ["backbone.weight"],
    }
    assert [*found] == ["default", "*.bias", "backbone.*"]
    swapped = build_optimizer("adamw", module, groups={"backbone.*": {}, "*.bias": {}})
    assert names_in(swapped, module)["backbone.*"] == ["backbone.weight", "backbone.bias"]
    (whole,) = build_optimizer("adamw", module, groups={"*": {"lr": 0.5}}).param_groups
    assert (whole["name"], whole["lr"], len(whole["params"])) == ("*", 0.5, 6)


def test_a_layer_that_is_called_like_the_rest_leaves_names_unique():
    module = nn.ParameterDict({"default": nn.Parameter(torch.ones(1)), "b": torch.ones(2, 2)})
    optimizer = build_optimizer("aida", module, groups={"default": {"lr": 0.5}})
    assert names_in(optimizer, module) == {"*": ["b"], "default": ["default"]}


def test_frozen_layers_are_left_out():
    module = net()
    module["backbone"].requires_grad_(False)
    found = names_in(build_optimizer("aida", module, groups={"*.bias": {}}), module)
    assert found == {
        "default": ["norm.weight", "head.weight"],
        "*.bias": ["norm.bias", "head.bias"],
    }


def test_a_tied_layer_is_in_one_group_by_any_of_its_names():
    module = nn.ModuleDict({"table": nn.Embedding(5, 3), "head": nn.Linear(3, 5)})
    module["head"].weight = module["table"].weight
    for pattern in ("head.weight", "head.*", "table.*"):
        found = names_in(build_optimizer("aida", module, groups={pattern: {"lr": 0.5}}), module)
        assert "table.weight" in found[pattern]
    both = {"table.*": {}, "head.weight": {}}
    with pytest.raises(ValueError, match=r"'head.weight' matches only layers that an earlier"):
        build_optimizer("aida", module, groups=both)


def test_names_are_those_without_wrappers():
    module = torch.compile(net())
    optimizer = build_optimizer("aida", module, groups={"head.*": {"lr": 0.5}})
    assert optimizer.param_groups[1]["param_names"] == ["head.weight", "head.bias"]


@pytest.mark.parametrize("cls", ["aida", "adamw", "torch.optim.RMSprop"])
@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ({"*.bais": {}}, ValueError, r"'\*.bais' matches no layer; the nearest names are: .*bias"),
        (
            {"*.bias": {}, "head.bias": {}},
            ValueError,
            "'head.bias' matches only layers that an earlier pattern took: head.bias; the first",
        ),
        ({"norm.*": {}}, ValueError, r"'norm.\*' matches only layers that are not trained: norm"),
        ({"*.bias": {"wd": 0.0}}, TypeError, r"'\*.bias': .* has no option 'wd'; its options are"),
        ({"*.bias": {"lr": -1.0}}, ValueError, r"'\*.bias': Invalid learning rate: -1.0"),
        ({"*.bias": {"lr": "1e-3"}}, TypeError, r"'\*.bias': "),
        ({"*.bias": {"params": []}}, ValueError, r"'\*.bias' has the option 'params', but the"),
        ({"*.bias": 0.0}, TypeError, r"'\*.bias' must have a mapping of options, .* got 0.0"),
        ({1: {}}, TypeError, "the pattern 1 must be text"),
        (["*.bias"], TypeError, r"Invalid groups: \['\*.bias'\], they must be 'no_decay_1d', 'lay"),
        ("nodecay", ValueError, "Invalid groups: 'nodecay', they must be 'no_decay_1d', 'layer_de"),
        ("layer_decay", ValueError, "Invalid groups: 'layer_decay', they must be"),
        ("layer_decay:0", ValueError, r"'layer_decay:0', .* a FACTOR in \(0, 1\]"),
        ("layer_decay:1.5", ValueError, r"'layer_decay:1.5', .* a FACTOR in \(0, 1\]"),
        ("layer_decay:x", ValueError, r"'layer_decay:x', .* a FACTOR in \(0, 1\]"),
        ("layer_decay:0.5", ValueError, "needs the depth of each layer, but ModuleDict has no mod"),
    ],
)
def test_wrong_groups_are_refused_by_name(cls, groups, error, message):
    module = net()
    module["norm"].requires_grad_(False)
    with pytest.raises(error, match=message):
        build_optimizer(cls, module, groups=groups)


def test_a_wrong_option_of_all_layers_is_not_blamed_on_a_pattern():
    with pytest.raises(ValueError, match=r"^Invalid learning rate"):
        build_optimizer("adamw", net(), groups=GROUPS, lr=-1.0)


def test_an_option_that_groups_do_not_have_is_refused_for_any_optimizer():
    build = partial(torch.optim.SGD, momentum=0.9)
    with pytest.raises(TypeError, match=r"'\*.bias': the groups of SGD have no option 'beta'"):
        build_optimizer(build, net(), groups={"*.bias": {"beta": 0.5}}, lr=0.1)
    optimizer = build_optimizer(build, net(), groups={"*.bias": {"momentum": 0.5}}, lr=0.1)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.5]


def test_groups_need_a_module():
    with pytest.raises(ValueError, match="groups='no_decay_1d' needs a module whose parameters"):
        build_optimizer("adamw", [torch.ones(2, 2)], groups="no_decay_1d")


@pytest.mark.parametrize("options", [{"groups": "no_decay_1d"}, {"no_decay_1d": True}])
def test_the_preset_without_decay_equals_its_keyword(options):
    module = net()
    optimizer = build_optimizer("adamw", module, **options)
    assert names_in(optimizer, module) == {
        "default": ["backbone.weight", "head.weight"],
        "default/1d": ["backbone.bias", "norm.weight", "norm.bias", "head.bias"],
    }
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    with pytest.raises(TypeError, match="Fromage has no option 'weight_decay'"):
        build_optimizer("fromage", net(), **options)


def test_no_decay_1d_composes_with_patterns():
    module = net()
    groups = {"head.*": {"lr": 0.5}, "backbone.*": {"weight_decay": 0.3}}
    optimizer = build_optimizer("laida", module, groups=groups, no_decay_1d=True, weight_decay=0.1)
    found = [(g["name"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert found == [
        ("default/1d", 1e-3, 0.0),
        ("head.*", 0.5, 0.1),
        ("head.*/1d", 0.5, 0.0),
        ("backbone.*", 1e-3, 0.3),
    ]


def test_layers_without_a_shape_are_grouped_by_name_alone():
    module = nn.ModuleDict({"lazy": nn.LazyLinear(3), "head": nn.Linear(3, 1)})
    optimizer = build_optimizer("aida", module, groups={"lazy.*": {"lr": 0.5}})
    assert optimizer.param_groups[1]["param_names"] == ["lazy.weight", "lazy.bias"]
    groups = {"lazy.*": {"weight_decay": 0.0}}
    build_optimizer("aida", module, groups=groups, no_decay_1d=True)
    with pytest.raises(ValueError, match=r"but \['lazy.weight', 'lazy.bias'\] are not initialized"):
        build_optimizer("aida", module, groups="no_decay_1d")


class Deep(nn.Module):
    """A model with a matcher of timm's form."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.stem = nn.Linear(2, 2)
        self.blocks = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 1)

    def group_matcher(self, coarse=False):
        return {
            "stem": r"^cls_token|stem",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


def rates_of(optimizer, module):
    names = {param: name for name, param in module.named_parameters()}
    return {names[param]: g["lr"] for g in optimizer.param_groups for param in g["params"]}


class Around(OptimizerMixin, nn.Module):
    """A module that holds a model and a head of its own."""

    def __init__(self):
        super().__init__()
        self.optimizer_options = {"groups": "layer_decay:0.5"}
        self.model, self.own = Deep(), nn.Linear(1, 1)


def test_layer_decay_scales_the_rate_of_a_class_that_gives_none_and_schedules_scale_it():
    module = Around()
    optimizer = module.configure_optimizers()
    rates = rates_of(optimizer, module)
    scales = {"cls_token": 4, "stem.bias": 4, "blocks.0.weight": 3, "blocks.1.weight": 2}
    scales |= {"blocks.2.weight": 1, "norm.weight": 1, "head.weight": 0}
    for name, below in scales.items():
        assert rates[f"model.{name}"] == 1e-3 * 0.5**below
    assert rates["own.weight"] == 1e-3
    assert [g["name"] for g in optimizer.param_groups] == [f"depth_{i}" for i in range(5)]
    LambdaLR(optimizer, lambda _: 0.5)
    assert rates_of(optimizer, module) == {name: rate / 2 for name, rate in rates.items()}
    sgd = build_optimizer("sgd", module, groups="layer_decay:0.5")
    assert sgd.param_groups[-1]["lr"] == 0.1
    both = build_optimizer("adamw", module, groups="layer_decay:0.5", no_decay_1d=True)
    assert [g["name"] for g in both.param_groups[:2]] == ["depth_0", "depth_0/1d"]


def test_layer_decay_needs_a_rate_to_scale():
    def build(params, **options):
        return torch.optim.SGD(params, lr=0.1, **options)

    with pytest.raises(ValueError, match="'layer_decay' needs a number to scale, got lr=None"):
        build_optimizer(build, Deep(), groups="layer_decay:0.5")


def test_a_model_without_a_matcher_is_counted_by_twelve_below_its_classifier():
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))
    module.pretrained_cfg = {"classifier": "7"}
    groups = group_layers(module, "layer_decay:0.5")
    assert [(group.name, len(group.layers), group.lr_scale) for group in groups] == [
        ("depth_0", 12, 0.25),
        ("depth_1", 2, 0.5),
        ("depth_2", 2, 1.0),
    ]


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "convnext_atto", "resnet18", "efficientnet_b0", "fallback"]
)
def test_layer_decay_has_the_scales_of_timm(name, caplog):
    caplog.set_level(logging.CRITICAL)
    timm = pytest.importorskip("timm", exc_type=ImportError)
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        model = timm.create_model("resnet18" if name == "fallback" else name)
    if name == "fallback":
        module = nn.Module()
        vars(module)["pretrained_cfg"] = {"classifier": "model.fc"}
        module.model = model
        model.group_matcher = None
        model = module
    theirs = param_groups_layer_decay(model, layer_decay=0.75)
    expected = {p: group["lr_scale"] for group in theirs for p in group["params"]}
    optimizer = build_optimizer("adamw", model, groups="layer_decay:0.75", lr=1e-3)
    found = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(set(expected.values())) > 2
    assert found == {p: 1e-3 * scale for p, scale in expected.items()}


def test_states_go_back_to_the_same_groups():
    module = net()
    for cls in ("aida", "adamw"):
        optimizer = build_optimizer(cls, module, groups=GROUPS)
        run(module, torch.ones(2, 3)).sum().backward()
        optimizer.step()
        other = build_optimizer(cls, module, groups=GROUPS)
        other.load_state_dict(optimizer.state_dict())
        assert [g["name"] for g in other.param_groups] == ["default", *GROUPS]
        for param in module.parameters():
            assert torch.equal(other.state[param]["exp_avg"], optimizer.state[param]["exp_avg"])


class Packed(nn.Module):
    """Packs three projections in a layer, and four gates in another."""

    def __init__(self):
        super().__init__()
        self.attention, self.lstm = nn.MultiheadAttention(8, 2), nn.LSTM(8, 8)


def test_each_group_has_its_own_partition():
    groups = {"*.in_proj_*": {"partition": 3}, "lstm.weight*": {"partition": [8, 24]}}
    module = Packed()
    optimizer = build_optimizer("laida", module, groups=groups, partition="rows")
    for param in module.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    numbers = {
        name: len(optimizer.state[param]["exp_avg_sq"]) for name, param in module.named_parameters()
    }
    assert numbers["attention.in_proj_weight"] == numbers["attention.in_proj_bias"] == 3
    assert numbers["lstm.weight_hh_l0"] == 2
    assert numbers["attention.out_proj.weight"] == 8
    assert numbers["lstm.bias_ih_l0"] == 32


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (5, r"5, it does not divide dimension 0 of .*\[24, 8\] \(attention.in_proj_weight\)"),
        ("colums", r"groups: '\*.in_proj_\*': Invalid partition: 'colums', it must be None"),
    ],
)
def test_a_partition_that_does_not_fit_names_the_layer_or_the_pattern(partition, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer("laida", Packed(), groups={"*.in_proj_*": {"partition": partition}})
    with pytest.raises(TypeError, match="AdamW has no option 'partition'"):
        build_optimizer("adamw", Packed(), partition=3)


class Mixed(nn.Module):
    """Layers that hold 3 and 4 parts, and one of 5 rows that no number divides."""

    def __init__(self):
        super().__init__()
        self.attention, self.lstm = nn.MultiheadAttention(6, 2), nn.LSTM(6, 3)
        self.head = nn.Linear(6, 5)


def partitions_of(optimizer):
    return {group["name"]: group["partition"] for group in optimizer.param_groups}


@pytest.mark.parametrize("name", ["aida", "ladam", "setadam"])
def test_patterns_choose_partitions_of_any_number_of_parts(name):
    groups = {
        "*.in_proj_weight": {"partition": 3},
        "*.weight_hh*": {"partition": [3, 9]},
        "*.weight_ih*": {"partition": "rows"},
    }
    optimizer = build_optimizer(name, Mixed(), groups=groups)
    expected = [None, 3, (3, 9), "rows"]
    assert partitions_of(optimizer) == dict(zip(("default", *groups), expected, strict=True))


def test_a_pattern_may_exempt_a_layer_from_the_partition_of_all():
    optimizer = build_optimizer("ladam", Mixed(), partition=3, groups={"head.*": {"partition": 5}})
    assert partitions_of(optimizer) == {"default": 3, "head.*": 5}


def test_a_callable_is_asked_about_layers_of_the_module_alone():
    shapes = []
    groups = {"head.*": {"partition": lambda layer: shapes.append([*layer.shape])}}
    build_optimizer("ladam", Mixed(), groups=groups)
    assert {*map(tuple, shapes)} == {(5, 6), (5,)}


def test_a_partition_that_does_not_suit_a_layer_names_the_layer():
    with pytest.raises(ValueError, match=r"does not divide .* shape \[18, 6\] \(attention.in_proj"):
        build_optimizer("ladam", Mixed(), groups={"*.in_proj_weight": {"partition": 4}})
    with pytest.raises(ValueError, match=r"'head\.\*': Invalid partition: 'columns'"):
        build_optimizer("ladam", Mixed(), groups={"head.*": {"partition": "columns"}})
