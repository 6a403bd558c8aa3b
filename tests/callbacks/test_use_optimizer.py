"""Modules whose optimizer is replaced; the oracles are the same modules without that."""

import math
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.demos import LightningTransformer
from lightning.pytorch.demos.boring_classes import (
    BoringModel,
    DemoModel,
    ManualOptimBoringModel,
    RandomDataset,
)
from lightning.pytorch.demos.lstm import LightningLSTM
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch.optim import SGD, Adam, AdamW, RAdam, RMSprop, SparseAdam, lr_scheduler, swa_utils
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset
from toy import Net, TwoOptimizers, fit

from aida_lightning import Aida, LAida, StepsizeMonitor
from aida_lightning.callbacks import UseOptimizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
    # Older torch's SequentialLR does so itself.
    pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*seldom right for Aida:UserWarning"),
]


class Rates(Callback):
    """Record the learning rates and momenta that each batch is trained with."""

    def __init__(self):
        self.lrs, self.momenta = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        groups = trainer.optimizers[0].param_groups
        self.lrs.append([group["lr"] for group in groups])
        self.momenta.append([g["betas"][0] if "betas" in g else g["momentum"] for g in groups])


class Configured(Net):
    """Two layers, with the optimizer that a function makes of them."""

    def __init__(self, configure):
        super().__init__()
        self.configure = configure

    def configure_optimizers(self):
        return self.configure(self)

    def validation_step(self, batch, batch_idx):
        self.loss(batch)


def sgd(module, **options):
    """Two groups whose rates are 10 to 1."""
    groups = [
        {"params": module.features.parameters(), "lr": 0.01},
        {"params": module.head.parameters()},
    ]
    return SGD(groups, lr=0.1, momentum=0.9, **options)


def train(folder, configure, *callbacks, **options):
    torch.manual_seed(3)
    module = configure if isinstance(configure, LightningModule) else Configured(configure)
    trainer = fit(folder, module, None, *callbacks, **{"loggers": [], **options})
    return trainer, module


def replaced(folder, configure, *args, **options):
    """Return the optimizer that takes the place of what a function configures."""
    trainer, _ = train(folder, configure, UseOptimizer(*args, **options), max_steps=2)
    return trainer.optimizers[0]


SCHEDULERS = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(
        o, 5, eta_min=1e-3
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, [0.001, 0.01], [0.01, 0.1], 4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 5)),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.01, 0.1], total_steps=12),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10, power=2.0),
    # The first group ends at the least rate, the second by the least reduction.
    "ReduceLROnPlateau": lambda o: ReduceLROnPlateau(
        o, factor=0.3, patience=0, min_lr=4e-3, eps=5.5e-3
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 4), lr_scheduler.CosineAnnealingLR(o, 6)], [4]
    ),
    "StepLR": lambda o: StepLR(o, 3),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.02, anneal_epochs=5),
}


def scheduled(make, **keys):
    def configure(module):
        optimizer = sgd(module)
        config = {"scheduler": make(optimizer), "interval": "step", "monitor": "constant", **keys}
        return {"optimizer": optimizer, "lr_scheduler": config}

    return configure


class Constant(Callback):
    """Log a metric that is at its plateau from the start."""

    def on_train_batch_end(self, trainer, module, *args):
        module.log("constant", 1.0)


def test_every_scheduler_of_torch_is_tried():
    listed = {name for name in lr_scheduler.__all__ if name != "LRScheduler"}
    assert listed | {"SWALR"} == {*SCHEDULERS}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_keeps_its_shape_and_the_groups_their_ratio(tmp_path, name):
    own, kept, scaled = Rates(), Rates(), Rates()
    configure = scheduled(SCHEDULERS[name])
    train(tmp_path, configure, own, Constant())
    train(tmp_path, configure, kept, Constant(), UseOptimizer("aida"))
    use = UseOptimizer("aida", lr=1e-3)
    trainer, _ = train(tmp_path, configure, scaled, Constant(), use)
    assert len(own.lrs) == 12
    assert len({tuple(lrs) for lrs in own.lrs}) > 1
    assert kept.lrs == own.lrs
    torch.testing.assert_close(
        torch.tensor(scaled.lrs, dtype=torch.float64),
        torch.tensor(own.lrs, dtype=torch.float64) / 100,
        rtol=1e-9,
        atol=0,
    )
    cycled = name in ("CyclicLR", "OneCycleLR")
    assert scaled.momenta == kept.momenta == (own.momenta if cycled else [[0.9, 0.9]] * 12)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.optimizer is trainer.optimizers[0]
    assert isinstance(trainer.optimizers[0], Aida)


