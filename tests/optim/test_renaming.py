"""States of a checkpoint whose groups are not those of the optimizer."""

import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from aida_lightning import build_optimizer

A = {"*.bias": {"weight_decay": 0.0}, "head.*": {"lr": 0.5}}
B = {"head.*": {"lr": 0.25}, "features.bias": {"lr": 0.125, "betas": (0.5, 0.9)}}
DIFFER = "The checkpoint's parameter groups differ"


def net(**more):
    torch.manual_seed(0)
    return nn.ModuleDict({"features": nn.Linear(3, 4), "head": nn.Linear(4, 2), **more})


def train(module, optimizer, steps=2):
    for step in range(steps):
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        module["head"](module["features"](inputs).tanh()).square().mean().backward()
        optimizer.step()


def saved(groups, name="aida", **options):
    module = net()
    optimizer = build_optimizer(name, module, groups=groups, **options)
    train(module, optimizer)
    states = {key: optimizer.state[param] for key, param in module.named_parameters()}
    return optimizer.state_dict(), states


@pytest.mark.parametrize("name", ["aida", "laida", "ladam"])
@pytest.mark.parametrize("groups", [B, dict(reversed(A.items())), None, "no_decay_1d"])
def test_states_go_to_the_layers_of_the_same_names(name, groups):
    state, states = saved(A, name)
    module = net()
    optimizer = build_optimizer(name, module, groups=groups)
    with pytest.warns(UserWarning, match=DIFFER):
        optimizer.load_state_dict(state)
    for key, param in module.named_parameters():
        for entry, value in states[key].items():
            assert torch.equal(optimizer.state[param][entry], value)
    for group in optimizer.param_groups:
        names = {param: key for key, param in module.named_parameters()}
        assert group["param_names"] == [names[param] for param in group["params"]]
    train(module, optimizer)


def test_options_are_the_saved_ones_where_a_group_has_a_counterpart():
    state, _ = saved(A, lr=1e-2)
    optimizer = build_optimizer("aida", net(), groups=B, lr=1e-3)
    with pytest.warns(UserWarning, match=DIFFER) as warned:
        optimizer.load_state_dict(state)
    options = {g["name"]: (g["lr"], g["betas"]) for g in optimizer.param_groups}
    assert options == {
        "default": (1e-2, (0.9, 0.999)),
        "head.*": (0.5, (0.9, 0.999)),
        "features.bias": (0.125, (0.5, 0.9)),
    }
    (message,) = [str(warning.message) for warning in warned]
    assert "Layers in another group: head.bias, features.bias" in message
    assert "afresh" not in message
    assert "dropped" not in message


def test_layers_that_came_start_afresh_and_states_of_those_gone_are_dropped():
    state, _ = saved(None)
    module = net(extra=nn.Linear(4, 2))
    module["features"].bias.requires_grad_(False)
    optimizer = build_optimizer("aida", module)
    with pytest.warns(UserWarning, match=DIFFER) as warned:
        optimizer.load_state_dict(state)
    message = str(warned[0].message)
    assert "that start afresh: extra.weight, extra.bias" in message
    assert "states are dropped: features.bias." in message
    held = {key for key, param in module.named_parameters() if optimizer.state.get(param)}
    assert held == {"features.weight", "head.weight", "head.bias"}
    assert len(optimizer.state) == 3
    train(module, optimizer)
    again = optimizer.state_dict()
    other = build_optimizer("aida", module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(again)


def test_the_same_groups_load_as_before_and_saved_options_win():
    state, states = saved(A, lr=1e-2)
    module = net()
    optimizer = build_optimizer("aida", module, groups=A, lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 1e-2
    for key, param in module.named_parameters():
        assert torch.equal(optimizer.state[param]["exp_avg"], states[key]["exp_avg"])


def test_layers_with_no_name_in_common_load_by_place_as_in_torch():
    state, _ = saved(None)
    module = nn.ModuleDict({"inner": net()})
    optimizer = build_optimizer("aida", module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(state)
    assert torch.equal(
        optimizer.state[module["inner"]["head"].bias]["exp_avg"], state["state"][3]["exp_avg"]
    )
    with pytest.raises(ValueError, match=r"has 'a group' of 4, the optimizer has 'default' of 2"):
        build_optimizer("aida", module, groups={"*.bias": {}}).load_state_dict(state)


@pytest.mark.parametrize("name", ["adamw", "yogi"])
def test_an_optimizer_without_names_says_what_to_do_where_groups_differ(name):
    state, _ = saved(A, name)
    for groups, message in (
        (None, r"different number of parameter groups: it has 'default' of 1, '\*.bias' of 2, "),
        (dict(reversed(A.items())), r"doesn't match the optimizer's: .*; resume with the groups"),
        ({"*.bias": {}, "head.weight": {}}, "load only the weights"),
    ):
        with pytest.raises(ValueError, match=message):
            build_optimizer(name, net(), groups=groups).load_state_dict(state)
    build_optimizer(name, net(), groups=A).load_state_dict(state)
    for group in state["param_groups"]:  # as before groups had names
        del group["name"]
    build_optimizer(name, net(), groups=A).load_state_dict(state)


def test_a_users_own_hook_comes_first():
    state, states = saved(None)
    for group in state["param_groups"]:
        group["param_names"] = [f"old.{name}" for name in group["param_names"]]

    def rename(_, given):
        groups = [
            {**g, "param_names": [name.removeprefix("old.") for name in g["param_names"]]}
            for g in given["param_groups"]
        ]
        return {**given, "param_groups": groups}

    module = net()
    optimizer = build_optimizer("aida", module, groups=B)
    optimizer.register_load_state_dict_pre_hook(rename)
    with pytest.warns(UserWarning, match=DIFFER):
        optimizer.load_state_dict(state)
    bias = module["head"].bias
    assert torch.equal(optimizer.state[bias]["exp_avg"], states["head.bias"]["exp_avg"])


SCHEDULERS = {
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch),
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 1, 0.5),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 10),
    "cycle": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.1, 0.2, 3),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=20
    ),
    "chain": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [
            lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2),
            lr_scheduler.ExponentialLR(optimizer, 0.5),
        ],
        [2],
    ),
}


