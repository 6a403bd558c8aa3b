"""The stepsizes of other packages' optimizers, against the weights before and after each step.

The real classes are tested where they can be installed. Of apex's and DeepSpeed's fused ones, which
run on a GPU alone, a stand-in has the class's name and lays its state out as the source does.
"""

import functools
import importlib
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from stepping import along_gradient, along_momentum, assert_moves, assert_near, steps

from aida_lightning.diagnostics import (
    foreign,
    has_stepsize,
    momentum,
    second_moment,
    stepsize,
    torch_optimizers,
    why_none,
)

PYTORCH_OPTIMIZER = "pytorch_optimizer.optimizer."


def load(path):
    """Import a class by its path, or skip the test where its package is not installed."""
    module, _, name = path.rpartition(".")
    pytest.importorskip(module.partition(".")[0], reason="the package is not installed")
    return getattr(importlib.import_module(module), name)


def signed(step):
    return -along_momentum(step).abs() * step.grad.sign()


def projected(step):
    """AdamP takes the part along the weights of each row off the update, of matrices alone."""
    update = along_momentum(step)
    if update.dim() == 1:
        return update
    unit = step.before / (step.before.norm(dim=1, keepdim=True) + step.group["eps"])
    return update - unit * (unit * update).sum(dim=1, keepdim=True)


def with_slow_momentum(step):
    slow = step.group["lr"] * step.group["alpha"] * step.state["exp_avg_slow"]
    return along_momentum(step) - slow * step.s


def with_earlier_updates(step):
    earlier = step.earlier.get("acc_delta", torch.zeros_like(step.grad))
    ratio = (earlier + step.group["eps"]) / (step.state["acc_delta"] + step.group["eps"])
    return along_gradient(step) * ratio.sqrt()


def scaled_and_clipped(step):
    """AdaFactor: the momentum averages whole updates."""
    group = step.group
    eps2 = group["eps2"] if "eps2" in group else group["eps"][1]
    scale = max(eps2, step.before.square().mean().sqrt()) if group["scale_parameter"] else 1.0
    clip = max(1.0, (step.s * step.grad).square().mean().sqrt().item())
    update = step.rate * scale / clip * step.grad * step.s
    beta1 = group["beta1"] if "beta1" in group else group["betas"][0]
    if beta1 is not None:
        earlier = step.earlier.get("exp_avg", torch.zeros_like(update)).to(update.dtype)
        update = update.lerp(earlier, beta1)
        assert_near(step.momentum, update)
    return -update


def schedule_free(step):
    """The stepsizes multiply the gradient in the step of z, which the weights y follow."""
    group, z_before = step.group, step.earlier.get("z", step.before)
    of_z = -step.rate * step.s * step.grad
    assert_near(step.state["z"] - z_before, of_z, rounded=step.before.norm())
    weight = step.t ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
    c, beta1 = weight / group["weight_sum"], group["betas"][0]
    return c * (z_before - step.before) + (1 - beta1 * (1 - c)) * of_z


