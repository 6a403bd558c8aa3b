"""Parameter groups in a Trainer: its callbacks, its schedulers, and its checkpoints."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from toy import Net, fit, read

from aida_lightning import OptimizerMixin, StepsizeMonitor, build_optimizer
from aida_lightning.callbacks import UseOptimizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists:UserWarning"),
]
A = {"*.bias": {"weight_decay": 0.0}, "features.*": {"lr": 1e-4}}
B = {"features.*": {"lr": 1e-4}, "head.bias": {"lr": 0.5}}
DIFFER = "The checkpoint's parameter groups differ"


class Declaring(OptimizerMixin, Net):
    """Two layers with a schedule of their groups."""

    def __init__(self, optimizer, groups, scheduler="StepLR", **options):
        Net.__init__(self)
        self.optimizer = optimizer
        self.optimizer_options = {"lr": 1e-2, "groups": groups, **options}
        self.lr_scheduler = scheduler
        self.lr_scheduler_options = {"StepLR": {"step_size": 1, "gamma": 0.5}}.get(
            scheduler, {"T_max": 10}
        )

    configure_optimizers = OptimizerMixin.configure_optimizers


@pytest.mark.parametrize("optimizer", ["aida", "adamw"])
def test_the_curves_of_learning_rates_are_named_by_the_patterns(tmp_path, optimizer):
    module = Declaring(optimizer, A, no_decay_1d=True)
    fit(tmp_path, module, StepsizeMonitor(), LearningRateMonitor(), max_epochs=2)
    name = {"aida": "lr-Aida", "adamw": "lr-AdamW"}[optimizer]
    curves = read(tmp_path)
    groups = ("default", "*.bias", "features.*")
    assert {tag for tag in curves if tag.startswith("lr-")} == {f"{name}/{g}" for g in groups}
    assert [*curves[f"{name}/features.*"].values()] == pytest.approx([1e-4, 5e-5])
    layers = {tag for tag in curves if "features.weight" in tag}
    assert layers  # the monitor follows layers of every group
    assert {tag.replace("features", "head") for tag in layers} <= {*curves}


@pytest.mark.parametrize("optimizer", ["aida", "adamw"])
def test_a_finetuning_callback_may_add_a_group(tmp_path, optimizer):
    class Backbone(Net):
        def __init__(self):
            super().__init__()
            self.backbone, self.features = self.features, nn.Identity()

        def loss(self, batch):
            return self.head(self.backbone(batch[0]).tanh()).square().mean()

        def configure_optimizers(self):
            return build_optimizer(optimizer, self, groups={"*.bias": {"lr": 1e-2}})

    tuning = BackboneFinetuning(1, lambda epoch: 1.0, backbone_initial_ratio_lr=0.5)
    trainer = fit(tmp_path, Backbone(), None, tuning, LearningRateMonitor(), max_epochs=3)
    groups = trainer.optimizers[0].param_groups
    assert [len(group["params"]) for group in groups] == [1, 1, 2]
    assert [group.get("name") for group in groups] == ["default", "*.bias", None]
    assert all(trainer.optimizers[0].state[p] for group in groups for p in group["params"])


class Rates(Callback):
    """Record the learning rate of each group at each epoch."""

    def __init__(self):
        self.rates = []

    def on_train_epoch_end(self, trainer, module):
        groups = trainer.optimizers[0].param_groups
        self.rates.append({group["name"]: group["lr"] for group in groups})


def train(folder, groups, epochs, ckpt_path=None, *callbacks, optimizer="aida", **options):
    rates = Rates()
    last = ModelCheckpoint(folder / "saved", save_last=True)
    module = Declaring(optimizer, groups, **options)
    trainer = fit(
        folder, module, None, last, rates, *callbacks,
        max_epochs=epochs, ckpt_path=ckpt_path, enable_checkpointing=True, loggers=[],
    )  # fmt: skip
    return trainer, rates.rates


@pytest.mark.parametrize("scheduler", ["StepLR", "CosineAnnealingLR"])
def test_a_run_resumes_with_other_groups_by_the_layers_names(tmp_path, scheduler):
    trainer, _ = train(tmp_path / "a", A, 2, scheduler=scheduler)
    old = {name: trainer.optimizers[0].state[p] for name, p in trainer.model.named_parameters()}
    last = tmp_path / "a" / "saved" / "last.ckpt"
    steps = {}

    class Look(Callback):
        def on_train_start(self, trainer, module):
            for name, param in module.named_parameters():
                state = trainer.optimizers[0].state[param]
                steps[name] = torch.equal(state["exp_avg"], old[name]["exp_avg"])

    with pytest.warns(UserWarning, match=DIFFER) as warned:
        trainer, resumed = train(tmp_path / "a", B, 5, last, Look(), scheduler=scheduler)
    assert len([w for w in warned if DIFFER in str(w.message)]) == 1
    assert steps == dict.fromkeys(steps, True)
    assert len(steps) == 4
    _, unbroken = train(tmp_path / "c", B, 5, scheduler=scheduler)
    assert resumed == [pytest.approx(at) for at in unbroken[2:]]
    assert trainer.optimizers[0].state[trainer.model.head.bias]["step"] == 60


def test_a_run_resumes_with_the_same_groups_as_before(tmp_path):
    train(tmp_path, A, 2)
    _, resumed = train(tmp_path, A, 4, ckpt_path=tmp_path / "saved" / "last.ckpt")
    _, unbroken = train(tmp_path / "unbroken", A, 4)
    assert resumed == unbroken[2:]


def test_a_run_of_an_optimizer_without_names_says_what_to_do(tmp_path):
    train(tmp_path, A, 1, optimizer="adamw")
    with pytest.raises(ValueError, match=r"it has 'default' of 1, .*; resume with the groups of"):
        train(tmp_path, B, 2, tmp_path / "saved" / "last.ckpt", optimizer="adamw")


def test_a_replaced_optimizer_resumes_with_other_groups(tmp_path):
    def start(groups, epochs, ckpt_path=None):
        return fit(
            tmp_path, Net("adam"), None, UseOptimizer("aida", lr=1e-2, groups=groups),
            ModelCheckpoint(tmp_path / "saved", save_last=True),
            max_epochs=epochs, ckpt_path=ckpt_path, enable_checkpointing=True, loggers=[],
        )  # fmt: skip

    start(None, 1)
    with pytest.warns(UserWarning, match=DIFFER):
        trainer = start({"*.bias": {"weight_decay": 0.0}}, 2, tmp_path / "saved" / "last.ckpt")
    (optimizer,) = trainer.optimizers
    assert {float(state["step"]) for state in optimizer.state.values()} == {24.0}
    assert [group["name"] for group in optimizer.param_groups] == ["default", "*.bias"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"groups": {"features.*": {"partition": [1, 2]}}},
            {"default": None, "features.*": (1, 2)},
        ),
        ({"groups": {"features.*": {"partition": 3}}}, {"default": None, "features.*": 3}),
        (
            {"partition": 3, "groups": {"head.*": {"partition": None}}},
            {"default": 3, "head.*": None},
        ),
    ],
    ids=["sizes", "a number", "all but one"],
)
def test_a_replacing_optimizer_takes_partitions_by_pattern(tmp_path, options, expected):
    """The sizes are a list, as in YAML, and no partition but the last suits all the layers."""
    trainer = fit(
        tmp_path, Net("adam"), None, UseOptimizer("ladam", lr=1e-2, **options), loggers=[]
    )
    (optimizer,) = trainer.optimizers
    assert {group["name"]: group["partition"] for group in optimizer.param_groups} == expected


def test_a_replacing_optimizer_asks_a_callable_about_layers_of_the_module_alone(tmp_path):
    shapes = set()
    use = UseOptimizer("ladam", lr=1e-2, partition=lambda layer: shapes.add(tuple(layer.shape)))
    fit(tmp_path, Net("adam"), None, use, loggers=[])
    assert shapes == {(3, 4), (3,), (1, 3), (1,)}


@pytest.mark.parametrize("options", [{"partition": "q"}, {"groups": {"*": {"partition": "q"}}}])
def test_a_replacing_optimizer_refuses_what_is_no_partition_when_it_is_built(options):
    with pytest.raises(MisconfigurationException, match="Invalid partition: 'q'"):
        UseOptimizer("ladam", **options)


class Late(Declaring):
    """A module whose layers are made in ``configure_model``."""

    def __init__(self, groups):
        super().__init__("aida", groups)
        del self.features

    def configure_model(self):
        self.features = nn.Linear(4, 3)


def test_patterns_match_layers_that_are_made_late(tmp_path):
    trainer = fit(tmp_path, Late(A), None, loggers=[])
    names = {g["name"]: g["param_names"] for g in trainer.optimizers[0].param_groups}
    assert names["features.*"] == ["features.weight"]
    with pytest.raises(MisconfigurationException, match="UseOptimizer: groups: 'feature"):
        fit(tmp_path, Late(A), None, UseOptimizer("laida", groups={"feature.*": {}}), loggers=[])


def test_a_replacing_optimizer_has_partitions(tmp_path):
    use = UseOptimizer("laida", groups={"features.*": {"partition": 3}}, partition="rows")
    trainer = fit(tmp_path, Net("adam"), None, use, loggers=[])
    (optimizer,) = trainer.optimizers
    statistics = [optimizer.state[p]["exp_avg_sq"].numel() for p in trainer.model.parameters()]
    assert statistics == [3, 3, *(len(p) for p in trainer.model.head.parameters())]
    with pytest.raises(MisconfigurationException, match="partition: 0, the number of parts"):
        UseOptimizer("laida", partition=0)