def test_a_cycled_momentum_moves_from_beta1_to_momentum_and_to_beta1(tmp_path):
    def configure(module):
        optimizer = Adam(module.parameters(), lr=0.1, betas=(0.9, 0.99))
        return [optimizer], [{"scheduler": cycle(optimizer), "interval": "step"}]

    def cycle(optimizer):
        return lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12)

    own, to_sgd, to_aida = Rates(), Rates(), Rates()
    train(tmp_path, configure, own)
    train(tmp_path, configure, to_sgd, UseOptimizer("sgd", lr=0.1, momentum=0.5))
    use = UseOptimizer("aida", lr=0.1, betas=(0.5, 0.95))
    trainer, _ = train(tmp_path, configure, to_aida, use)
    assert to_sgd.momenta == to_aida.momenta == own.momenta
    assert trainer.optimizers[0].param_groups[0]["betas"][1] == 0.95
    with pytest.raises(MisconfigurationException, match="OneCycleLR cycles a momentum, which From"):
        train(tmp_path, configure, UseOptimizer("fromage"))


def test_the_schedulers_object_and_configuration_stay(tmp_path):
    made = []

    def make(optimizer):
        made.append(StepLR(optimizer, 2))
        return made[-1]

    configure = scheduled(make, interval="epoch", frequency=3, monitor="loss", name="rate")
    trainer, _ = train(tmp_path, configure, UseOptimizer("aida"))
    (config,) = trainer.lr_scheduler_configs
    assert config.scheduler is made[0]
    assert (config.interval, config.frequency) == ("epoch", 3)
    assert (config.monitor, config.name) == ("loss", "rate")


def test_every_form_that_configure_optimizers_may_return_is_taken(tmp_path):
    def forms(module):
        optimizer = sgd(module)
        scheduler = StepLR(optimizer, 1)
        yield optimizer
        yield [optimizer]
        yield [optimizer], [scheduler]
        yield [optimizer], scheduler
        yield {"optimizer": optimizer}
        yield {"optimizer": optimizer, "lr_scheduler": scheduler}
        yield ({"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}},)

    for index in range(7):
        trainer, _ = train(
            tmp_path,
            lambda module, index=index: [*forms(module)][index],
            UseOptimizer("laida", lr=0.1),
        )
        assert [type(o) for o in trainer.optimizers] == [LAida]
        assert len(trainer.lr_scheduler_configs) == (index in (2, 3, 5, 6))


def test_options_that_are_given_win_and_shared_ones_stay(tmp_path):
    def configure(module):
        groups = [
            {"params": [module.features.weight], "lr": 2e-4, "name": "first"},
            {"params": [module.features.bias], "weight_decay": 0.0},
            {"params": module.head.parameters(), "betas": (0.8, 0.99), "weight_decay": 0.05},
        ]
        return AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1, maximize=True)

    def options(optimizer, *names):
        return [tuple(group.get(name) for name in names) for group in optimizer.param_groups]

    kept = replaced(tmp_path, configure, "aida")
    assert options(kept, "lr", "weight_decay", "betas", "name") == [
        (2e-4, 0.1, (0.9, 0.95), "first"),
        (1e-4, 0.0, (0.9, 0.95), None),
        (1e-4, 0.05, (0.8, 0.99), None),
    ]
    assert options(kept, "decoupled_weight_decay", "maximize") == [(True, True)] * 3
    assert options(kept, "eps", "k") == [(1e-8, 2)] * 3  # Adam's eps is another thing
    assert kept.defaults["lr"] == 1e-4
    given = replaced(
        tmp_path, configure, "aida", lr=1e-3, weight_decay=0.2, betas=(0.5, 0.9), k=1, eps=1e-6
    )
    assert options(given, "lr", "weight_decay") == [(1e-3, 0.2), (5e-4, 0.0), (5e-4, 0.1)]
    assert options(given, "betas", "k", "eps") == [((0.5, 0.9), 1, 1e-6)] * 3
    coupled = replaced(tmp_path, configure, "aida", decoupled_weight_decay=False, maximize=False)
    assert options(coupled, "decoupled_weight_decay", "maximize") == [(False, False)] * 3


def test_a_decay_that_the_module_does_not_have_is_given_to_all_groups(tmp_path):
    optimizer = replaced(tmp_path, sgd, "aida", weight_decay=0.1)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.1]
    assert not optimizer.param_groups[0]["decoupled_weight_decay"]


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("name", "cls"), [("adamw", AdamW), ("radam", RAdam)])
def test_a_decay_is_decoupled_where_the_name_says_so(tmp_path, name, cls, decay):
    def configure(module):
        return Adam(module.parameters(), lr=0.01, weight_decay=decay)

    optimizer = replaced(tmp_path, configure, name, weight_decay=0.5)
    assert type(optimizer) is cls
    # Adam's coupled form goes with its decay to what has both forms.
    decoupled = name == "adamw" or not decay
    assert optimizer.param_groups[0].get("decoupled_weight_decay", True) is decoupled


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_a_decay_that_a_class_decouples_stays_decoupled(tmp_path, name):
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")

    def configure(module):
        matrices = [param for param in module.parameters() if param.ndim == 2]
        return getattr(torch.optim, name)(matrices, weight_decay=0.1)

    (group,) = replaced(tmp_path, configure, "aida", lr=0.01).param_groups
    assert (group["weight_decay"], group["decoupled_weight_decay"]) == (0.1, True)


class Decouples(Adam):
    """Decouples its decay where an option or the name of its class says so."""

    def __init__(self, params, weight_decouple=None, **options):
        super().__init__(params, lr=0.01, weight_decay=0.1)
        options |= {} if weight_decouple is None else {"weight_decouple": weight_decouple}
        for options_of in (self.defaults, *self.param_groups):
            options_of.pop("decoupled_weight_decay", None)
            options_of.update(options)


