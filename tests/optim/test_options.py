"""What the family accepts and refuses."""

import copy
import math
import pickle
import sys
from types import ModuleType

import pytest
import reference
import torch
from torch import nn

from aida_lightning import optim

OPTIMIZERS = sorted(reference.MEMBERS)
NAN = math.nan


def build(name="Aida", **options):
    return getattr(optim, name)([nn.Parameter(torch.ones(2, 2))], **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"Invalid learning rate: -1.0, it must be >= 0"),
        ({"lr": NAN}, r"Invalid learning rate: nan, it must be >= 0"),
        ({"lr": torch.ones(2)}, r"Tensor lr must be 1-element"),
        ({"betas": (1.0, 0.999)}, r"parameter at index 0: 1.0, it must be in \[0, 1\)"),
        ({"betas": (0.9, -0.1)}, r"parameter at index 1: -0.1, it must be in \[0, 1\)"),
        ({"betas": (0.9, NAN)}, r"parameter at index 1: nan, it must be in \[0, 1\)"),
        ({"eps": 0.0}, r"Invalid epsilon value: 0.0, it must be > 0"),
        ({"eps": -1e-8}, r"Invalid epsilon value: -1e-08, it must be > 0"),
        ({"eps": NAN}, r"Invalid epsilon value: nan, it must be > 0"),
        ({"weight_decay": -0.1}, r"Invalid weight_decay value: -0.1, it must be >= 0"),
        ({"weight_decay": NAN}, r"Invalid weight_decay value: nan, it must be >= 0"),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


@pytest.mark.parametrize("name", ["Aida", "LAida"])
@pytest.mark.parametrize("k", [-1, 1.0, 2.5, NAN, True, "2"])
def test_k_must_be_an_int_of_at_least_zero(name, k):
    with pytest.raises(ValueError, match=rf"projections k: {k!r}, it must be an int >= 0"):
        build(name, k=k)


@pytest.mark.parametrize("name", ["Aida", "LAida", "AidaGrad"])
@pytest.mark.parametrize("xi", [0.0, -1e-20, NAN])
def test_xi_must_be_positive(name, xi):
    with pytest.raises(ValueError, match=rf"Invalid xi value: {xi}, it must be > 0"):
        build(name, xi=xi)


@pytest.mark.parametrize("tau", [-0.1, 1.0, NAN])
def test_tau_must_be_a_fraction(tau):
    with pytest.raises(ValueError, match=rf"Invalid tau value: {tau}, it must be in \[0, 1\)"):
        build("SETAdam", tau=tau)


def test_a_groups_options_are_checked_too():
    optimizer = build()
    with pytest.raises(ValueError, match="Invalid epsilon value: 0, it must be > 0"):
        optimizer.add_param_group({"params": [torch.ones(1)], "eps": 0})
    assert len(optimizer.param_groups) == 1


def test_only_projecting_members_have_k_and_xi_and_one_has_tau():
    having = {
        option: [n for n in OPTIMIZERS if option in build(n).defaults]
        for option in ("k", "xi", "tau")
    }
    projecting = {"k": ["Aida", "LAida"], "xi": ["Aida", "AidaGrad", "LAida"]}
    assert having == {**projecting, "tau": ["SETAdam"]}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_continues_as_the_original_does(name, copied):
    optimizer = build(name, lr=0.1)
    gradients = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(0))
    for gradient in gradients[:3]:
        optimizer.param_groups[0]["params"][0].grad = gradient
        optimizer.step()
    twin = copied(optimizer)
    for gradient in gradients[3:]:
        for each in (optimizer, twin):
            each.param_groups[0]["params"][0].grad = gradient
            each.step()
    ours, theirs = (each.param_groups[0]["params"][0] for each in (optimizer, twin))
    assert ours is not theirs
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_saved_state_continues_as_if_unbroken(name, tmp_path):
    gradients = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(0))
    optimizer = build(name, lr=0.1)
    (param,) = optimizer.param_groups[0]["params"]
    for gradient in gradients[:3]:
        param.grad = gradient
        optimizer.step()
    torch.save({"optimizer": optimizer.state_dict(), "param": param.data}, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    resumed = build(name, lr=0.5)
    resumed.param_groups[0]["params"][0].data.copy_(saved["param"])
    resumed.load_state_dict(saved["optimizer"])
    for gradient in gradients[3:]:
        for each in (optimizer, resumed):
            each.param_groups[0]["params"][0].grad = gradient
            each.step()
    assert torch.equal(param, resumed.param_groups[0]["params"][0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loading_keeps_the_dtype_of_step_and_statistic(name):
    optimizer = getattr(optim, name)([nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))])
    (param,) = optimizer.param_groups[0]["params"]
    param.grad = torch.ones_like(param)
    optimizer.step()
    state = optimizer.state[param]
    state["step"].fill_(1_000_001)
    state["exp_avg_sq"].fill_(1 + 2**-20)
    assert state["exp_avg_sq"].dtype == torch.float32
    optimizer.load_state_dict(optimizer.state_dict())
    state = optimizer.state[param]
    assert state["step"].item() == 1_000_001
    assert (state["exp_avg_sq"] == 1 + 2**-20).all()
    assert state["exp_avg_sq"].dtype == torch.float32


def test_the_stepsize_of_a_foreign_tensor_is_refused():
    optimizer = build()
    with pytest.raises(KeyError, match="not a parameter that a step has updated"):
        optimizer.stepsize(torch.ones(1))
    with pytest.raises(KeyError, match="not a parameter that a step has updated"):
        optimizer.stepsize(optimizer.param_groups[0]["params"][0])


def test_flat_shards_of_fsdp1_are_refused_too():
    param = nn.Parameter(torch.ones(4))
    param._fsdp_flattened = True
    param.grad = torch.ones(4)
    with pytest.raises(RuntimeError, match="LAdam does not support FSDP1"):
        optim.LAdam([param]).step()


def test_flat_partitions_that_took_the_layers_place_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    optimizer = optim.Aida([nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))])
    flat = torch.ones(5, requires_grad=True)  # as DeepSpeed's ZeRO replaces them
    flat.grad = torch.ones(5)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(RuntimeError, match="a flat tensor of 5 elements"):
        optimizer.step()
    optimizer = optim.AdaBelief([nn.Parameter(torch.ones(2, 3))])
    optimizer.param_groups[0]["params"] = [flat]
    optimizer.step()


