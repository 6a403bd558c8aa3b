import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, StepLR

import aida_lightning
from aida_lightning import OptimizerMixin, build_optimizer, list_optimizers
from aida_lightning.registry import get_optimizer_class

ALL = [
    "adabelief", "adabeliefl", "adam", "adaml", "adamplus", "adamw", "aida", "aidagrad",
    "fromage", "ladabelief", "ladam", "laida", "msvag", "radam", "setadam", "sgd",
    "yogi",
]  # fmt: skip


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_the_seventeen_methods_are_listed():
    assert list_optimizers() == ALL
    assert len(ALL) == 17
    assert list_optimizers("*AIDA*") == ["aida", "aidagrad", "laida"]


@pytest.mark.parametrize("name", ALL)
def test_every_method_builds_and_trains_by_name(name):
    module = net()
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = build_optimizer(name, module)
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.ones(5, 3)).square().sum().backward()
        optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("typed", "cls"),
    [
        ("Aida", "Aida"), ("AIDA", "Aida"), ("adam+", "AdamPlus"), ("Adam +", "AdamPlus"),
        ("AdaBelief-L", "AdaBeliefL"), ("l_adam", "LAdam"), ("M-SVAG", "MSVAG"), ("RAdam", "RAdam"),
    ],
)  # fmt: skip
def test_names_are_taken_as_people_type_them(typed, cls):
    assert get_optimizer_class(typed).__name__ == cls


def test_defaults_are_those_of_the_papers_comparison():
    def defaults(name):
        return build_optimizer(name, net()).defaults

    assert defaults("sgd")["lr"] == 0.1
    assert defaults("sgd")["momentum"] == 0.9
    assert not defaults("sgd")["nesterov"]
    assert defaults("adamw")["weight_decay"] == 1e-2
    assert defaults("radam")["decoupled_weight_decay"] is True
    assert defaults("msvag")["lr"] == 0.1
    assert defaults("fromage")["lr"] == 0.01
    assert defaults("yogi")["eps"] == 1e-3
    for name in ("adam", "adamw", "radam", "yogi", "adabelief", "aida"):
        assert defaults(name)["lr"] == 1e-3
        assert defaults(name)["betas"] == (0.9, 0.999)
    assert defaults("aida")["k"] == 2
    assert defaults("aida")["xi"] == 1e-20
    assert build_optimizer("sgd", net(), lr=0.5).defaults["lr"] == 0.5


def test_an_unknown_name_gives_the_nearest_ones():
    with pytest.raises(ValueError, match="Unknown optimizer 'aidaa', did you mean: aida"):
        build_optimizer("aidaa", net())
    with pytest.raises(ValueError, match=r"did you mean: \w+, \w+, \w+\? list_optimizers\(\) "):
        build_optimizer("foo", net())


def test_a_class_path_is_taken_in_place_of_a_name():
    assert get_optimizer_class("torch.optim.RMSprop") is torch.optim.RMSprop
    assert get_optimizer_class("torch.optim.Adam") is torch.optim.Adam
    assert build_optimizer("torch.optim.RMSprop", net(), lr=0.5).defaults["lr"] == 0.5
    with pytest.raises(TypeError, match="RMSprop has no option 'k'; its options are: lr"):
        build_optimizer("torch.optim.RMSprop", net(), k=1)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "torch.optim.RMSpop",
            r"Unknown optimizer class 'torch.optim.RMSpop', did you mean: torch.optim.RMSprop",
        ),
        (
            "torch.nowhere.Adam",
            "class 'torch.nowhere.Adam': module .torch. has no attribute .nowhere.",
        ),
        ("torch.nn.Linear", "torch.nn.Linear must be a subclass of torch.optim.Optimizer"),
        ("torch.optim.lr_scheduler", "lr_scheduler must be a subclass of torch.optim.Opt"),
    ],
)
def test_a_path_that_leads_to_no_optimizer_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        get_optimizer_class(path)


def test_a_lacking_option_is_named_with_those_there_are():
    with pytest.raises(
        TypeError, match=r"Aida has no option 'momentum'; its options are: lr, betas, eps, .*k, xi"
    ):
        build_optimizer("aida", net(), momentum=0.9)
    with pytest.raises(TypeError, match="AdamPlus has no option 'k'; its options are: lr"):
        build_optimizer("adam+", net(), k=1)


def test_a_modules_layers_have_names():
    optimizer = build_optimizer("aida", net())
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert [group["param_names"] for group in optimizer.param_groups] == [names]


