"""A run that was killed and goes on in the same folder: every point once, and none lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import SessionLog
from toy import Net, age_events, fit

from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.logs.events import read_folder
from aida_lightning.logs.restart import drop_orphans

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Killed(Exception):
    pass


class Stops(Callback):
    """Raises at the end of a batch, as late as no checkpoint of it is saved any more."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.batch:
            raise Killed


class Counting(Net):
    taken = 0

    def training_step(self, batch, batch_idx):
        # Another value each time a step is taken, to tell which of two points is shown.
        Counting.taken += 1
        self.log("taken", float(Counting.taken))
        return super().training_step(batch, batch_idx)


def train(folder, *callbacks, every=4, ckpt=None, logger=None, monitor=None, **options):
    """Train 24 steps, a checkpoint after every 4th and each epoch, and log every step."""
    age_events(folder)
    saved = folder / "saved"
    return fit(
        folder,
        Counting(),
        monitor or StepsizeMonitor(every_n_steps=1),
        *callbacks,
        ModelCheckpoint(saved, "{step}", every_n_train_steps=every, save_top_k=-1),
        ModelCheckpoint(saved, "{epoch}", save_on_train_epoch_end=True, save_top_k=-1),
        loggers=[logger or TensorBoardLogger(folder, name="", version="run")],
        enable_checkpointing=True,
        ckpt_path=ckpt and saved / f"{ckpt}.ckpt",
        **{"log_every_n_steps": 1, "max_epochs": 2, **options},
    )


@pytest.fixture(autouse=True)
def _count_anew():
    Counting.taken = 0


