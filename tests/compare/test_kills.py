"""Whenever a run is killed, it ends with the numbers of an unbroken one, bit for bit."""

import csv
import random

import numpy as np
import pytest
import torch
from compare import kills
from compare.tiny import EXPERIMENT, write_experiment

from aida_lightning.logs.curves import read_scalars

RUN = "Aida_K=2/seed_0"
EPOCHS = 3


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", "")  # as it was, afterwards
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The experiment's file, the folder of an unbroken run, and the names of its moments."""
    folder = tmp_path_factory.mktemp("kills")
    trainer = {
        **EXPERIMENT["trainer"],
        "max_epochs": EPOCHS,
        "limit_train_batches": 2,
        "enable_progress_bar": False,
        "profiler": {"class_path": "compare.kills.Moments"},
    }
    path = write_experiment(folder, trainer=trainer, figures=None)
    assert kills.run(path, folder / "unbroken", log=folder / "moments") == 0
    return path, folder / "unbroken", (folder / "moments").read_text().splitlines()


def results(folder):
    with (folder / "results.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k != "wall_time_s"} for row in csv.DictReader(file)
        ]


def assert_equal(folder, expected):
    assert results(folder) == results(expected)
    ours, theirs = read_scalars(folder / RUN), read_scalars(expected / RUN)
    assert ours.keys() == theirs.keys()
    for tag, curve in theirs.items():
        assert ours[tag].steps.tolist() == curve.steps.tolist(), tag
        np.testing.assert_array_equal(ours[tag].values, curve.values, err_msg=tag)
    weights, others = (
        torch.load(f / RUN / "last.ckpt", weights_only=True)["state_dict"]
        for f in (folder, expected)
    )
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


def of_the_second_epoch(names):
    """Give the first moment of each name in the second epoch, and of those after the last."""
    starts = [i for i, name in enumerate(names, 1) if "Resumable.on_train_epoch_start" in name]
    second, third = starts[2], starts[4]
    end = max(i for i, name in enumerate(names, 1) if "on_train_epoch_end" in name)
    found = {}
    for moment, name in enumerate(names, 1):
        if second <= moment < third or moment > end:
            found.setdefault((moment > end, name), moment)
    return [*found.values()]


def test_a_run_killed_at_any_moment_of_an_epoch_equals_an_unbroken_one(unbroken, tmp_path):
    path, expected, names = unbroken
    moments = of_the_second_epoch(names)
    assert len(moments) > 60
    wrong = []
    for moment in moments:
        folder = tmp_path / str(moment)
        assert kills.run(path, folder, fatal=moment) == 9, names[moment - 1]
        assert kills.run(path, folder) == 0, names[moment - 1]
        try:
            assert_equal(folder, expected)
        except AssertionError as error:
            wrong.append((names[moment - 1], str(error)[:200]))
    assert wrong == []


def test_a_run_killed_forty_times_equals_an_unbroken_one(unbroken, tmp_path):
    path, expected, names = unbroken
    draw = random.Random(0)
    kills = 0
    while kills < 40:
        code = kills.run(path, tmp_path / "run", fatal=draw.randint(1, len(names) // EPOCHS))
        kills += code == 9
        if code == 0:
            break
    assert kills == 40
    assert kills.run(path, tmp_path / "run") == 0
    assert_equal(tmp_path / "run", expected)
