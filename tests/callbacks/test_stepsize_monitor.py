"""The monitor's numbers, read back with TensorBoard's own reader."""

import contextlib
import math
import warnings

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from toy import Net, TwoOptimizers, fit, read

import aida_lightning
from aida_lightning.callbacks import StepsizeMonitor

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]


class BruteForce(Callback):
    """After every batch: mean and std of every layer's stepsizes, in float64 from the state."""

    def __init__(self):
        self.at = {}

    def on_train_batch_end(self, trainer, module, *args):
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        names = {param: name for name, param in module.named_parameters()}
        for index, optimizer in enumerate(trainer.optimizers):
            for group in optimizer.param_groups:
                for param in group["params"]:
                    if not (state := optimizer.state.get(param)):
                        continue
                    v = state["exp_avg_sq"].double()
                    root = (v / (1 - group["betas"][1] ** state["step"].item())).sqrt()
                    second = type(optimizer).__name__ in ("AdaBelief", "AdamPlus", "Adam", "AdamW")
                    s = 1 / (root + group["eps"] * second)
                    if type(optimizer).__name__ == "SETAdam":
                        cosine_sq = v.mean() ** 2 / v.square().mean()
                        w = (cosine_sq * root**2 + group["eps"]).sqrt()
                        s = 1 / (w - group["tau"] * w.min())
                    mean = s.sum() / s.numel()
                    std = ((s - mean).square().sum() / s.numel()).sqrt()
                    self.at[index, names[param], step] = (mean.item(), std.item())


def assert_equals_brute_force(scalars, brute_force, layers, steps, prefix="", index=0):
    for layer in layers:
        for position, statistic in enumerate(("mean", "std")):
            points = scalars[f"{prefix}stepsize_{statistic}/{layer}"]
            assert sorted(points) == steps
            for step, value in points.items():
                expected = brute_force.at[index, layer, step][position]
                assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("aida", {}), ("laida", {}), ("aidagrad", {}), ("adabelief", {"eps": 1e-2}),
        ("adabeliefl", {}), ("ladabelief", {}), ("adam+", {"eps": 1e-2}), ("adaml", {}),
        ("ladam", {}), ("setadam", {}), ("adam", {"eps": 1e-2}), ("adamw", {}),
    ],
)  # fmt: skip
def test_the_event_files_numbers_are_those_of_the_state(tmp_path, name, options):
    brute_force = BruteForce()
    monitor = StepsizeMonitor(every_n_steps=1, health=False)
    fit(tmp_path, Net(name, **options), monitor, brute_force)
    scalars = read(tmp_path)
    layers = ["features.weight", "head.weight"]
    assert_equals_brute_force(scalars, brute_force, layers, list(range(12)))
    assert not any("bias" in tag for tag in scalars)
    if name.startswith("l"):
        assert set(scalars["stepsize_std/head.weight"].values()) == {0.0}


@pytest.mark.parametrize("name", ["radam", "nadam", "yogi"])
def test_other_adaptive_optimizers_are_logged(tmp_path, name):
    module = Net(torch.optim.NAdam if name == "nadam" else name)
    fit(tmp_path, module, StepsizeMonitor())
    assert sorted(read(tmp_path)["stepsize_mean/head.weight"]) == [4, 9]


def test_by_default_it_logs_where_the_trainer_does(tmp_path):
    fit(tmp_path, Net(), StepsizeMonitor(), log_every_n_steps=5)
    scalars = read(tmp_path)
    assert sorted(scalars["loss"]) == [4, 9]
    assert sorted(scalars["stepsize_mean/head.weight"]) == [4, 9]


def test_layers_are_chosen_by_glob(tmp_path):
    fit(tmp_path, Net(), StepsizeMonitor(layers=["head.*", "features.b*"]))
    logged = {tag.split("/")[1] for tag in read(tmp_path) if tag.startswith("stepsize")}
    assert logged == {"head.weight", "head.bias", "features.bias"}


def test_accumulated_gradients_count_as_one_step(tmp_path):
    brute_force = BruteForce()
    fit(
        tmp_path,
        Net(),
        StepsizeMonitor(every_n_steps=1),
        brute_force,
        accumulate_grad_batches=3,
        log_every_n_steps=1,
    )
    scalars = read(tmp_path)
    assert sorted(scalars["loss"]) == [0, 1, 2, 3]
    assert_equals_brute_force(scalars, brute_force, ["head.weight"], [0, 1, 2, 3])


class ScalerThatSkips(torch.amp.GradScaler):
    """Leaves out every third step, as a scaler does that met infinite gradients."""

    def __init__(self):
        super().__init__("cpu", init_scale=1.0)
        self.calls = 0

    def step(self, optimizer, *args, **kwargs):
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            self.poison(optimizer)
        return super().step(optimizer, *args, **kwargs)

    def unscale_(self, optimizer):
        self.poison(optimizer)
        super().unscale_(optimizer)

    def poison(self, optimizer):
        self.calls += 1
        if self.calls % 3 == 0:
            for group in optimizer.param_groups:
                for param in group["params"]:
                    param.grad.fill_(torch.inf)