@pytest.mark.parametrize(
    ("make", "decoupled"),
    [
        (type("AdamW8bit", (Decouples,), {}), True),
        (lambda params: Decouples(params, weight_decouple=True), True),
        (lambda params: Decouples(params, weight_decouple=False), False),
        (lambda params: Decouples(params, decoupled_decay=True), True),
        (lambda params: Decouples(params, adam_w_mode=True), True),
        (type("Lion", (Decouples,), {}), True),
        (Decouples, False),
    ],
)
def test_a_decay_of_another_package_keeps_its_form(tmp_path, caplog, make, decoupled):
    def configure(module):
        return make(module.parameters())

    assert "dropped" not in told(caplog, tmp_path, configure, "aida")
    optimizer = replaced(tmp_path, configure, "aida")
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is decoupled


def test_a_decay_that_becomes_decoupled_is_told(tmp_path):
    with pytest.warns(UserWarning, match="AdamW decouples the weight decay, which SGD adds"):
        replaced(tmp_path, lambda module: sgd(module, weight_decay=0.1), "adamw", lr=0.01)


@pytest.mark.parametrize("name", ["yogi", "sgd"])
def test_a_decay_that_cannot_stay_decoupled_is_told(tmp_path, name):
    def configure(module):
        return AdamW(module.parameters(), weight_decay=0.1)

    lr = 0.1  # or it would be told that AdamW's is seldom right
    with pytest.warns(
        UserWarning, match="has no decoupled weight decay; it adds the weight decay of AdamW"
    ):
        replaced(tmp_path, configure, name, lr=lr)


def test_the_parameters_are_those_of_the_old_optimizer_with_the_modules_names(tmp_path):
    def configure(module):
        module.features.weight.requires_grad_(False)
        return SGD([module.features.weight, module.head.weight], lr=0.1)

    trainer, module = train(tmp_path, configure, UseOptimizer("aida", lr=0.1), max_steps=2)
    (group,) = trainer.optimizers[0].param_groups
    assert group["params"][0] is module.features.weight
    assert group["params"][1] is module.head.weight
    assert len(group["params"]) == 2
    assert group["param_names"] == ["features.weight", "head.weight"]
    assert [*trainer.optimizers[0].state] == [module.head.weight]


class Text:
    """What stands in for the demos' data, which is downloaded."""

    def __init__(self, cls):
        self.cls = cls

    def __call__(self):
        class Offline(self.cls):
            def prepare_data(self):
                pass

            def train_dataloader(self):
                tokens = torch.randint(50, (40, 8), generator=torch.Generator().manual_seed(0))
                return DataLoader(TensorDataset(tokens, tokens.roll(-1, 1)), batch_size=20)

        return Offline(vocab_size=50)


class Demo(DemoModel):
    def train_dataloader(self):
        return DataLoader(RandomDataset(32, 8))


@pytest.mark.parametrize(
    "make",
    [BoringModel, ManualOptimBoringModel, Demo, Text(LightningTransformer), Text(LightningLSTM)],
    ids=["BoringModel", "ManualOptimBoringModel", "DemoModel", "LightningTransformer", "LSTM"],
)
def test_lightnings_own_modules_train_as_if_they_had_the_optimizer(tmp_path, make):
    torch.manual_seed(0)
    module, reference = make(), make()
    reference.load_state_dict(module.state_dict())
    before = [p.detach().clone() for p in module.parameters()]

    def by_hand():
        optimizer = Aida(reference.named_parameters(), lr=1e-3, k=1)
        boring = isinstance(reference, BoringModel)
        return ([optimizer], [StepLR(optimizer, 1)]) if boring else optimizer

    reference.configure_optimizers = by_hand
    options = {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 0}
    trainer, _ = train(tmp_path, module, UseOptimizer("aida", lr=1e-3, k=1), **options)
    train(tmp_path, reference, **options)
    assert isinstance(trainer.optimizers[0], Aida)
    for start, ours, theirs in zip(
        before, module.parameters(), reference.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert ours.grad is None or not ours.grad.any() or not torch.equal(ours, start)


def test_the_module_is_left_as_it_was(tmp_path):
    trainer, module = train(tmp_path, sgd, UseOptimizer("aida"))
    assert "configure_optimizers" not in vars(module)
    assert isinstance(module.configure_optimizers(), SGD)
    trainer, _ = train(tmp_path, module)
    assert isinstance(trainer.optimizers[0], SGD)

    def own():
        return Adam(module.parameters())

    module.configure_optimizers = own
    trainer, _ = train(tmp_path, module, UseOptimizer("aida"))
    assert isinstance(trainer.optimizers[0], Aida)
    assert module.configure_optimizers is own


class Fails(Callback):
    def setup(self, trainer, module, stage):
        raise RuntimeError("on purpose")


def test_the_module_is_left_as_it_was_after_an_error(tmp_path):
    def wrong(module):
        raise RuntimeError("on purpose")

    for configure, callbacks in ((wrong, []), (sgd, [Fails()])):
        module = Configured(configure)
        with pytest.raises(RuntimeError, match="on purpose"):
            train(tmp_path, module, UseOptimizer("aida"), *callbacks)
        assert "configure_optimizers" not in vars(module)


def test_a_trainer_may_fit_twice_and_evaluate(tmp_path):
    trainer, module = train(tmp_path, sgd, UseOptimizer("aida", lr=1e-3))
    first = trainer.optimizers[0]
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module)
    second = trainer.optimizers[0]
    assert isinstance(second, Aida)
    assert second is not first
    assert second.param_groups[1]["lr"] == 1e-3
    trainer.validate(module, DataLoader(TensorDataset(torch.ones(2, 4))), verbose=False)
    assert isinstance(module.configure_optimizers(), SGD)


