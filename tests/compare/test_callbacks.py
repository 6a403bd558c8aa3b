import atexit
import multiprocessing

import pytest

from aida_lightning.compare.callbacks import LetGlooFinish


@pytest.mark.parametrize("spawned", [False, True])
def test_a_spawned_process_alone_waits_for_the_threads_of_gloo(monkeypatch, spawned):
    waits = []
    parent = multiprocessing.current_process() if spawned else None
    monkeypatch.setattr("aida_lightning.compare.callbacks.parent_process", lambda: parent)
    monkeypatch.setattr(atexit, "register", lambda wait, *args: waits.append(args))
    LetGlooFinish().setup(None, None, "fit")
    assert waits == ([(0.2,)] if spawned else [])
