import atexit
import multiprocessing

import pytest
from compare.groups import in_group

from aida_lightning.compare.callbacks import LeaveProcessGroup


@pytest.mark.parametrize("module_left_it", [False, True])
def test_a_spawned_process_has_left_its_group_when_it_ends(tmp_path, module_left_it):
    process = multiprocessing.get_context("spawn").Process(
        target=in_group, args=(tmp_path, module_left_it)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "in a group").read_text() == "False"


def test_the_process_that_spawns_keeps_its_group(monkeypatch):
    registered = []
    monkeypatch.setattr(atexit, "register", registered.append)
    LeaveProcessGroup().setup(None, None, "fit")
    assert not registered