def shown(folder):
    """Return the (step, value) pairs of each tag that TensorBoard shows."""
    events = EventAccumulator(str(folder / "run"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def restarts(folder):
    events = read_folder(folder / "run")
    steps = [event.step for event in events if event.session_log.status == SessionLog.START]
    assert steps[::2] == steps[1::2]
    return steps[::2]


LAYERS = ["stepsize_mean/head.weight", "stepsize_std/features.weight"]


@pytest.mark.parametrize(("stops", "ckpt"), [(11, 8), (9, 8), (15, 12), (18, 16), (23, 4)])
def test_points_after_the_checkpoint_are_shown_once_and_those_before_it_kept(tmp_path, stops, ckpt):
    with pytest.raises(Killed):
        train(tmp_path, Stops(stops))
    before = shown(tmp_path)
    assert [step for step, _ in before[LAYERS[0]]] == list(range(stops))
    train(tmp_path, LearningRateMonitor("step"), ckpt=f"step={ckpt}")
    after = shown(tmp_path)
    for tag in [*LAYERS, "taken", "loss"]:
        assert [step for step, _ in after[tag]] == list(range(24)), tag
        kept = [point for point in before[tag] if point[0] < ckpt]
        assert after[tag][: len(kept)] == kept
    # The batch that raised had been taken, but its own metrics not logged.
    assert [value for _, value in after["taken"]] == [
        *range(1, ckpt + 1), *range(stops + 1, stops + 25 - ckpt),
    ]  # fmt: skip
    assert [step for step, _ in after["lr-Aida"]] == list(range(ckpt, 24))
    assert restarts(tmp_path) == [ckpt]


def test_a_checkpoint_at_an_epochs_end_is_resumed_in_step(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, Stops(17))
    train(tmp_path, ckpt="epoch=0")
    assert restarts(tmp_path) == [12]
    for tag in [*LAYERS, "taken"]:
        assert [step for step, _ in shown(tmp_path)[tag]] == list(range(24)), tag


def test_accumulated_gradients_are_resumed_in_step(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, Stops(7), every=3, accumulate_grad_batches=2)
    train(tmp_path, every=3, accumulate_grad_batches=2, ckpt="step=3")
    assert restarts(tmp_path) == [3]
    for tag in [*LAYERS, "taken"]:
        assert [step for step, _ in shown(tmp_path)[tag]] == list(range(12)), tag


class SavesAfterFiveBatches(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 4:
            trainer.save_checkpoint(Path(trainer.default_root_dir, "saved", "fifth.ckpt"))


def test_a_checkpoint_between_two_steps_is_resumed_in_step(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, SavesAfterFiveBatches(), Stops(5), accumulate_grad_batches=2)
    train(tmp_path, accumulate_grad_batches=2, ckpt="fifth")
    assert restarts(tmp_path) == [2]
    for tag in [*LAYERS, "taken"]:
        assert [step for step, _ in shown(tmp_path)[tag]] == list(range(12)), tag


class SavesAtTheStart(Callback):
    def on_train_start(self, trainer, module):
        trainer.save_checkpoint(Path(trainer.default_root_dir, "saved", "start.ckpt"))


def test_a_monitor_that_was_stopped_in_a_batch_saves_the_next_runs_start_in_step(tmp_path):
    monitor = StepsizeMonitor(every_n_steps=1)
    with pytest.raises(Killed):
        train(tmp_path, Stops(17), monitor=monitor)
    with pytest.raises(Killed):
        train(tmp_path, SavesAtTheStart(), Stops(15), monitor=monitor, ckpt="epoch=0")
    train(tmp_path, ckpt="start")
    assert restarts(tmp_path) == [12, 12]
    for tag in [*LAYERS, "taken"]:
        assert [step for step, _ in shown(tmp_path)[tag]] == list(range(24)), tag


@pytest.mark.parametrize(
    ("ckpt", "accumulate", "expected"),
    [("step=8", 1, 8), ("step=16", 1, 16), ("epoch=0", 1, 12), ("step=4", 2, 4), ("fifth", 2, 8)],
)
def test_a_checkpoint_at_the_start_of_a_resumed_run_holds_the_next_step(
    tmp_path, ckpt, accumulate, expected
):
    # The fifth batch is the second epoch's, whose gradients a sixth one adds to.
    train(tmp_path, SavesAfterFiveBatches(), accumulate_grad_batches=accumulate)
    train(tmp_path, SavesAtTheStart(), accumulate_grad_batches=accumulate, ckpt=ckpt)
    checkpoint = torch.load(tmp_path / "saved" / "start.ckpt", weights_only=False)
    assert checkpoint["aida_lightning.StepsizeMonitor"]["next_step"] == expected


def test_a_run_killed_before_its_first_step_after_a_resumption_shows_each_point_once(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, Stops(11))
    with pytest.raises(Killed):
        train(tmp_path, SavesAtTheStart(), Stops(9), ckpt="step=8")
    train(tmp_path, ckpt="start")
    for tag in [*LAYERS, "taken"]:
        assert [step for step, _ in shown(tmp_path)[tag]] == list(range(24)), tag


def test_a_run_that_is_killed_again_and_again(tmp_path):
    for stops, ckpt in [(11, None), (14, "step=8"), (10, "step=4"), (19, "step=8")]:
        with pytest.raises(Killed):
            train(tmp_path, Stops(stops), ckpt=ckpt)
    train(tmp_path, ckpt="step=16")
    assert restarts(tmp_path) == [8, 4, 8, 16]
    for tag in [*LAYERS, "taken"]:
        assert [step for step, _ in shown(tmp_path)[tag]] == list(range(24)), tag


class LogsSamples(Callback):
    """Someone else's numbers, at steps that count something else."""

    def on_train_batch_end(self, trainer, module, *args):
        trainer.logger.experiment.add_scalar("by_samples", 1.0, trainer.global_step * 100)


def test_numbers_at_steps_of_someones_own_are_not_hidden(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, Stops(11), LogsSamples())
    before = shown(tmp_path)["by_samples"]
    with pytest.warns(UserWarning, match="'by_samples' was logged at step 100 before"):
        train(tmp_path, LogsSamples(), ckpt="step=8")
    assert restarts(tmp_path) == []
    assert set(before) <= set(shown(tmp_path)["by_samples"])


def test_what_was_logged_in_the_moment_of_the_checkpoint_is_not_hidden(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    logger.experiment.add_scalar("theirs", 1.0, 8, walltime=100.0)
    with pytest.warns(UserWarning, match="'theirs' was logged at step 8 before"):
        drop_orphans(logger, 8, 100.0, ["theirs"])
    logger.finalize("success")
    assert restarts(tmp_path) == []


def test_nothing_is_dropped_where_nothing_was_resumed(tmp_path):
    train(tmp_path, max_epochs=1)
    train(tmp_path, max_epochs=1)  # another run into the same folder, as its user wished
    assert restarts(tmp_path) == []
    logger = TensorBoardLogger(tmp_path, name="", version="other")
    train(tmp_path, ckpt="step=8", logger=logger)  # resumed, but with no points to appear twice
    assert not any(event.HasField("session_log") for event in read_folder(logger.log_dir))


def test_a_run_that_had_stopped_at_its_checkpoint_has_nothing_to_drop(tmp_path):
    train(tmp_path, max_epochs=1)
    train(tmp_path, ckpt="epoch=0")
    assert restarts(tmp_path) == []
    assert [step for step, _ in shown(tmp_path)[LAYERS[0]]] == list(range(24))


@pytest.mark.parametrize("every_n_steps", [1, 12])
def test_neither_a_prefix_nor_a_seldom_monitor_shows_a_point_twice(tmp_path, every_n_steps):
    def run(*callbacks, **options):
        logger = TensorBoardLogger(tmp_path, name="", version="run", prefix="exp")
        monitor = StepsizeMonitor(every_n_steps=every_n_steps)
        train(tmp_path, *callbacks, logger=logger, monitor=monitor, **options)

    with pytest.raises(Killed):
        run(Stops(11))
    run(ckpt="step=8")
    assert restarts(tmp_path) == [8]
    for tag, points in shown(tmp_path).items():
        steps = [step for step, _ in points]
        assert len({*steps}) == len(steps), tag


class WithTest(Counting):
    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch))

    def test_dataloader(self):
        return self.train_dataloader()


def test_what_a_run_that_ended_logged_of_its_test_stays(tmp_path):
    trainer = train(tmp_path, max_epochs=1)
    trainer.test(WithTest(), verbose=False)
    before = shown(tmp_path)["test_loss"]
    train(tmp_path, ckpt="epoch=0")
    assert restarts(tmp_path) == []
    assert shown(tmp_path)["test_loss"] == before


def train_with_lazy_loggers(folder, *callbacks, version="first", **options):
    """Train with loggers that write nothing before they are told to, or closed."""
    age_events(folder)
    loggers = [
        TensorBoardLogger(folder, name="", version="run", max_queue=10**6, flush_secs=10**6),
        CSVLogger(folder, name="", version=version, flush_logs_every_n_steps=10**6),
    ]
    saved = ModelCheckpoint(folder / "saved", "{step}", every_n_train_steps=5, save_top_k=-1)
    return fit(
        folder,
        Net(),
        StepsizeMonitor(every_n_steps=1),
        *callbacks,
        saved,
        loggers=loggers,
        enable_checkpointing=True,
        **{"log_every_n_steps": 1000, "max_epochs": 2, **options},
    )


class KillsItself(Callback):
    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 13:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_killed_process_has_written_all_up_to_its_checkpoint(tmp_path):
    program = "import sys, pathlib; sys.path[:0] = sys.argv[2:]; import warnings; "
    program += "warnings.simplefilter('ignore'); import test_resuming as t; "
    program += "t.train_with_lazy_loggers(pathlib.Path(sys.argv[1]), t.KillsItself())"
    here = Path(__file__).parent
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(here), str(here.parent)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = shown(tmp_path)
    for tag in LAYERS:
        assert [step for step, _ in before[tag]][:10] == list(range(10)), tag
    assert len((tmp_path / "first" / "metrics.csv").read_text().splitlines()) == 1 + 10
    checkpoint = tmp_path / "saved" / "step=10.ckpt"
    train_with_lazy_loggers(tmp_path, version="second", ckpt_path=checkpoint)
    after = shown(tmp_path)
    for tag in LAYERS:
        assert [step for step, _ in after[tag]] == list(range(24)), tag
        assert after[tag][:10] == before[tag][:10]
