"""What the recorder of Figure 5 says, where the run is not the usual one."""

import pytest
from toy import Net, fit, read

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
