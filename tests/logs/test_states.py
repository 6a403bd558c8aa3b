"""The table of what an optimizer keeps is read back as it was written."""

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from aida_lightning.logs.states import LayerState, log_states, read_states

STATES = {
    "a|b.weight": LayerState("Adam", (3, 4), 100, 48),
    r"odd\|.x": LayerState("Adam", (), 12, 4),
    "blocks[0].层": LayerState("Mine", (7,), 56, 0),
}


@pytest.mark.parametrize("prefix", ["", "pre"])
@pytest.mark.parametrize("optimizer", ["", "Adam-1"])
def test_tables_are_read_as_they_were_written(tmp_path, prefix, optimizer):
    logger = TensorBoardLogger(tmp_path, name="", version="run", prefix=prefix)
    log_states(logger, optimizer, STATES, 3)
    logger.experiment.add_text("optimizer_state_of_mine", "| a |", 3)
    logger.experiment.close()
    name = f"{prefix}-{optimizer}" if prefix and optimizer else optimizer
    assert read_states(tmp_path / "run") == {name or None: STATES}