CASES = [
    ("adabelief.AdaBelief", {}, along_momentum),
    ("adabelief.AdaBelief", {"foreach": False, "eps": 1e-4, "ams_bound": True}, along_momentum),
    ("adabelief.AdaBelief", {"rectify": True, "betas": (0.9, 0.99), "ams_bound": True,
                             "adam_debias": True}, along_momentum),
    ("adabelief.AdaBelief", {"rectify": True, "degenerated_to_sgd": False, "maximize": True,
                             "betas": (0.9, 0.99)}, along_momentum),
    ("adadelta.AdaDelta", {}, with_earlier_updates),
    ("adafactor.AdaFactor", {"betas": (None, 0.999)}, scaled_and_clipped),
    ("adafactor.AdaFactor", {"relative_step": False, "scale_parameter": False, "foreach": False,
                             "momentum_dtype": torch.float64}, scaled_and_clipped),
    ("adafactor.AdaFactor", {"warmup_init": True, "ams_bound": True, "betas": (None, 0.8)},
     scaled_and_clipped),
    ("adamax.AdaMax", {}, along_momentum),
    ("adamax.AdaMax", {"adam_debias": True, "eps": 1e-2}, along_momentum),
    ("adamc.AdamC", {"ams_bound": True}, along_momentum),
    ("adamp.AdamP", {"delta": 0.0, "eps": 1e-2}, along_momentum),
    ("adamp.AdamP", {"delta": 10.0}, projected),
    ("ademamix.AdEMAMix", {}, with_slow_momentum),
    ("aida.Aida", {}, along_momentum),
    ("aida.Aida", {"eps": 1e-4, "ams_bound": True, "foreach": False, "k": 1}, along_momentum),
    ("aida.Aida", {"rectify": True, "betas": (0.9, 0.99), "maximize": True}, along_momentum),
    ("grams.Grams", {"eps": 1e-2}, signed),
    ("lamb.Lamb", {}, along_momentum),
    ("lamb.Lamb", {"adam": True, "foreach": False, "eps": 1e-2}, along_momentum),
    ("lamb.Lamb", {"rectify": True, "betas": (0.9, 0.99)}, along_momentum),
    ("radam.RAdam", {"betas": (0.9, 0.99), "eps": 1e-2}, along_momentum),
    ("radam.RAdam", {"betas": (0.9, 0.99), "degenerated_to_sgd": True}, along_momentum),
    ("schedulefree.ScheduleFreeAdamW", {"warmup_steps": 4}, schedule_free),
    ("schedulefree.ScheduleFreeAdamW", {"ams_bound": True, "eps": 1e-3}, schedule_free),
    ("yogi.Yogi", {}, along_momentum),
    ("yogi.Yogi", {"adam_debias": True, "foreach": False}, along_momentum),
]  # fmt: skip
CASES = [(PYTORCH_OPTIMIZER + path, options, expected) for path, options, expected in CASES] + [
    ("schedulefree.AdamWScheduleFree", {}, schedule_free),
    ("schedulefree.AdamWScheduleFree", {"warmup_steps": 4, "eps": 1e-2, "foreach": False,
                                        "r": 1.0}, schedule_free),
    ("adabelief_pytorch.AdaBelief", {"rectify": False, "print_change_log": False},
     along_momentum),
    ("adabelief_pytorch.AdaBelief", {"amsgrad": True, "betas": (0.9, 0.99),
                                     "print_change_log": False}, along_momentum),
    ("timm.optim.AdaBelief", {"rectify": False, "amsgrad": True}, along_momentum),
    ("timm.optim.AdaBelief", {"amsgrad": True, "betas": (0.9, 0.99)}, along_momentum),
    ("timm.optim.AdamWLegacy", {"weight_decay": 0.0, "amsgrad": True}, along_momentum),
    ("transformers.optimization.Adafactor", {}, scaled_and_clipped),
    ("transformers.optimization.Adafactor", {"lr": 0.1, "relative_step": False, "beta1": 0.8,
                                             "scale_parameter": False}, scaled_and_clipped),
    ("transformers.optimization.Adafactor", {"warmup_init": True}, scaled_and_clipped),
]  # fmt: skip


def build(path):
    def built(params, **options):
        optimizer = load(path)(params, **options)
        getattr(optimizer, "train", lambda: None)()
        return optimizer

    return built


SECOND_MOMENTS = [
    ("pytorch_optimizer.AdaBelief", {"ams_bound": True}, "max_exp_avg_var"),
    ("pytorch_optimizer.Aida", {}, "exp_avg_var"),
    ("pytorch_optimizer.Yogi", {}, "exp_avg_sq"),
    ("pytorch_optimizer.AdaDelta", {}, "square_avg"),
    ("schedulefree.AdamWScheduleFree", {}, "exp_avg_sq"),
    ("torch.optim.Adam", {"amsgrad": True}, "max_exp_avg_sq"),
    ("torch.optim.RMSprop", {"centered": True}, "square_avg"),
    ("torch.optim.Adagrad", {}, "sum"),
    ("aida_lightning.Aida", {}, "exp_avg_sq"),
    ("aida_lightning.MSVAG", {}, "exp_avg_sq"),
    ("torch.optim.SGD", {"momentum": 0.9}, None),
    ("pytorch_optimizer.Lion", {}, None),
]


@pytest.mark.parametrize(("path", "options", "name"), SECOND_MOMENTS)
def test_the_second_moment_is_the_states(path, options, name):
    for step in steps(build(path), count=2, **options):
        v = second_moment(step.optimizer, step.group, step.state)
        assert v is (step.state[name] if name else None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("path", "options", "expected"), CASES)
