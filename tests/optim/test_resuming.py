"""What state dicts hold, and what is said of those of another optimizer."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from parameters import each_optimizer
from torch import nn
from torch.optim import SGD, Adam

from aida_lightning import (
    MSVAG,
    AdaBelief,
    AdamPlus,
    Aida,
    Fromage,
    LAdam,
    Yogi,
    build_optimizer,
    optim,
)

CONFIG = OmegaConf.create(
    {"lr": 0.1, "betas": [0.8, 0.99], "eps": 1e-6, "weight_decay": 1, "k": 1, "xi": 1e-12}
)
OTHERS = {
    "lr": np.float64(0.1),
    "betas": np.array([0.8, 0.99]),
    "eps": np.float32(1e-6),
    "weight_decay": np.int64(1),
    "k": np.int64(1),
    "maximize": np.True_,
}


def stepped(cls, **options):
    param = nn.Parameter(torch.ones(3))
    optimizer = cls([param], **options)
    param.grad = torch.ones(3)
    optimizer.step()
    return optimizer


def through_a_file(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def accepted(cls, options):
    names = cls([torch.zeros(1)]).defaults
    return {name: options[name] for name in options if name in names}


@pytest.mark.parametrize("options", [CONFIG, OTHERS], ids=["OmegaConf", "NumPy"])
@pytest.mark.parametrize("name", [*optim.__all__])
def test_options_of_any_kind_are_saved_as_plain_numbers(name, options):
    if name == "LayerwiseOptimizer":
        pytest.skip("it is the base")
    cls = getattr(optim, name)
    given = accepted(cls, options)
    optimizer = stepped(cls, **given)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **given})
    for group in optimizer.param_groups:
        if "betas" in group:
            assert type(group["betas"]) is tuple
            assert [type(beta) for beta in group["betas"]] == [float, float]
            assert group["betas"] == (0.8, 0.99)
        plain = (int, float, bool, tuple, type(None))
        assert all(type(group[key]) in plain for key in optimizer.defaults)
    other = cls([{"params": [torch.zeros(3)]}, {"params": [torch.zeros(2)]}], **given)
    other.load_state_dict(through_a_file(optimizer.state_dict()))


@pytest.mark.parametrize("betas", [{0.9, 0.99}, "0.9", 0.9, (0.9,), [0.9, "x"], [0.9, True]])
def test_betas_that_are_no_pair_of_numbers_are_refused(betas):
    with pytest.raises((TypeError, ValueError), match="beta"):
        Yogi([torch.zeros(1)], betas=betas)


@pytest.mark.parametrize("name", ["maximize", "decoupled_weight_decay", "foreach"])
@pytest.mark.parametrize("value", ["false", 1, 0.0])
def test_a_flag_that_is_no_bool_is_refused(name, value):
    with pytest.raises(TypeError, match=f"Invalid {name} value: {value!r}, it must be True or"):
        Aida([torch.zeros(1)], **{name: value})


@each_optimizer
def test_its_own_state_is_loaded_without_a_word(name):
    cls = getattr(optim, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state_dict = through_a_file(stepped(cls).state_dict())
        assert state_dict["param_groups"][0]["optimizer"] == name
        optimizer = cls([nn.Parameter(torch.ones(3))])
        optimizer.load_state_dict(state_dict)
        del state_dict["param_groups"][0]["optimizer"]  # as it was saved before
        optimizer.load_state_dict(state_dict)
    assert "optimizer" not in optimizer.param_groups[0]
    assert optimizer.state_dict()["param_groups"][0]["optimizer"] == name


@pytest.mark.parametrize(
    ("saved", "loading", "named"),
    [
        (Adam, Aida, "an optimizer with 'amsgrad'"),
        (Aida, AdaBelief, "Aida"),
        (AdaBelief, AdamPlus, "AdaBelief"),
        (AdamPlus, Aida, "AdamPlus"),
        (Adam, Yogi, "an optimizer with 'amsgrad'"),
        (Yogi, MSVAG, "Yogi"),
    ],
)
def test_the_state_of_another_optimizer_is_loaded_with_a_warning(saved, loading, named):
    state_dict = through_a_file(stepped(saved).state_dict())
    with pytest.warns(UserWarning, match=f"is one of {named}, not of {loading.__name__}"):
        loading([nn.Parameter(torch.ones(3))]).load_state_dict(state_dict)


@pytest.mark.parametrize(
    ("saved", "loading", "fault"),
    [
        (SGD, Yogi, "an optimizer with 'momentum': it lacks 'step'"),
        (SGD, Aida, "an optimizer with 'momentum': it lacks 'step'"),
        (LAdam, MSVAG, r"LAdam: exp_avg_sq has the shape \[\], not \[3\]"),
        (Aida, Fromage, r"Aida: it has .*, but Fromage keeps nothing"),
    ],
)
def test_state_that_does_not_fit_is_refused(saved, loading, fault):
    options = {"lr": 0.1, "momentum": 0.9} if saved is SGD else {}
    state_dict = stepped(saved, **options).state_dict()
    optimizer = loading([nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match=f"is not one of {loading.__name__}, but of {fault}"):
        optimizer.load_state_dict(state_dict)
    assert not optimizer.state


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_torchs_optimizers_by_name_refuse_the_groups_of_ours_in_a_sentence(name):
    state_dict = stepped(Aida).state_dict()
    optimizer = build_optimizer(name, nn.Linear(2, 2))
    pattern = "is not one of [A-Za-z]*, but of Aida: its groups lack"
    with pytest.raises(ValueError, match=pattern):
        optimizer.load_state_dict(state_dict)
    optimizer.load_state_dict(optimizer.state_dict())
    copy.deepcopy(optimizer).load_state_dict(optimizer.state_dict())
    with pytest.warns(UserWarning, match="is one of Aida, not of RAdam"):
        build_optimizer("radam", nn.Linear(1, 2)).load_state_dict(
            build_optimizer("aida", nn.Linear(1, 2)).state_dict()
        )


@pytest.mark.parametrize("cls", [Yogi, MSVAG, Fromage])
def test_an_error_in_the_second_group_changes_nothing_of_a_baseline(cls):
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = cls([{"params": [param]} for param in params])
    params[0].grad, params[1].grad = torch.ones(3), torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(params[0], torch.ones(3))


def test_a_number_in_the_place_of_a_tensor_is_refused():
    state_dict = stepped(Aida).state_dict()
    state_dict["state"][0]["exp_avg_sq"] = 0.5
    with pytest.raises(ValueError, match=r"exp_avg_sq has no shape, not \[3\]"):
        Aida([nn.Parameter(torch.ones(3))]).load_state_dict(state_dict)


def test_a_rate_in_an_array_without_dimensions_is_a_number():
    (group,) = Aida([torch.zeros(1)], lr=np.array(0.25)).param_groups
    assert type(group["lr"]) is float
    assert group["lr"] == 0.25