@pytest.mark.filterwarnings("ignore:.*exists and is not empty:UserWarning")
def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    def run(epochs, ckpt_path=None):
        checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        configure = scheduled(SCHEDULERS["CosineAnnealingLR"])
        use = UseOptimizer("aida", lr=1e-3, k=1)
        return train(
            tmp_path, configure, use, Constant(), checkpoint,
            max_epochs=epochs, ckpt_path=ckpt_path, enable_checkpointing=True,
        )  # fmt: skip

    trainer, unbroken = run(2)
    resumed_trainer, resumed = run(2, tmp_path / "epoch=0.ckpt")
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    group, resumed_group = (t.optimizers[0].param_groups[0] for t in (trainer, resumed_trainer))
    assert resumed_group["lr"] == group["lr"]
    state = resumed_trainer.optimizers[0].state[resumed.head.weight]
    assert state["step"].item() == 24


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    def configure(module):
        return Adam(module.parameters())

    def resume(name, *use):
        return train(tmp_path, configure, *use, max_epochs=2, ckpt_path=tmp_path / name)

    train(tmp_path, configure)[0].save_checkpoint(tmp_path / "own.ckpt")
    train(tmp_path, configure, UseOptimizer("aida"))[0].save_checkpoint(tmp_path / "aida.ckpt")
    with pytest.raises(MisconfigurationException, match=r"checkpoint, saved without it; .*load_fr"):
        resume("own.ckpt", UseOptimizer("aida"))
    with pytest.raises(MisconfigurationException, match="whose optimizer is Aida, not AdamPlus"):
        resume("aida.ckpt", UseOptimizer("adam+"))
    trainer, _ = resume("aida.ckpt", UseOptimizer(lambda groups, **options: Aida(groups)))
    assert trainer.optimizers[0].param_groups[0]["k"] == 2
    trainer.validate(
        Configured(configure),
        DataLoader(TensorDataset(torch.ones(2, 4))),
        ckpt_path=tmp_path / "own.ckpt",
        verbose=False,
    )


def test_lightnings_callbacks_see_the_new_optimizer(tmp_path):
    class WithRate(Configured):
        lr = 1e-4

        def configure_optimizers(self):
            return Adam(self.parameters(), lr=self.lr)

    callbacks = [
        # First, as a callback that asks for the optimizers when the fit starts.
        LearningRateFinder(
            min_lr=1e-5, max_lr=1e-2, num_training_steps=30, early_stop_threshold=None
        ),
        UseOptimizer("aida", k=1),
        StepsizeMonitor(every_n_steps=2),
        LearningRateMonitor(),
        StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1),
    ]
    trainer, module = train(
        tmp_path,
        WithRate(None),
        *callbacks,
        loggers=[CSVLogger(tmp_path, name="", version="")],
        max_epochs=2,
        enable_checkpointing=True,
    )
    found = callbacks[0].optimal_lr
    assert module.lr == found.suggestion() != 1e-4
    assert isinstance(trainer.optimizers[0], Aida)
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert "lr-Aida" in header
    assert "stepsize_mean/features.weight" in header