def advance(module, optimizer, scheduler, steps):
    rates = []
    for _ in range(steps):
        train(module, optimizer, 1)
        scheduler.step()
        rates.append({g["name"]: g["lr"] for g in optimizer.param_groups})
    return rates


@pytest.mark.parametrize("scheduler_first", [False, True])
@pytest.mark.parametrize("build", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedules_go_on_in_the_new_groups_as_if_they_had_been_there_all_along(
    build, scheduler_first
):
    def start(groups):
        module = net()
        optimizer = build_optimizer("aida", module, groups=groups, lr=1e-2)
        return module, optimizer, build(optimizer)

    before = {"head.*": {"lr": 0.5}}
    after = {"features.bias": {"lr": 0.125}, "head.*": {"lr": 0.5}}
    expected = advance(*start(after), 7)[4:]
    module, optimizer, scheduler = start(before)
    advance(module, optimizer, scheduler, 4)
    states = optimizer.state_dict(), scheduler.state_dict()
    module, optimizer, scheduler = start(after)
    if scheduler_first:
        scheduler.load_state_dict(states[1])
    with pytest.warns(UserWarning, match=DIFFER):
        optimizer.load_state_dict(states[0])
    if not scheduler_first:
        scheduler.load_state_dict(states[1])
    found = advance(module, optimizer, scheduler, 3)
    assert found == [pytest.approx(rates, rel=1e-12) for rates in expected]
    assert scheduler.get_last_lr() == [*found[-1].values()]


def test_a_scheduler_whose_values_of_each_group_cannot_be_matched_says_so():
    module = net()
    optimizer = build_optimizer("aida", module, groups={"head.*": {}})
    scheduler = lr_scheduler.CyclicLR(optimizer, 0.1, [0.2, 0.3], 3)
    advance(module, optimizer, scheduler, 1)
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer = build_optimizer("aida", module, groups=B)
    scheduler = lr_scheduler.CyclicLR(optimizer, 0.1, [0.2, 0.3, 0.4], 3)
    with pytest.warns(UserWarning, match=DIFFER):
        optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    for _ in range(2):  # no step is taken with a schedule that cannot follow
        with pytest.raises(RuntimeError, match=r"CyclicLR cannot .* max_lrs are \[0.2, 0.3\]"):
            train(module, optimizer)


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_schedule_of_timm_goes_on_in_the_new_groups_or_says_why_it_cannot(warmup):
    timm = pytest.importorskip("timm.scheduler", exc_type=ImportError)

    def start(groups):
        module = net()
        optimizer = build_optimizer("aida", module, groups=groups, lr=1e-2)
        return module, optimizer, timm.StepLRScheduler(optimizer, 2, 0.5, warmup_t=warmup)

    def advance(module, optimizer, scheduler, epochs):
        rates = []
        for epoch in epochs:
            train(module, optimizer, 1)
            scheduler.step(epoch + 1)
            rates.append({g["name"]: g["lr"] for g in optimizer.param_groups})
        return rates

    before = {"head.*": {"lr": 0.5}}
    after = {"features.bias": {"lr": 0.125}, "head.*": {"lr": 0.5}}
    expected = advance(*start(after), range(7))[4:]
    module, optimizer, scheduler = start(before)
    advance(module, optimizer, scheduler, range(4))
    states = optimizer.state_dict(), scheduler.state_dict()
    module, optimizer, scheduler = start(after)
    with pytest.warns(UserWarning, match=DIFFER):
        optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    if warmup:
        with pytest.raises(RuntimeError, match="its saved warmup_steps are"):
            advance(module, optimizer, scheduler, range(4, 7))
    else:
        found = advance(module, optimizer, scheduler, range(4, 7))
        assert found == [pytest.approx(rates) for rates in expected]