@pytest.mark.parametrize("name", ["aida", "adam"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_gradient_scaler_left_out_is_not_sampled(tmp_path, name, fused):
    # To torch's fused Adam the scaler leaves it to skip the step.
    plugin = MixedPrecision("16-mixed", "cpu", scaler=ScalerThatSkips())
    module = Net(name, fused=fused)
    fit(tmp_path, module, StepsizeMonitor(every_n_steps=1), plugins=[plugin])
    steps = sorted(read(tmp_path)["stepsize_mean/head.weight"])
    assert steps == [step for step in range(12) if (step + 1) % 3]


@pytest.mark.parametrize(
    ("names", "prefixes"),
    [
        (["aida", "adam"], ["Aida/", "Adam/"]),
        (["aida", "aida"], ["Aida/", "Aida-1/"]),
    ],
)
def test_with_several_optimizers_their_names_go_first(tmp_path, names, prefixes):
    brute_force = BruteForce()
    fit(tmp_path, TwoOptimizers(names), StepsizeMonitor(every_n_steps=2), brute_force)
    scalars = read(tmp_path)
    head, features = prefixes
    assert_equals_brute_force(
        scalars, brute_force, ["head.weight"], [1, 3, 5, 7, 9, 11], prefix=head, index=0
    )
    # The second optimizer's own 2nd and 4th step are in batches 5 and 11.
    assert_equals_brute_force(
        scalars, brute_force, ["features.weight"], [5, 11], prefix=features, index=1
    )


def test_each_epochs_end_can_be_logged_instead(tmp_path):
    brute_force = BruteForce()
    monitor = StepsizeMonitor(logging_interval="epoch")
    fit(tmp_path, Net(), monitor, brute_force, max_epochs=3)
    assert_equals_brute_force(read(tmp_path), brute_force, ["head.weight"], [11, 23, 35])


def test_a_resumed_run_goes_on_counting(tmp_path):
    module = Net()
    trainer = fit(tmp_path, module, StepsizeMonitor(every_n_steps=5), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The dirpath has changed")
        fit(
            tmp_path,
            Net(),
            StepsizeMonitor(every_n_steps=5),
            max_epochs=3,
            ckpt_path=tmp_path / "last.ckpt",
            loggers=[TensorBoardLogger(tmp_path, name="", version="run")],
        )
    steps = sorted(read(tmp_path)["stepsize_mean/head.weight"])
    assert steps == [4, 9, 14, 19, 24, 29, 34]


def test_no_logger_is_a_misconfiguration(tmp_path):
    with pytest.raises(MisconfigurationException, match="`Trainer` that has no logger"):
        fit(tmp_path, Net(), StepsizeMonitor(), loggers=False)


def test_a_glob_that_matches_nothing_names_the_layers_there_are(tmp_path):
    with pytest.raises(
        MisconfigurationException,
        match=r"matches 'conv\*'; the layers are: \['features.weight', .*'head.bias'\]",
    ):
        fit(tmp_path, Net(), StepsizeMonitor(layers=["head.*", "conv*"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be >= 1, got 0"),
        ({"every_n_steps": 1.5}, "every_n_steps must be an int >= 1 or None, got 1.5"),
        ({"logging_interval": "day"}, "must be 'step' or 'epoch', got 'day'"),
        ({"logging_interval": "epoch", "every_n_steps": 2}, "every_n_steps=2 has no effect"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        StepsizeMonitor(**options)


def test_frozen_and_unused_layers_are_left_out(tmp_path):
    module = Net()
    module.features.requires_grad_(False)
    fit(tmp_path, module, StepsizeMonitor())
    assert {t.split("/")[1] for t in read(tmp_path) if t.startswith("stepsize")} == {"head.weight"}


def test_the_run_is_the_same_with_and_without_the_monitor(tmp_path):
    modules = []
    for monitor in (None, StepsizeMonitor(every_n_steps=1)):
        torch.manual_seed(1)
        modules.append(Net())
        fit(tmp_path, modules[-1], monitor)
    for a, b in zip(*(m.parameters() for m in modules), strict=True):
        assert torch.equal(a, b)


def test_hooks_are_removed_after_training(tmp_path):
    trainer = fit(tmp_path, Net(), StepsizeMonitor(every_n_steps=1))
    (optimizer,) = trainer.optimizers
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_two_processes_train_alike_and_only_rank_zero_writes(tmp_path):
    module = Net()
    fit(
        tmp_path,
        module,
        StepsizeMonitor(every_n_steps=1),
        devices=2,
        strategy="ddp_spawn",
    )
    points = read(tmp_path)["stepsize_mean/head.weight"]
    assert sorted(points) == list(range(6))
    assert all(math.isfinite(value) for value in points.values())
    assert len(list((tmp_path / "run").glob("events*"))) == 1


class Finetuned(Net):
    def __init__(self):
        super().__init__()
        self.backbone, self.features = self.features, nn.Identity()

    def loss(self, batch):
        return self.head(self.backbone(batch[0]).tanh()).square().mean()


@pytest.mark.filterwarnings("ignore:The provided params to be froze.*:UserWarning")
@pytest.mark.parametrize("name", ["aida", "adam"])
def test_layers_that_are_unfrozen_later_join_in(tmp_path, name):
    module = Finetuned()
    module.name = name
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1)
    monitor = StepsizeMonitor(layers=["backbone.weight", "head.weight"])
    fit(tmp_path, module, monitor, finetuning, max_epochs=2)
    scalars = read(tmp_path)
    assert sorted(scalars["stepsize_mean/head.weight"]) == [4, 9, 14, 19]
    assert sorted(scalars["stepsize_mean/backbone.weight"]) == [14, 19]


def test_two_monitors_work_beside_each_other(tmp_path):
    monitors = [
        StepsizeMonitor(layers="head.weight", every_n_steps=3),
        StepsizeMonitor(layers="head.bias", logging_interval="epoch"),
    ]
    fit(tmp_path, Net(), *monitors)
    scalars = read(tmp_path)
    assert sorted(scalars["stepsize_mean/head.weight"]) == [2, 5, 8, 11]
    assert sorted(scalars["stepsize_mean/head.bias"]) == [11]


def test_two_monitors_of_other_statistics_work_beside_each_other(tmp_path):
    fit(tmp_path, Net(), StepsizeMonitor(statistics="min"), StepsizeMonitor(statistics="max"))
    assert {"stepsize_min/head.weight", "stepsize_max/head.weight"} <= {*read(tmp_path)}


def test_a_second_run_starts_to_count_anew(tmp_path):
    monitor = StepsizeMonitor(every_n_steps=5)
    for run in ("first", "second"):
        fit(tmp_path / run, Net(), monitor)
        assert sorted(read(tmp_path / run)["stepsize_mean/head.weight"]) == [4, 9]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("first", [None, StepsizeMonitor(logging_interval="epoch")])
def test_a_checkpoint_without_a_count_is_resumed_in_step_with_the_trainer(tmp_path, first):
    checkpoint = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=4, save_top_k=-1)
    fit(tmp_path / "a", Net(), first, checkpoint, enable_checkpointing=True)
    fit(
        tmp_path / "b",
        Net(),
        StepsizeMonitor(),
        ckpt_path=tmp_path / "saved" / "step=4.ckpt",
        log_every_n_steps=3,
        max_epochs=2,
    )
    scalars = read(tmp_path / "b")
    assert sorted(scalars["stepsize_mean/head.weight"]) == sorted(scalars["loss"])


class SkipsEverySecondBatch(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) if batch_idx % 2 else None


@pytest.mark.filterwarnings("ignore:.*training_step` returned `None`.*")
def test_a_batch_that_was_left_out_is_not_a_step(tmp_path):
    fit(tmp_path, SkipsEverySecondBatch(), StepsizeMonitor(every_n_steps=1))
    assert sorted(read(tmp_path)["stepsize_mean/head.weight"]) == [1, 3, 5, 7, 9, 11]


class OneStepRaises(Net):
    """The third step raises, which the training step catches."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            optimizer.zero_grad()
            self.manual_backward(loss := self.loss(batch))
            if batch_idx == 2:
                raise ArithmeticError
            return loss

        with contextlib.suppress(ArithmeticError):
            optimizer.step(closure)


def test_a_step_that_raised_is_none_and_those_after_it_are_logged(tmp_path):
    fit(tmp_path, OneStepRaises(), StepsizeMonitor(every_n_steps=1))
    assert sorted(read(tmp_path)["stepsize_mean/head.weight"]) == [0, 1, *range(3, 12)]


def test_an_optimizer_that_starts_late_is_counted_by_its_own_steps(tmp_path):
    fit(tmp_path, TwoOptimizers(["aida", "aida"], every=3), StepsizeMonitor(every_n_steps=2))
    scalars = read(tmp_path)
    assert sorted(scalars["Aida/stepsize_mean/head.weight"]) == [1, 3, 5, 7, 9, 11]
    own_steps = dict(zip([2, 5, 8, 11], [1, 2, 3, 4], strict=True))
    logged = sorted(scalars["Aida-1/stepsize_mean/features.weight"])
    assert [own_steps[batch] for batch in logged] == [2, 4]


class Derived(aida_lightning.Aida):
    def step(self, closure=None):
        return super().step(closure)


def test_a_subclass_that_calls_its_bases_step_is_counted_once(tmp_path):
    fit(tmp_path, Net("aida"), StepsizeMonitor())  # torch hooks the base's step from here on
    fit(tmp_path / "derived", Net(Derived), StepsizeMonitor())
    assert sorted(read(tmp_path / "derived")["stepsize_mean/head.weight"]) == [4, 9]


def test_an_empty_choice_of_layers_is_refused():
    with pytest.raises(MisconfigurationException, match="layers must name at least one glob"):
        StepsizeMonitor(layers=[])