def test_what_it_cannot_replace_is_refused(tmp_path):
    with pytest.raises(
        MisconfigurationException,
        match=r"single optimizer, but TwoOptimizers.configure_optimizers returned 2 \(Adam, Adam\)",
    ):
        train(tmp_path, TwoOptimizers(["adam", "adam"]), UseOptimizer("aida"))
    with pytest.raises(MisconfigurationException, match=r"configure_optimizers returned None"):
        train(tmp_path, lambda module: None, UseOptimizer("aida"))
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `UseOpt"):
        train(tmp_path, sgd, UseOptimizer("aida"), UseOptimizer("laida"))
    with pytest.raises(
        MisconfigurationException, match=r"rates \[0.0\] of SGD to 0.1, because none"
    ):
        train(
            tmp_path, lambda module: SGD(module.parameters(), lr=0.0), UseOptimizer("aida", lr=0.1)
        )
    trainer = SimpleNamespace(strategy=DeepSpeedStrategy.__new__(DeepSpeedStrategy))
    with pytest.raises(MisconfigurationException, match="does not work with DeepSpeedStrategy"):
        UseOptimizer("aida").setup(trainer, Net(), "fit")


def test_a_scheduler_of_another_kind_is_refused(tmp_path):
    def configure(module):
        optimizer = sgd(module)
        foreign = SimpleNamespace(optimizer=optimizer, state_dict=dict, load_state_dict=dict)
        return [optimizer], [foreign]

    with pytest.raises(
        MisconfigurationException,
        match=r"cannot bind a SimpleNamespace to another .*with `aida_lightning.build_optimizer`",
    ):
        train(tmp_path, configure, UseOptimizer("aida"))


class EpochScheduler:
    """Drives an option as timm's schedulers do, which know the epoch from their caller alone."""

    def __init__(self, optimizer, param_group_field="lr", warmup_t=3, lr_min=1e-3):
        self.optimizer, self.param_group_field = optimizer, param_group_field
        for group in optimizer.param_groups:
            group.setdefault(f"initial_{param_group_field}", group[param_group_field])
        self.base_values = [g[f"initial_{param_group_field}"] for g in optimizer.param_groups]
        self.warmup_t, self.warmup_lr_init, self.lr_min = warmup_t, lr_min, lr_min
        self.warmup_steps = [(rate - lr_min) / warmup_t for rate in self.base_values]
        self.step(0)

    def state_dict(self):
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state_dict):
        vars(self).update(state_dict)

    def _get_lr(self, t):
        if t < self.warmup_t:
            return [self.warmup_lr_init + t * step for step in self.warmup_steps]
        return [max(self.lr_min, rate / (t + 1)) for rate in self.base_values]

    def step(self, epoch):
        for group, rate in zip(self.optimizer.param_groups, self._get_lr(epoch), strict=True):
            group[self.param_group_field] = rate


class StepsByEpoch(Configured):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(self.global_step)


@pytest.mark.filterwarnings("ignore:.*scales the `base_values` of EpochScheduler by 0.01")
def test_schedulers_like_timms_are_bound_and_scaled(tmp_path, caplog):
    def trained(*use):
        rates = Rates()
        module = StepsByEpoch(scheduled(EpochScheduler))
        trainer, _ = train(tmp_path, module, rates, *use)
        return rates.lrs, trainer

    own, _ = trained()
    kept, _ = trained(UseOptimizer("aida"))
    with caplog.at_level("INFO"):
        scaled, trainer = trained(UseOptimizer("aida", lr=1e-3))
    assert len({tuple(lrs) for lrs in own}) > 4
    assert kept == own
    torch.testing.assert_close(torch.tensor(scaled), torch.tensor(own) / 100, rtol=1e-6, atol=0)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.optimizer is trainer.optimizers[0]
    assert "lr 0.0001, 0.001, EpochScheduler kept" in caplog.text


def test_a_scheduler_of_another_option_is_bound_where_the_new_optimizer_has_it(tmp_path):
    def configure(option):
        def configured(module):
            optimizer = AdamW(module.parameters(), weight_decay=0.1, amsgrad=True)
            config = {"scheduler": EpochScheduler(optimizer, option), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": config}

        return StepsByEpoch(configured)

    trainer, _ = train(tmp_path, configure("weight_decay"), UseOptimizer("aida", lr=0.5))
    (group,) = trainer.optimizers[0].param_groups
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.1 / 13)
    with pytest.raises(MisconfigurationException, match="Scheduler drives the 'amsgrad' of AdamW"):
        train(tmp_path, configure("amsgrad"), UseOptimizer("aida"))


@pytest.mark.parametrize("scheduler", [None, StepLR])
def test_a_lightning_optimizer_is_taken_for_what_it_wraps(tmp_path, scheduler):
    def configure(module):
        optimizer = LightningOptimizer(sgd(module))
        return ([optimizer], [scheduler(optimizer, 1)]) if scheduler else optimizer

    trainer, _ = train(tmp_path, configure, UseOptimizer("aida", lr=0.1))
    assert type(trainer.optimizers[0]) is Aida
    assert [
        c.scheduler.optimizer is trainer.optimizers[0] for c in trainer.lr_scheduler_configs
    ] == ([True] if scheduler else [])


class Words(Configured):
    """Looks rows of a table up, whose gradient is sparse."""

    def __init__(self, configure, *, flagged=True):
        super().__init__(configure)
        self.features = torch.nn.Embedding(4, 3, sparse=flagged)

    def loss(self, batch):
        words = batch[0].argmax(1)
        rows = torch.nn.functional.embedding(words, self.features.weight, sparse=True)
        return self.head(rows.tanh()).square().mean()


@pytest.mark.parametrize("flagged", [True, False])
def test_sparse_gradients_are_refused_at_the_start(tmp_path, flagged):
    def sparse_adam(module):
        return SparseAdam([module.features.weight])

    module = Words(sparse_adam, flagged=flagged)
    train(tmp_path, module)
    start = module.features.weight.clone()
    with pytest.raises(
        MisconfigurationException, match=r"Aida does not support sparse .* \['features.weight'\]"
    ):
        train(tmp_path, module, UseOptimizer("aida", lr=0.1))
    assert torch.equal(module.features.weight, start)
    train(tmp_path, module, UseOptimizer("sgd", lr=0.1, momentum=0.0))
    assert not torch.equal(module.features.weight, start)


@pytest.mark.parametrize(
    ("args", "options", "match"),
    [
        (("aidaa",), {}, "UseOptimizer: Unknown optimizer 'aidaa', did you mean: aida"),
        (("aida",), {"lr": -1.0}, "UseOptimizer: Invalid learning rate: -1.0"),
        (("aida",), {"momentum": 0.9}, "UseOptimizer: Aida has no option 'momentum'; its"),
        ((SGD,), {"k": 1}, "UseOptimizer: SGD has no option 'k'; its options are: lr"),
        ((None,), {}, "UseOptimizer: Invalid optimizer of type NoneType"),
        (("fromage",), {"no_decay_1d": True}, "UseOptimizer: Fromage has no option 'weight_decay'"),
        (("aida",), {"groups": "no_decay"}, "UseOptimizer: Invalid groups: 'no_decay', they must"),
        (("sgd",), {"groups": {"a": {"k": 1}}}, "UseOptimizer: groups: 'a': SGD has no option 'k'"),
    ],
)
def test_wrong_arguments_are_refused_at_once(args, options, match):
    with pytest.raises(MisconfigurationException, match=match):
        UseOptimizer(*args, **options)


def test_classes_and_callables_are_taken(tmp_path):
    assert isinstance(replaced(tmp_path, sgd, RMSprop, lr=1e-3), RMSprop)
    by_callable = replaced(tmp_path, sgd, lambda groups, **options: Adam(groups, **options), lr=0.5)
    assert [group["lr"] for group in by_callable.param_groups] == pytest.approx([0.05, 0.5])


def test_doubtful_replacements_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"keeps lr 0.01, 0.1 of SGD, .*pass `lr`"):
        train(tmp_path, sgd, UseOptimizer("laida"))
    with pytest.warns(UserWarning, match="drops the weight decay of SGD, because Fromage"):
        train(tmp_path, lambda module: sgd(module, weight_decay=0.1), UseOptimizer("fromage"))

    def configure(module):
        module.mine = sgd(module)
        return module.mine

    with pytest.warns(
        UserWarning, match="Configured.mine still refers to the SGD that UseOptimizer"
    ):
        train(tmp_path, configure, UseOptimizer("aida"))

    def holds(module):
        optimizer = sgd(module)
        module.theirs = SimpleNamespace(optimizer=optimizer)
        return optimizer

    with pytest.warns(
        UserWarning, match="Configured.theirs still refers to the SGD that UseOptimizer"
    ):
        train(tmp_path, holds, UseOptimizer("aida"))

    def ascends(module):
        return Adam(module.parameters(), maximize=True)

    class Descends(SGD):
        def __init__(self, params, lr=0.1):
            super().__init__(params, lr)
            del self.defaults["maximize"]

    with pytest.warns(UserWarning, match="drops the maximize of Adam, because Descends"):
        train(tmp_path, ascends, UseOptimizer(Descends, lr=0.1))


def told(caplog, folder, configure, *args, **options):
    """Return the line in which the callback says what it did."""
    caplog.clear()
    with caplog.at_level("INFO"):
        replaced(folder, configure, *args, **options)
    (line,) = [m for m in caplog.messages if m.startswith("UseOptimizer: ")]
    return line.removeprefix("UseOptimizer: ")


def test_the_line_tells_rates_from_before_the_schedule(tmp_path, caplog):
    def warming(module):
        optimizer = Adam([{"params": [p]} for p in module.parameters()], lr=0.01)
        return [optimizer], [lr_scheduler.LambdaLR(optimizer, lambda step: step / 5)]

    def cycling(cycle):
        def configure(module):
            optimizer = Adam(module.parameters(), lr=0.5)
            return [optimizer], [{"scheduler": cycle(optimizer), "interval": "step"}]

        return configure

    def on_plateau(module):
        optimizer = Adam(module.parameters(), lr=0.02)
        module.plateau = ReduceLROnPlateau(optimizer)
        return optimizer

    line = "Aida in place of Adam, lr {}, LambdaLR kept"
    assert told(caplog, tmp_path, warming, "aida") == line.format("0.01")
    assert told(caplog, tmp_path, warming, "aida", lr=3e-3) == line.format("0.003")
    one_cycle = cycling(lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=12))
    assert ", lr 0.1, OneCycleLR" in told(caplog, tmp_path, one_cycle, "aida")
    cyclic = cycling(lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, cycle_momentum=False))
    assert ", lr 0.2, CyclicLR" in told(caplog, tmp_path, cyclic, "aida")
    # It notes no base in the groups.
    assert ", lr 0.02, ReduceLROnPlateau" in told(caplog, tmp_path, on_plateau, "aida")
    assert "initial_lr" not in replaced(tmp_path, on_plateau, "aida").param_groups[0]


def test_the_line_tells_many_rates_by_their_range(tmp_path, caplog):
    def decayed(module, count=12):
        module.blocks = torch.nn.ParameterList(torch.ones(1) for _ in range(count))
        groups = [{"params": [p], "lr": 0.1 / 2**i} for i, p in enumerate(module.blocks)]
        return SGD([*groups, {"params": module.head.parameters(), "lr": 0.1}])

    line = told(caplog, tmp_path, decayed, "aida", lr=1.0)
    assert line == "Aida in place of SGD, lr 0.000488281 to 1 (12 rates)"


def test_options_that_the_new_optimizer_lacks_are_told(tmp_path, caplog):
    def adam(module):
        return Adam(module.parameters(), betas=(0.8, 0.9), amsgrad=True, foreach=True)

    def groups(module):
        groups = [
            {"params": [module.head.weight], "momentum": 0.5},
            {"params": [module.head.bias], "momentum": 0.0},
        ]
        return SGD(groups, lr=0.1, momentum=0.9, nesterov=True)

    def cycled(module):
        optimizer = sgd(module)
        return [optimizer], [lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12)]

    assert told(caplog, tmp_path, adam, "aida").endswith("lr 0.001, amsgrad=True dropped")
    line = told(caplog, tmp_path, adam, "sgd", lr=0.1)
    assert line.endswith("lr 0.1, betas=(0.8, 0.9) dropped, amsgrad=True dropped")
    line = told(caplog, tmp_path, groups, "aida")
    assert line.endswith("lr 0.1, momentum=0.5 dropped, nesterov=True dropped")
    assert "dropped" not in told(caplog, tmp_path, cycled, "aida")  # The momentum moves to beta1.

    def centered(module):
        return RMSprop(module.parameters(), alpha=0.0, centered=True)

    assert told(caplog, tmp_path, centered, "aida").endswith("lr 0.01, centered=True dropped")


def test_a_rate_that_the_old_optimizer_finds_itself_is_not_kept(tmp_path):
    class FindsItsRate(SGD):
        def __init__(self, params):
            super().__init__(params, lr=0.1)
            self.defaults["lr"] = self.param_groups[0]["lr"] = None

    def configure(module):
        return FindsItsRate(module.parameters())

    assert replaced(tmp_path, configure, "aida").param_groups[0]["lr"] == 1e-3
    assert replaced(tmp_path, configure, "aida", lr=0.1).param_groups[0]["lr"] == 0.1


def test_betas_of_another_number_are_not_kept(tmp_path, caplog):
    class ThreeBetas(SGD):
        def __init__(self, params, betas=(0.9, 0.99, 0.999)):
            super().__init__(params, lr=0.1)
            self.defaults["betas"] = self.param_groups[0]["betas"] = betas

    def configure(module, betas=(0.5, 0.6, 0.7)):
        return ThreeBetas(module.parameters(), betas=betas)

    assert replaced(tmp_path, configure, "aida").param_groups[0]["betas"] == (0.9, 0.999)
    line = told(caplog, tmp_path, configure, "aida")
    assert line == "Aida in place of ThreeBetas, lr 0.1, betas=(0.5, 0.6, 0.7) dropped"


class WarmUp(lr_scheduler.LRScheduler):
    def get_lr(self):
        return [rate * min(1.0, (self.last_epoch + 1) / 5) for rate in self.base_lrs]


def test_a_scheduler_of_ones_own_is_scaled_with_a_warning(tmp_path):
    own, scaled = Rates(), Rates()
    train(tmp_path, scheduled(WarmUp), own, Constant())
    with pytest.warns(UserWarning, match="scales the `base_lrs` of WarmUp by 0.01"):
        train(tmp_path, scheduled(WarmUp), scaled, Constant(), UseOptimizer("aida", lr=1e-3))
    assert [lrs[1] for lrs in scaled.lrs] == pytest.approx([lrs[1] / 100 for lrs in own.lrs])


def test_a_scheduler_that_the_module_steps_itself_is_bound_too(tmp_path):
    class Stepping(Configured):
        def configure_optimizers(self):
            optimizer = sgd(self)
            self.scheduler = StepLR(optimizer, 1, gamma=0.5)
            return optimizer

        def on_train_batch_end(self, *args):
            self.scheduler.step()

    rates = Rates()
    train(tmp_path, Stepping(None), rates, UseOptimizer("aida", lr=1.0), max_steps=3)
    assert [lrs[1] for lrs in rates.lrs] == [1.0, 0.5, 0.25]


def test_a_tensor_as_learning_rate_stays_one_in_every_group(tmp_path):
    optimizer = replaced(tmp_path, sgd, "aida", lr=torch.tensor(0.5))
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert math.isclose(first.item(), 0.05, rel_tol=1e-6)
    assert second.item() == 0.5


SCRIPT = """
import os
import sys

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

from aida_lightning import Aida
from aida_lightning.callbacks import UseOptimizer


class Model(BoringModel):
    def __init__(self, sharded):
        super().__init__()
        self.sharded, self.layer = sharded, None

    def configure_model(self):
        if self.layer is None:
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(32, 2)
            if self.sharded:
                fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])

    def on_train_start(self):
        self.start = self.layer.weight.detach().clone()

    def on_train_end(self):
        (optimizer,) = self.trainer.optimizers
        (config,) = self.trainer.lr_scheduler_configs
        assert type(optimizer) is Aida
        assert hasattr(self.layer.weight, "placements") == self.sharded
        assert [*optimizer.state] == [*self.parameters()]
        assert config.scheduler.optimizer is optimizer
        assert abs(optimizer.param_groups[0]["lr"] - 1e-4) < 1e-12  # StepLR's, after an epoch
        moved = (self.layer.weight - self.start).abs()
        assert (moved.full_tensor() if self.sharded else moved).max() > 1e-3


def train(rank, store, sharded):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        GROUP_RANK="0", TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT=store,
    )
    Trainer(
        accelerator="cpu", devices=2, max_epochs=1, limit_train_batches=3, limit_val_batches=0,
        strategy=ModelParallelStrategy() if sharded else DDPStrategy(), logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        callbacks=[UseOptimizer("aida", lr=1e-3)],
    ).fit(Model(sharded))


for sharded in (name == "sharded" for name in sys.argv[1:]):
    port = str(torch.distributed.TCPStore("127.0.0.1", 0, is_master=True).port)
    torch.multiprocessing.start_processes(train, (port, sharded), nprocs=2, start_method="fork")
print("TRAINED")
"""


def test_every_process_replaces_the_optimizer_of_the_module_it_built(tmp_path):
    # Older torch shards on GPUs alone.
    strategies = ["ddp", "sharded"] if hasattr(torch.cpu.Stream, "record_event") else ["ddp"]
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, str(script), *strategies],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "TRAINED" in run.stdout


def test_it_can_be_sent_to_another_process():
    use = pickle.loads(pickle.dumps(UseOptimizer("aida", lr=1e-3, k=1)))
    assert (use.optimizer, use.options) == ("aida", {"lr": 1e-3, "k": 1})


GROUPS = {"head.bias": {"weight_decay": 0.0}, "*.bias": {}}


def rates_of_layers(folder, scheduler, **options):
    """Return the rates of each layer at each batch, as a schedule sets them."""
    rates = Rates()
    use = UseOptimizer("aida", lr=0.1, **options)
    trainer, module = train(folder, scheduled(scheduler), use, Constant(), rates)
    places = {
        name: next(i for i, g in enumerate(groups) if any(p is param for p in g["params"]))
        for groups in [trainer.optimizers[0].param_groups]
        for name, param in module.named_parameters()
    }
    return {name: [lrs[place] for lrs in rates.lrs] for name, place in places.items()}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_divided_groups_follow_the_schedule_of_the_whole(tmp_path, name):
    whole = rates_of_layers(tmp_path / "whole", SCHEDULERS[name])
    assert rates_of_layers(tmp_path / "divided", SCHEDULERS[name], groups=GROUPS) == whole


@pytest.mark.parametrize(
    "name", ["CyclicLR", "LambdaLR", "OneCycleLR", "SequentialLR", "StepLR", "MultiStepLR"]
)
def test_the_rate_of_a_pattern_is_one_without_the_schedule(tmp_path, name):
    whole = rates_of_layers(tmp_path / "whole", SCHEDULERS[name])
    # The top of the module's own cycle is 0.1 for the head.
    groups = {"head.bias": {"lr": 0.025}}
    divided = rates_of_layers(tmp_path / "divided", SCHEDULERS[name], groups=groups)
    expected = {**whole, "head.bias": [rate / 4 for rate in whole["head.bias"]]}
    assert divided == {layer: pytest.approx(rates) for layer, rates in expected.items()}


def test_patterns_divide_the_groups_of_the_module(tmp_path):
    def decaying(module):
        return sgd(module, weight_decay=0.1)

    groups = {"head.*": {"weight_decay": 0.5, "betas": (0.5, 0.9)}, "*.bias": {"lr": 1.0}}
    optimizer = replaced(tmp_path, decaying, "aida", lr=0.2, groups=groups, no_decay_1d=True)
    found = {
        g["name"]: (g["param_names"], g["lr"], g["weight_decay"], g["betas"][0])
        for g in optimizer.param_groups
    }
    assert found == {
        "default": (["features.weight"], pytest.approx(0.02), 0.1, 0.9),
        "*.bias/1d": (["features.bias"], pytest.approx(1.0), 0.0, 0.9),
        "head.*": (["head.weight", "head.bias"], pytest.approx(0.2), 0.5, 0.5),
    }
    twice = replaced(tmp_path, decaying, "adam", lr=0.2, groups={"*.bias": {}})
    names = ["default/pg1", "*.bias/pg1", "default/pg2", "*.bias/pg2"]
    assert [group["name"] for group in twice.param_groups] == names


def test_patterns_that_do_not_fit_the_module_are_refused(tmp_path):
    for groups, match in (
        ({"heads.*": {}}, r"UseOptimizer: groups: 'heads.\*' matches no layer; .*: head"),
        ("layer_decay:0.5", "needs the depth of each layer"),
    ):
        with pytest.raises(MisconfigurationException, match=match):
            train(tmp_path, sgd, UseOptimizer("aida", lr=0.1, groups=groups))
    by_callable = UseOptimizer(
        lambda groups, **options: SGD(groups, **options), lr=0.1, groups={"head.*": {"k": 1}}
    )
    with pytest.raises(MisconfigurationException, match="the groups of SGD have no option 'k'"):
        train(tmp_path, sgd, by_callable)