def test_tensors_under_two_dimensions_can_be_exempt_from_weight_decay():
    optimizer = build_optimizer("aida", net(), weight_decay=0.1, no_decay_1d=True)
    decayed, exempt = optimizer.param_groups
    assert (decayed["param_names"], decayed["weight_decay"]) == (["0.weight", "2.weight"], 0.1)
    assert exempt["param_names"] == ["0.bias", "1.weight", "1.bias", "2.bias"]
    assert exempt["weight_decay"] == 0.0
    assert len(build_optimizer("aida", net(), weight_decay=0.1).param_groups) == 1
    with pytest.raises(ValueError, match="no_decay_1d=True needs a module"):
        build_optimizer("aida", [torch.ones(2)], no_decay_1d=True)
    with pytest.raises(TypeError, match="Fromage has no option 'weight_decay'"):
        build_optimizer("fromage", net(), no_decay_1d=True)


def test_frozen_parameters_are_left_out():
    module = net()
    module[0].requires_grad_(False)
    optimizer = build_optimizer("aida", module)
    assert optimizer.param_groups[0]["param_names"][0] == "1.weight"
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="Sequential has no parameters that require a gradient"):
        build_optimizer("aida", module)


def test_parameters_and_groups_are_taken_as_torch_takes_them():
    first, second = torch.ones(2), torch.ones(3)
    assert len(build_optimizer("aida", [first, second]).param_groups[0]["params"]) == 2
    groups = [{"params": [first], "lr": 0.5}, {"params": [second]}]
    assert [g["lr"] for g in build_optimizer("aida", groups).param_groups] == [0.5, 1e-3]


def test_classes_and_callables_are_taken():
    assert type(build_optimizer(torch.optim.RMSprop, net(), lr=0.1)) is torch.optim.RMSprop
    seen = []

    def factory(params, **options):
        seen.extend(params)
        return torch.optim.SGD(params, **options)

    optimizer = build_optimizer(factory, net(), lr=0.25)
    assert optimizer.defaults["lr"] == 0.25
    assert all(isinstance(p, nn.Parameter) for p in seen)
    with pytest.raises(TypeError, match=r"must return a torch.optim.Optimizer, got None"):
        build_optimizer(lambda params: None, net())


class Module(OptimizerMixin, nn.Module):
    def __init__(self, **declared):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        for name, value in declared.items():
            setattr(self, name, value)


def test_a_declared_optimizer_is_configured():
    optimizer = Module(optimizer="laida", optimizer_options={"k": 1}).configure_optimizers()
    assert isinstance(optimizer, aida_lightning.LAida)
    assert optimizer.defaults["k"] == 1
    assert isinstance(Module().configure_optimizers(), aida_lightning.Aida)


def test_a_declared_scheduler_is_configured():
    configured = Module(
        lr_scheduler="StepLR",
        lr_scheduler_options={"step_size": 3},
        lr_scheduler_config={"interval": "step"},
    ).configure_optimizers()
    scheduler = configured["lr_scheduler"]["scheduler"]
    assert isinstance(scheduler, StepLR)
    assert scheduler.optimizer is configured["optimizer"]
    assert configured["lr_scheduler"]["interval"] == "step"
    by_callable = Module(lr_scheduler=lambda o: LambdaLR(o, lambda _: 0.5)).configure_optimizers()
    assert by_callable["optimizer"].param_groups[0]["lr"] == 0.5e-3
    with pytest.raises(ValueError, match="Unknown LR scheduler 'Step', did you mean: StepLR"):
        Module(lr_scheduler="Step").configure_optimizers()


def test_a_function_declared_on_the_class_does_not_become_a_method():
    class WithFunction(Module):
        def optimizer(params, **options):
            return torch.optim.SGD(params, lr=0.5)

    assert WithFunction().configure_optimizers().defaults["lr"] == 0.5


def test_the_mixin_says_that_it_needs_a_module():
    with pytest.raises(TypeError, match="OptimizerMixin needs a LightningModule"):
        OptimizerMixin().configure_optimizers()


def test_names_are_given_to_the_family_only_and_unnamed_groups_may_join():
    assert "param_names" not in build_optimizer("adam", net()).param_groups[0]
    optimizer = build_optimizer("aida", net())
    extra = nn.Linear(2, 2)
    optimizer.add_param_group({"params": extra.parameters(), "lr": 0.5})
    assert optimizer.param_groups[1]["param_names"] == ["group_1.0", "group_1.1"]
    optimizer.add_param_group({"params": nn.Linear(2, 2).named_parameters()})
    assert optimizer.param_groups[2]["param_names"] == ["weight", "bias"]


