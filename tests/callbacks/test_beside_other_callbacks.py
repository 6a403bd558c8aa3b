"""The optimizers and the monitor beside Lightning's own callbacks."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    ThroughputMonitor,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.tuner import Tuner
from tensorboard.compat.proto.event_pb2 import SessionLog
from torch.utils.data import DataLoader, TensorDataset
from toy import Net, fit, read

from aida_lightning import build_optimizer
from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.logs.events import read_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
NAMES = ["aida", "laida"]
TAG = "stepsize_mean/head.weight"
both = pytest.mark.parametrize("name", NAMES)


def steps(folder, tag=TAG):
    return sorted(read(folder)[tag])


class Scheduled(Net):
    def configure_optimizers(self):
        optimizer = build_optimizer(self.name, self, lr=1e-2)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@both
def test_learning_rate_monitor(tmp_path, name):
    monitor = StepsizeMonitor(statistics=["mean", "effective_mean"])
    fit(tmp_path, Scheduled(name), monitor, LearningRateMonitor("step"), log_every_n_steps=3)
    scalars = read(tmp_path)
    (tag,) = [tag for tag in scalars if tag.startswith("lr-")]
    assert sorted(scalars[tag]) == steps(tmp_path) == [2, 5, 8, 11]
    # What it logs of a step is the learning rate that the step is taken with.
    for step, lr in scalars[tag].items():
        effective = lr / (1 - 0.9 ** (step + 1)) * scalars[TAG][step]
        logged = scalars["stepsize_effective_mean/head.weight"][step]
        assert logged == pytest.approx(effective, rel=1e-5)


@both
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_model_checkpoint_restores_optimizer_and_count(tmp_path, name):
    torch.manual_seed(0)
    modules = [Net(name), Net(name)]
    modules[1].load_state_dict(modules[0].state_dict())
    for module, folder, path in (
        (modules[0], tmp_path / "whole", None),
        (modules[1], tmp_path / "resumed", tmp_path / "whole" / "saved" / "step=12.ckpt"),
    ):
        saved = ModelCheckpoint(folder / "saved", "{step}", every_n_train_steps=6, save_top_k=-1)
        monitor = StepsizeMonitor(every_n_steps=5)
        fit(folder, module, monitor, saved, ckpt_path=path, enable_checkpointing=True, max_epochs=2)
    whole, resumed = (read(tmp_path / folder)[TAG] for folder in ("whole", "resumed"))
    assert sorted(whole) == [4, 9, 14, 19]
    assert resumed == {step: whole[step] for step in (14, 19)}
    for a, b in zip(*(module.parameters() for module in modules), strict=True):
        assert torch.equal(a, b)


@both
def test_early_stopping(tmp_path, name):
    class Stuck(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("stuck", 1.0, on_epoch=True, on_step=False)
            return loss

    stopping = EarlyStopping("stuck", patience=2, check_on_train_epoch_end=True)
    trainer = fit(tmp_path, Stuck(name), StepsizeMonitor(), stopping, max_epochs=20)
    assert trainer.current_epoch == 3
    assert steps(tmp_path) == [4, 9, 14, 19, 24, 29, 34]


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_early_stopping_by_a_statistic(tmp_path, interval):
    stopping = EarlyStopping(
        TAG, patience=1, mode="max", check_on_train_epoch_end=True, min_delta=1e9
    )
    monitor = StepsizeMonitor(logging_interval=interval)
    trainer = fit(tmp_path, Net(), monitor, stopping, max_epochs=20)
    assert trainer.current_epoch == 2
    logged = read(tmp_path)
    assert stopping.best_score.item() == pytest.approx(
        logged[TAG][{"step": 9, "epoch": 11}[interval]]
    )
    for tag in (TAG, "stepsize_std/features.weight"):
        last = logged[tag][max(logged[tag])]
        assert trainer.callback_metrics[tag].item() == pytest.approx(last)


@pytest.mark.parametrize("every_n_steps", [1, None])
def test_a_checkpoint_of_the_best_statistic(tmp_path, every_n_steps):
    saved = ModelCheckpoint(tmp_path / "saved", monitor=TAG, every_n_train_steps=5)
    monitor = StepsizeMonitor(every_n_steps=every_n_steps)
    fit(tmp_path, Net(), saved, monitor, enable_checkpointing=True)
    logged = read(tmp_path)[TAG]
    assert saved.best_model_score.item() == pytest.approx(min(logged[4], logged[9]))


def test_every_process_has_the_statistics(tmp_path):
    # Each raises where it has no number to compare.
    stopping = EarlyStopping(TAG, strict=True, check_on_train_epoch_end=True)
    monitor = StepsizeMonitor(every_n_steps=1)
    fit(tmp_path, Net(), monitor, stopping, devices=2, strategy="ddp_spawn", max_epochs=2)
    assert steps(tmp_path) == list(range(12))


@both
def test_gradient_accumulation_scheduler(tmp_path, name):
    schedule = GradientAccumulationScheduler({0: 1, 1: 3})
    fit(tmp_path, Net(name), StepsizeMonitor(every_n_steps=1), schedule, max_epochs=2)
    assert steps(tmp_path) == list(range(12 + 4))


@both
@pytest.mark.filterwarnings("ignore:.*`lr_scheduler`.*", "ignore:Swapping scheduler.*")
@pytest.mark.filterwarnings("ignore:The verbose parameter is deprecated")
def test_stochastic_weight_averaging(tmp_path, name):
    averaging = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=1)
    module = Net(name)
    fit(tmp_path, module, StepsizeMonitor(every_n_steps=4), averaging, max_epochs=3)
    assert steps(tmp_path) == list(range(3, 36, 4))
    assert all(param.isfinite().all() for param in module.parameters())


class Flops(Net):
    flops_per_batch = 10


@both
def test_throughput_monitor(tmp_path, name):
    throughput = ThroughputMonitor(lambda batch: batch[0].size(0), window_size=4)
    fit(tmp_path, Flops(name), StepsizeMonitor(), throughput)
    scalars = read(tmp_path)
    assert steps(tmp_path) == [4, 9]
    assert any(tag.startswith("train") and tag.endswith("samples") for tag in scalars)


class Sized(Net):
    """Has the attributes that the tuner sets."""

    def __init__(self, name):
        super().__init__(name)
        self.batch_size, self.lr = 1, 1e-3

    def configure_optimizers(self):
        return build_optimizer(self.name, self, lr=self.lr)

    def train_dataloader(self):
        inputs = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs), batch_size=self.batch_size)


def restarts(folder):
    events = read_folder(folder / "run")
    return [event.step for event in events if event.session_log.status == SessionLog.START]


def assert_trained_from_the_start(folder, count):
    """The trial steps are in nothing that was logged, and nothing is taken for a resumption."""
    assert steps(folder) == list(range(count))
    assert steps(folder, "loss") == list(range(count))
    assert restarts(folder) == []


@both
def test_batch_size_finder(tmp_path, name):
    module = Sized(name)
    finder = BatchSizeFinder(steps_per_trial=2, max_trials=2, init_val=1)
    fit(tmp_path, module, StepsizeMonitor(every_n_steps=1), finder, log_every_n_steps=1)
    assert module.batch_size > 1
    assert_trained_from_the_start(tmp_path, 24 // module.batch_size)


@both
def test_learning_rate_finder(tmp_path, name):
    module = Sized(name)
    finder = LearningRateFinder(num_training_steps=15, early_stop_threshold=None)
    fit(tmp_path, module, StepsizeMonitor(every_n_steps=1), finder, log_every_n_steps=1)
    assert module.lr != 1e-3
    assert_trained_from_the_start(tmp_path, 24)


@both
def test_the_tuner_before_fit(tmp_path, name):
    torch.manual_seed(0)
    module = Sized(name)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=[TensorBoardLogger(tmp_path, name="", version="run")],
        callbacks=[StepsizeMonitor(every_n_steps=1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_epochs=1,
        log_every_n_steps=1,
    )
    tuner = Tuner(trainer)
    tuner.scale_batch_size(module, steps_per_trial=2, max_trials=1, init_val=1)
    found = tuner.lr_find(module, num_training=11, early_stop_threshold=None)
    assert len(found.results["lr"]) == 11
    trainer.fit(module)
    assert_trained_from_the_start(tmp_path, 24 // module.batch_size)
