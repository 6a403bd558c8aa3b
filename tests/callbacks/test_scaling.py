"""Steps that a gradient scaler left out: of a fused optimizer the device alone knows which."""

import sys
from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from toy import Net, fit, read

from aida_lightning.callbacks import StepsizeMonitor

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
TAG = "stepsize_mean/head.weight"


class Scaler(torch.amp.GradScaler):
    """Meets infinite gradients at the calls that are named, counted from 0."""

    def __init__(self, left_out):
        super().__init__("cpu", init_scale=1.0)
        self.left_out, self.calls = left_out, 0

    def step(self, optimizer, *args, **kwargs):
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            self.poison(optimizer)
        return super().step(optimizer, *args, **kwargs)

    def unscale_(self, optimizer):
        self.poison(optimizer)
        super().unscale_(optimizer)

    def poison(self, optimizer):
        if self.calls in self.left_out:
            for group in optimizer.param_groups:
                for param in group["params"]:
                    if param.grad is not None:
                        param.grad.fill_(torch.inf)
        self.calls += 1


def scaled(folder, left_out, monitor, *callbacks, fused=True, module=None, **options):
    torch.manual_seed(1)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=Scaler(left_out))
    module = module or Net("adam", fused=fused, lr=1e-2)
    return fit(folder, module, monitor, *callbacks, plugins=[plugin], **options)


PLACES = [{2, 5, 8, 11}, {11}, {9, 10, 11}, {23}, {0, 1, 2, 3, 12, 13}, {*range(12)}, set()]


@pytest.mark.parametrize("left_out", PLACES)
@pytest.mark.parametrize("interval", [{"logging_interval": "epoch"}, {"every_n_steps": 4}])
def test_left_out_steps_of_a_fused_optimizer_are_treated_as_those_of_another(
    tmp_path, left_out, interval
):
    logged = []
    for fused in (False, True):
        statistics = ["mean", "std", "effective_mean", "update_ratio", "gradient_cosine"]
        monitor = StepsizeMonitor(statistics=statistics, health=False, **interval)
        scaled(tmp_path / str(fused), left_out, monitor, fused=fused, max_epochs=2)
        scalars = read(tmp_path / str(fused))
        logged.append({tag: points for tag, points in scalars.items() if tag.endswith("weight")})
    unfused, fused = logged
    assert len(unfused) >= 10
    assert unfused.keys() == fused.keys()
    for tag, points in unfused.items():
        assert fused[tag] == {step: pytest.approx(x, rel=1e-4) for step, x in points.items()}, tag
    steps = [step for step in range(24) if step not in left_out]
    expected = steps[3::4]
    if "logging_interval" in interval:
        expected = [e for e in (11, 23) if any(e - 12 < step <= e for step in steps)]
    assert sorted(fused[TAG]) == expected


class LateRate(Callback):
    """Changes the rate and the layers that train before the last batch, whose step is left out."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 11:
            trainer.optimizers[0].param_groups[0]["lr"] = 1.0
            module.features.requires_grad_(False)


@pytest.mark.parametrize("fused", [False, True])
def test_an_epochs_last_step_keeps_its_rate_and_layers_if_later_ones_are_left_out(tmp_path, fused):
    monitor = StepsizeMonitor(logging_interval="epoch", statistics=["mean", "effective_mean"])
    scaled(tmp_path, {10, 11}, monitor, LateRate(), fused=fused)
    scalars = read(tmp_path)
    for layer in ("head.weight", "features.weight"):
        mean = scalars[f"stepsize_mean/{layer}"][11]
        expected = {11: pytest.approx(1e-2 / (1 - 0.9**10) * mean, rel=1e-5)}
        assert scalars[f"stepsize_effective_mean/{layer}"] == expected


@pytest.mark.parametrize("fused", [False, True])
def test_the_count_that_is_saved_is_of_the_steps_that_were_taken(tmp_path, fused):
    counts = []

    class Saves(Callback):
        def on_train_batch_end(self, trainer, *args):
            counts.append(monitor.state_dict()["steps"]["Adam"])

    monitor = StepsizeMonitor(every_n_steps=100)
    scaled(tmp_path, {0, 3, 4}, monitor, Saves(), fused=fused)
    assert counts == [0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("interval", "left_out", "expected"),
    [
        ({"every_n_steps": 6}, set(), {5, 11}),
        ({"every_n_steps": 6}, {2, 3}, {5, 7}),  # Read in vain at 5, where it would have been due.
        ({"every_n_steps": 100}, {2, 3}, set()),
        ({"logging_interval": "epoch"}, {2, 3}, {11}),
    ],
)
def test_a_step_that_is_not_logged_is_not_waited_for(
    tmp_path, monkeypatch, interval, left_out, expected
):
    reads = Counter()

    def counted(tensor, original):
        if sys._getframe(2).f_globals["__name__"].startswith("aida_lightning.callbacks"):
            reads[trainer_step[0]] += 1
        return original(tensor)

    trainer_step = [0]
    for name in ("item", "__int__", "__bool__", "__float__", "tolist"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, original=original: counted(t, original))

    class Steps(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            trainer_step[0] = batch_idx

    scaled(tmp_path, left_out, StepsizeMonitor(**interval), Steps(), enable_checkpointing=False)
    assert {step for step in reads if step < 11 or step in expected} == expected
