"""At which steps the monitor logs, where optimizers do not step once per batch."""

import pytest
from lightning.pytorch import Callback
from toy import Net, TwoOptimizers, fit, read

from aida_lightning.callbacks import StepsizeMonitor

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
HEAD, FEATURES = "Aida/stepsize_mean/head.weight", "Aida-1/stepsize_mean/features.weight"


class Often(TwoOptimizers):
    """The head steps three times per batch, the features twice."""

    def __init__(self):
        super().__init__(["aida", "aida"])

    def training_step(self, batch, batch_idx):
        for optimizer, count in zip(self.optimizers(), (3, 2), strict=True):
            for _ in range(count):
                optimizer.zero_grad()
                self.manual_backward(loss := self.loss(batch))
                optimizer.step()
        self.log("loss", loss)


def test_by_default_several_steps_per_batch_are_logged_where_the_trainer_logs(tmp_path):
    fit(tmp_path, Often(), StepsizeMonitor(), log_every_n_steps=4)
    scalars = read(tmp_path)
    for tag in ("loss", HEAD, FEATURES):
        assert sorted(scalars[tag]) == [3, 7, 11]


def test_every_nth_step_is_an_optimizers_own(tmp_path):
    fit(tmp_path, Often(), StepsizeMonitor(every_n_steps=4))
    scalars = read(tmp_path)
    batches = {tag: [step // count for step in range(3, 12 * count, 4)]
               for tag, count in ((HEAD, 3), (FEATURES, 2))}  # fmt: skip
    for tag, expected in batches.items():
        assert sorted(scalars[tag]) == expected


def test_an_optimizer_that_does_not_step_where_the_trainer_logs_has_its_last_step_there(tmp_path):
    monitor = StepsizeMonitor(statistics=["mean", "update_ratio", "gradient_cosine"])
    fit(tmp_path, TwoOptimizers(["aida", "aida"], every=3), monitor, log_every_n_steps=5)
    scalars = read(tmp_path)
    assert sorted(scalars[HEAD]) == [4, 9]
    assert sorted(scalars[FEATURES]) == [4, 9]  # of batches 2 and 8
    assert sorted(scalars[FEATURES.replace("stepsize_mean", "update_ratio")]) == [4, 9]
    assert FEATURES.replace("stepsize_mean", "gradient_cosine") not in scalars


def test_without_a_step_since_the_last_time_there_is_no_point(tmp_path):
    fit(tmp_path, TwoOptimizers(["aida", "aida"], every=6), StepsizeMonitor(), log_every_n_steps=2)
    scalars = read(tmp_path)
    assert sorted(scalars[HEAD]) == [1, 3, 5, 7, 9, 11]
    assert sorted(scalars[FEATURES]) == [5, 11]


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_accumulated_gradients_are_logged_where_the_trainer_logs(tmp_path, accumulate):
    options = {"accumulate_grad_batches": accumulate, "log_every_n_steps": 2, "max_epochs": 2}
    statistics = ["mean", "update_ratio", "gradient_cosine"]
    fit(tmp_path, Net("adam"), StepsizeMonitor(statistics=statistics), **options)
    scalars = read(tmp_path)
    for tag in ("stepsize_mean", "update_ratio", "gradient_cosine"):
        assert sorted(scalars[f"{tag}/head.weight"]) == sorted(scalars["loss"])


class Stops(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        trainer.should_stop = batch_idx == 6


def test_the_step_that_training_stops_at_is_logged_as_the_trainer_does(tmp_path):
    fit(tmp_path, Net(), StepsizeMonitor(), Stops(), log_every_n_steps=5)
    scalars = read(tmp_path)
    assert sorted(scalars["stepsize_mean/head.weight"]) == sorted(scalars["loss"]) == [4, 6]


def test_where_the_trainer_logs_nothing_nothing_is_sampled(tmp_path):
    fit(tmp_path, Net(), StepsizeMonitor(), log_every_n_steps=0)
    assert not any("stepsize" in tag for tag in read(tmp_path))
