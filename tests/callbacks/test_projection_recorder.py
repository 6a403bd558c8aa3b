"""What the recorder of Figure 5 says, where the run is not the usual one."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from toy import Net, fit, read

from aida_lightning import build_optimizer
from aida_lightning.callbacks import ProjectionRecorder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
TAG = "projection_cosine/features.weight"


@pytest.mark.parametrize(("every_n_steps", "expected"), [(None, []), (5, [4, 9])])
def test_a_trainer_that_logs_nothing_has_nothing_recorded_unless_asked_for(
    tmp_path, every_n_steps, expected
):
    recorder = ProjectionRecorder("features.weight", every_n_steps)
    fit(tmp_path, Net(), recorder, log_every_n_steps=0)
    assert sorted(read(tmp_path).get(TAG, {})) == expected


class FreezesInTheSecondEpoch(Callback):
    def on_train_epoch_start(self, trainer, module):
        module.features.requires_grad_(trainer.current_epoch != 1)


def test_a_layer_that_took_no_step_has_no_triangle(tmp_path):
    recorder = ProjectionRecorder("features.weight", 3)
    fit(tmp_path, Net(), recorder, FreezesInTheSecondEpoch(), max_epochs=3)
    assert sorted(read(tmp_path)[TAG]) == [2, 5, 8, 11, 26, 29, 32, 35]


class Exchanges(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            trainer.strategy.optimizers = [build_optimizer("adam", module)]


def test_an_optimizer_that_is_exchanged_is_followed(tmp_path):
    recorder = ProjectionRecorder("features.weight", 6)
    fit(tmp_path, Net(), recorder, Exchanges(), max_epochs=2)
    assert sorted(read(tmp_path)[TAG]) == [5, 11, 17, 23]


class LeavesOut(torch.amp.GradScaler):
    """Meets an infinite gradient at the third step."""

    calls = 0

    def step(self, optimizer, *args, **kwargs):
        self.calls += 1
        if self.calls == 3:
            optimizer.param_groups[0]["params"][0].grad.fill_(torch.inf)
        return super().step(optimizer, *args, **kwargs)


def test_a_step_that_a_fused_optimizer_skipped_has_no_triangle(tmp_path):
    scaler = LeavesOut("cpu", init_scale=1.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    recorder = ProjectionRecorder("features.weight", 3)
    fit(tmp_path, Net("adam", fused=True), recorder, plugins=[plugin])
    assert sorted(read(tmp_path)[TAG]) == [5, 8, 11]