def test_stepsizes_reproduce_the_update_that_the_weights_took(path, options, expected, dtype):
    for step in steps(build(path), dtype, **options):
        assert has_stepsize(step.optimizer)
        assert step.s.shape == step.before.shape
        assert_moves(step, expected(step))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (PYTORCH_OPTIMIZER + "lion.Lion", "sign"), (PYTORCH_OPTIMIZER + "tiger.Tiger", "sign"),
        (PYTORCH_OPTIMIZER + "sgd.SignSGD", "sign"), (PYTORCH_OPTIMIZER + "sgd.SGDW", "one"),
        (PYTORCH_OPTIMIZER + "sgd.ASGD", "one"), (PYTORCH_OPTIMIZER + "lars.LARS", "one"),
        (PYTORCH_OPTIMIZER + "schedulefree.ScheduleFreeSGD", "one"),
        (PYTORCH_OPTIMIZER + "shampoo.Shampoo", "matrix"),
        (PYTORCH_OPTIMIZER + "soap.SOAP", "matrix"), (PYTORCH_OPTIMIZER + "psgd.Kron", "matrix"),
        (PYTORCH_OPTIMIZER + "muon.Muon", "orthogonal"),
        ("schedulefree.SGDScheduleFree", "one"), ("lion_pytorch.Lion", "sign"),
        ("timm.optim.Lion", "sign"), ("timm.optim.Muon", "orthogonal"), ("timm.optim.SGDW", "one"),
        ("bitsandbytes.optim.Lion8bit", "sign"), ("bitsandbytes.optim.SGD", "one"),
        ("bitsandbytes.optim.LARS", "one"), ("deepspeed.ops.lion.FusedLion", "sign"),
    ],
)  # fmt: skip
def test_optimizers_without_stepsizes_say_why(path, reason):
    optimizer_class = load(path)
    optimizer = optimizer_class.__new__(optimizer_class)
    assert not has_stepsize(optimizer)
    assert reason in why_none(optimizer)


def test_the_relative_step_of_adafactor_decays_after_its_first_steps():
    group = {"relative_step": True, "warmup_init": False}
    rate = functools.partial(foreign.relative_step_rate, None)
    assert rate(group, {"step": 10_000}, None) == 1e-2
    assert rate(group, {"step": 40_000}, None) == pytest.approx(1 / 200)
    assert rate({**group, "warmup_init": True}, {"step": 40_000}, None) == pytest.approx(1 / 200)


def test_a_buffer_that_holds_weights_is_no_momentum():
    for step in steps(load(PYTORCH_OPTIMIZER + "sgd.AccSGD"), count=2):
        assert step.state["momentum_buffer"].shape == step.before.shape
        assert momentum(step.optimizer, step.group, step.state) is None


def test_optimizers_that_no_one_described_are_not_known():
    optimizer = load(PYTORCH_OPTIMIZER + "adan.Adan")([torch.zeros(1)])
    assert not has_stepsize(optimizer)
    assert why_none(optimizer) is None


def rounded(step):
    """Compare only where the second moment was not rounded to 0."""
    known = step.s < 1e6
    return torch.where(known, along_momentum(step), step.moved)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("_AdamW", 0), ("Adam8bit", 0.1), ("AdamW8bit", 0.1), ("AdamFp8", 0.1), ("AdamWFp8", 0.1),
        ("Adam4bit", 0.6), ("AdamW4bit", 0.6),
    ],
)  # fmt: skip
def test_stepsizes_of_torchao_are_those_of_the_values_that_its_low_bits_stand_for(name, error):
    optimizer_class = load(f"torchao.optim.adam.{name}")
    options = {"weight_decay": 0.0, "amsgrad": name == "_AdamW", "lr": 0.02}
    with torch.compiler.set_stance("force_eager"):
        for step in steps(optimizer_class, torch.float32, wide=1024, **options):
            held = step.state["max_exp_avg_sq" if options["amsgrad"] else "exp_avg_sq"]
            low_bit = type(held) is not torch.Tensor
            assert low_bit == (step.before.numel() >= 4096 and name != "_AdamW")
            v = held.dequantize() if low_bit else held
            expected = 1 / (v.double().sqrt() / (1 - 0.999**step.t) ** 0.5 + 1e-8)
            torch.testing.assert_close(step.s.double(), expected, rtol=1e-5, atol=0)
            assert_moves(step, rounded(step), rtol=error if low_bit else None)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("Adam", {}, rounded), ("AdamW", {"weight_decay": 0.0}, rounded),
        ("Adam8bit", {"eps": 1e-4}, rounded), ("PagedAdamW8bit", {"weight_decay": 0.0}, rounded),
        ("RMSprop", {"alpha": 0.9}, along_gradient),
        ("RMSprop8bit", {"alpha": 0.9}, along_gradient),
        ("Adagrad", {}, along_gradient), ("Adagrad8bit", {"weight_decay": 0.1}, along_gradient),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_stepsizes_of_bitsandbytes_are_those_of_the_values_that_its_codes_stand_for(
    name, options, expected
):
    optimizer_class = load(f"bitsandbytes.optim.{name}")
    with torch.compiler.set_stance("force_eager"):
        for step in steps(optimizer_class, torch.float32, wide=1025, lr=0.02, **options):
            low_bit = step.state["state1"].dtype == torch.uint8
            assert low_bit == (name.endswith("8bit") and step.before.numel() >= 4096)
            if expected is along_gradient:
                assert momentum(step.optimizer, step.group, step.state) is None
            if not low_bit:
                assert_moves(step, expected(step))
                continue
            functional = importlib.import_module("bitsandbytes.functional")
            for n, found in ((1, "state1"), (2, "state2")):
                if found in step.state:
                    state = functional.QuantState(
                        step.state[f"absmax{n}"], code=step.state[f"qmap{n}"], blocksize=256,
                        dtype=torch.float32,
                    )  # fmt: skip
                    values = functional.dequantize_blockwise(step.state[found], state)
                    torch.testing.assert_close(foreign.blockwise(step.state, n), values)
            v = second_moment(step.optimizer, step.group, step.state)
            torch.testing.assert_close(v, values)  # of the state that comes last
            assert_moves(step, torch.where(step.s < 1e6, expected(step), step.moved), rtol=0.2)