def test_layers_without_a_shape_are_refused_where_it_decides():
    with pytest.raises(ValueError, match=r"\['0.weight', '0.bias'\] are not initialized yet"):
        build_optimizer("aida", nn.Sequential(nn.LazyLinear(3)), no_decay_1d=True)


@pytest.mark.parametrize("wrong", [None, 5, torch.optim.SGD([torch.ones(1)])])
def test_what_builds_no_optimizer_is_refused(wrong):
    with pytest.raises(
        TypeError, match=r"Invalid optimizer of type .*, it must be a name, an optimizer class"
    ):
        build_optimizer(wrong, net())


class Factory:
    @classmethod
    def create(cls, params, **options):
        assert cls is Factory
        return torch.optim.SGD(params, lr=0.25)


def test_other_objects_methods_stay_bound():
    class OfAClass(Module):
        optimizer = Factory.create

    assert OfAClass().configure_optimizers().defaults["lr"] == 0.25
    assert Module(optimizer=Factory().create).configure_optimizers().defaults["lr"] == 0.25


def test_the_order_of_the_bases_is_checked():
    class LightningModule(nn.Module):
        def configure_optimizers(self):
            return None

    with pytest.raises(TypeError, match="Wrong must list OptimizerMixin before LightningModule"):

        class Wrong(LightningModule, OptimizerMixin):
            pass


def test_a_schedulers_name_is_known_in_any_case():
    configured = Module(lr_scheduler="steplr", lr_scheduler_options={"step_size": 3})
    assert isinstance(configured.configure_optimizers()["lr_scheduler"]["scheduler"], StepLR)


def test_a_plateau_needs_a_metric_to_follow():
    with pytest.raises(ValueError, match=r"needs lr_scheduler_config=\{'monitor': …\}"):
        Module(lr_scheduler="ReduceLROnPlateau").configure_optimizers()
    followed = Module(
        lr_scheduler="ReduceLROnPlateau", lr_scheduler_config={"monitor": "val_loss"}
    ).configure_optimizers()
    assert followed["lr_scheduler"]["monitor"] == "val_loss"


def test_names_in_groups_are_those_of_the_module_without_wrappers():
    net = nn.Sequential(checkpoint_wrapper(nn.Linear(2, 2)), nn.Linear(2, 1))
    optimizer = build_optimizer("aida", torch.compile(net))
    names = [name for name, _ in nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).named_parameters()]
    assert optimizer.param_groups[0]["param_names"] == names


class Words(OptimizerMixin, nn.Sequential):
    """A table of words, and what reads them."""

    def __init__(self, table):
        super().__init__(table, nn.Linear(3, 1))


TORCHS = [cls for cls in vars(torch.optim).values() if isinstance(cls, type)]
TORCHS = [cls for cls in TORCHS if issubclass(cls, Optimizer) and cls is not Optimizer]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
@pytest.mark.parametrize("optimizer", [*ALL, *TORCHS])
@pytest.mark.parametrize("table", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_are_refused_at_once_where_a_step_would_refuse_them(optimizer, table):
    dense, words = Words(table(5, 3)), Words(table(5, 3, sparse=True))
    for module in (dense, words):
        module[1].requires_grad_(False)
    other = build_optimizer(optimizer, dense)
    dense[0].weight.grad = torch.ones(5, 3).to_sparse(1)
    if not stops(lambda: other.step(lambda: torch.ones(()))):
        build_optimizer(optimizer, words)
        return
    with pytest.raises(
        ValueError, match=r"does not support sparse gradients, which \['0.weight'\]"
    ):
        build_optimizer(optimizer, words)


def stops(step):
    """Tell whether a sparse gradient stops a step."""
    try:
        step()
    except RuntimeError as error:
        return "sparse" in str(error)
    return False


def test_the_mixin_refuses_sparse_gradients():
    with pytest.raises(ValueError, match="Aida does not support sparse gradients"):
        Words(nn.Embedding(5, 3, sparse=True)).configure_optimizers()


def test_embeddings_that_get_no_sparse_gradient_are_taken():
    frozen, tied = (Words(nn.Embedding(5, 3, sparse=True)) for _ in range(2))
    frozen[0].requires_grad_(False)
    tied.append(nn.Linear(3, 5))
    tied[2].weight = tied[0].weight
    for words in (frozen, tied):
        optimizer = build_optimizer("aida", words)
        hidden = words[0](torch.tensor([1, 2]))
        (words[1](hidden).sum() + (words[2](hidden).sum() if words is tied else 0)).backward()
        optimizer.step()