@pytest.mark.parametrize("copied", [False, True])
def test_layers_that_callers_put_into_the_groups_are_updated(copied):
    """As Lightning's BaseFinetuning assigns the groups when it goes on from a checkpoint."""
    optimizer = optim.Aida([nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))])
    optimizer = copy.deepcopy(optimizer) if copied else optimizer
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    optimizer.param_groups = [*optimizer.param_groups, dict(optimizer.param_groups[0])]
    optimizer.param_groups[-1]["params"] = [nn.Parameter(torch.ones(5))]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert all((param != 1).all() for param in params)


def test_no_groups_are_no_layers():
    optimizer = optim.Aida([nn.Parameter(torch.ones(1))])
    optimizer.param_groups = []
    assert optimizer.step(lambda: 2.0) == 2.0


def test_unnamed_groups_that_join_named_ones_have_names_of_their_own():
    first, *others = (nn.Parameter(torch.ones(1)) for _ in range(3))
    optimizer = optim.Aida([("weight", first)])
    for param in others:
        optimizer.add_param_group({"params": [param]})
    names = [group["param_names"] for group in optimizer.param_groups]
    assert names == [["weight"], ["group_1.0"], ["group_2.0"]]


def test_a_set_of_parameters_is_refused_beside_named_ones():
    optimizer = optim.Aida(nn.Linear(2, 1).named_parameters())
    with pytest.raises(TypeError, match="set"):
        optimizer.add_param_group({"params": {nn.Parameter(torch.ones(1))}})


def test_another_optimizers_state_is_refused_before_anything_is_loaded():
    def stepped(cls, **options):
        param = nn.Parameter(torch.ones(2))
        optimizer = cls([param], lr=0.5, **options)
        param.grad = torch.ones(2)
        optimizer.step()
        return optimizer

    target = stepped(optim.LAida)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(
        ValueError, match=r"of LAida, but of Aida: exp_avg_sq has the shape \[2\], not"
    ):
        target.load_state_dict(stepped(optim.Aida).state_dict())
    wide = optim.LAida([nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match=r"not one of LAida: exp_avg has the shape \[2\], not \[3"):
        wide.load_state_dict(before)
    assert not wide.state
    with pytest.raises(ValueError, match=r"not one of Aida, but of .*: it lacks 'step'"):
        build(lr=0.1).load_state_dict(stepped(torch.optim.SGD, momentum=0.9).state_dict())
    after = target.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"][0]["exp_avg_sq"].shape == ()


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="torch gives gradients the parameter's dtype"
)
def test_foreach_leaves_gradients_of_mixed_dtypes_as_they_are():
    first, second = (nn.Parameter(torch.ones(3).bfloat16()) for _ in range(2))
    second.grad_dtype = None
    first.grad, second.grad = torch.ones(3).bfloat16(), torch.full((3,), 0.5)
    optim.Aida([first, second], foreach=True).step()
    assert second.grad.tolist() == [0.5] * 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_autograd_goes_through_several_steps(name):
    def train(gradient):
        param = torch.ones(3, dtype=torch.float64, requires_grad=True).clone()
        optimizer = getattr(optim, name)([param], lr=0.1, differentiable=True)
        for scale in (1, 2, 3):
            param.grad = gradient * scale
            optimizer.step()
        return param

    gradient = torch.tensor([0.3, 0.5, -0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(train, (gradient,))