def test_codes_of_bitsandbytes_in_the_larger_blocks_of_before_are_read():
    state = {
        "state1": torch.zeros(3, 1000, dtype=torch.uint8),
        "qmap1": torch.arange(256) / 255,
        "absmax1": torch.tensor([1.0, 2.0]),
    }
    state["state1"].fill_(255)
    values = foreign.blockwise(state, 1).flatten()
    assert values[:2048].unique().tolist() == [1.0]
    assert values[2048:].unique().tolist() == [2.0]


@pytest.mark.parametrize("options", [{}, {"bias_correction": False, "eps": 1e-3}])
def test_stepsizes_of_deepspeeds_cpu_adam_reproduce_the_update(options):
    optimizer_class = load("deepspeed.ops.adam.DeepSpeedCPUAdam")
    try:
        optimizer_class([torch.nn.Parameter(torch.zeros(1))])
    except RuntimeError as error:
        pytest.skip(str(error))
    for step in steps(optimizer_class, torch.float32, lr=0.02, **options):
        assert_moves(step, along_momentum(step))


class Fused:
    """The step of apex's and DeepSpeed's Adam, whose kernel is the same.

    It is no torch optimizer, whose subclasses jsonargparse imports by their names.
    """

    def __init__(self, params, lr=0.02, bias_correction=True, betas=(0.9, 0.99), eps=1e-8):
        options = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        self.param_groups, self.state = [{"params": params, **options}], defaultdict(dict)

    def zero_grad(self):
        for p in self.param_groups[0]["params"]:
            p.grad = None

    @torch.no_grad()
    def step(self):
        (group,) = self.param_groups
        t, (beta1, beta2) = self.count(group), group["betas"]
        c1, c2 = (1 - beta1**t, 1 - beta2**t) if group["bias_correction"] else (1, 1)
        for p in group["params"]:
            state = self.state[p]
            m = state.setdefault("exp_avg", torch.zeros_like(p)).mul_(beta1)
            v = state.setdefault("exp_avg_sq", torch.zeros_like(p)).mul_(beta2)
            m.add_(p.grad, alpha=1 - beta1)
            v.addcmul_(p.grad, p.grad, value=1 - beta2)
            p.sub_(group["lr"] * (m / c1) / ((v / c2).sqrt() + group["eps"]))


class ApexAdam(Fused):
    def count(self, group):
        group["step"] = group.get("step", 0) + 1
        return group["step"]


class DeepSpeedAdam(Fused):
    def count(self, group):
        group.setdefault("step", 0)
        for p in group["params"]:
            self.state[p].setdefault("step", group["step"])
        self.state[p]["step"] += 1  # of the last layer alone
        return self.state[p]["step"]


ApexAdam.__module__, ApexAdam.__qualname__ = "apex.optimizers.fused_adam", "FusedAdam"
DeepSpeedAdam.__module__, DeepSpeedAdam.__qualname__ = "deepspeed.ops.adam.fused_adam", "FusedAdam"


@pytest.mark.parametrize("stand_in", [ApexAdam, DeepSpeedAdam])
@pytest.mark.parametrize("options", [{}, {"bias_correction": False, "eps": 1e-3}])
def test_stepsizes_of_fused_optimizers_reproduce_the_update(stand_in, options):
    for step in steps(stand_in, **options):
        assert_moves(step, along_momentum(step))


def test_the_fused_adagrad_of_apex_has_stepsizes():
    class FusedAdagrad:
        __module__, __qualname__ = "apex.optimizers.fused_adagrad", "FusedAdagrad"

    s = stepsize(FusedAdagrad(), {"lr": 0.1, "eps": 1.0}, {"sum": torch.tensor([0.0, 9.0])})
    assert s.tolist() == [1.0, 0.25]


def test_the_table_in_the_documentation_names_each_class_that_is_known():
    page = (Path(__file__).parents[2] / "docs/stepsizes.md").read_text(encoding="utf-8")
    named = {name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", page)}
    known = {path.rpartition(".")[2] for path in [*foreign.ADAPTERS, *torch_optimizers.ADAPTERS]}
    assert {name for name in known if not name.islower()} <= named  # and not those of modules
