"""No point is logged twice: beside other monitors, and in a second fit."""

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import Net, fit

from aida_lightning.callbacks import StepsizeMonitor

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]


def steps(folder):
    """Return the steps of each tag, as often as they are there, and those of the histograms."""
    events = EventAccumulator(str(folder / "run"), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"] if "weight" in tag}
    found |= {tag: events.Histograms(tag) for tag in events.Tags()["histograms"]}
    return {tag: [event.step for event in found[tag]] for tag in found}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every_n_steps": 4}, {2, 3, 5, 7, 8, 11}),
        ({"layers": "head.weight"}, {2, 5, 8, 11}),
        ({"statistics": ["mean", "max"]}, {2, 5, 8, 11}),
        ({"logging_interval": "epoch"}, {2, 5, 8, 11}),
        ({"health": False}, {2, 5, 8, 11}),
        ({"custom_scalars": False}, {2, 5, 8, 11}),
    ],
)
def test_two_monitors_of_one_layer_write_each_point_once(tmp_path, options, expected):
    monitors = [
        StepsizeMonitor(every_n_steps=3, histograms=True),
        StepsizeMonitor(**{"every_n_steps": None, **options}, histograms=True),
    ]
    fit(tmp_path, Net(), *monitors, log_every_n_steps=3)
    found = steps(tmp_path)
    assert found["stepsizes/head.weight"] == found["stepsize_mean/head.weight"] == sorted(expected)
    assert found["stepsize_std/head.weight"] == sorted(
        expected if "statistics" not in options else {2, 5, 8, 11}
    )


@pytest.mark.parametrize("name", ["health", "custom_scalars"])
def test_two_monitors_that_differ_in_one_choice_have_states_of_their_own(name):
    assert StepsizeMonitor().state_key != StepsizeMonitor(**{name: False}).state_key


def test_the_key_of_a_checkpoints_state_is_that_of_older_ones():
    assert StepsizeMonitor().state_key == (
        "StepsizeMonitor{'layers': None, 'every_n_steps': None, 'logging_interval': 'step', "
        "'statistics': ['mean', 'std'], 'max_layers': 256, 'histograms': False, 'figures': False}"
    )


class Killed(Exception):
    pass


class Raises(Callback):
    """Raises once, at the end of a batch."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.batch:
            self.batch = None
            raise Killed


class Keeps(Callback):
    """Keeps the Trainer for a second fit."""

    def on_fit_start(self, trainer, module):
        self.trainer = trainer


@pytest.mark.parametrize("batch", [1, 5, 12])
@pytest.mark.parametrize("every_n_steps", [1, None])
def test_a_second_fit_after_an_exception_logs_no_step_twice(tmp_path, batch, every_n_steps):
    keeps, module = Keeps(), Net()
    monitor = StepsizeMonitor(every_n_steps=every_n_steps)
    with pytest.raises(Killed):
        fit(tmp_path, module, monitor, keeps, Raises(batch), log_every_n_steps=1)
    keeps.trainer.fit(module)
    found = steps(tmp_path)["stepsize_mean/head.weight"]
    assert found == sorted({*found})
    assert {*range(batch)} <= {*found}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_a_trainer_that_goes_back_to_a_checkpoint_logs_again(tmp_path):
    keeps, module = Keeps(), Net()
    saved = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=3, save_top_k=-1)
    with pytest.raises(Killed):
        fit(
            tmp_path, module, StepsizeMonitor(every_n_steps=4), keeps, saved, Raises(8),
            enable_checkpointing=True,
        )  # fmt: skip
    keeps.trainer.fit(module, ckpt_path=tmp_path / "saved" / "step=6.ckpt")
    assert steps(tmp_path)["stepsize_mean/head.weight"] == [3, 7, 11]
