"""Whenever a run is killed, it ends with the numbers of an unbroken one, bit for bit."""

import csv
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from compare import kills
from compare.tiny import EXPERIMENT, write_experiment

from aida_lightning.compare.folder import resume_point
from aida_lightning.logs.curves import read_scalars

RUN = "Aida_K=2/seed_0"


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", "")  # as it was, afterwards
        yield


def experiment(folder, epochs):
    trainer = {
        **EXPERIMENT["trainer"],
        "max_epochs": epochs,
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
    """Give the first moment of each hook and file operation in the second epoch, and after it all.

    Hooks are told apart by their own names, not by whose they are.
    """
    starts = [
        i for i, name in enumerate(names, 1) if name.endswith("Resumable.on_train_epoch_start")
    ]
    second, third = starts[2], starts[4]  # each has a start and an end
    last = max(i for i, name in enumerate(names, 1) if "on_train_epoch_end" in name)
    found = {}
    for moment, name in enumerate(names, 1):
        if (second <= moment < third or moment > last) and not name.startswith("end of"):
            found.setdefault((moment > last, name.rpartition(".")[2]), moment)
    return [*found.values()]


def test_a_run_killed_at_any_moment_of_an_epoch_equals_an_unbroken_one(tmp_path):
    path, expected, names = experiment(tmp_path, epochs=3)
    moments = of_the_second_epoch(names)
    assert len(moments) > 40

    def fault(moment):
        folder = tmp_path / str(moment)
        codes = kills.run(path, folder, fatal=moment), kills.run(path, folder)
        try:
            assert codes == (9, 0)
            assert_equal(folder, expected)
        except AssertionError as error:
            return names[moment - 1], str(error)[:300]

    with ThreadPoolExecutor(2) as pool:
        assert [found for found in pool.map(fault, moments) if found] == []


def test_a_run_killed_forty_times_equals_an_unbroken_one(tmp_path):
    path, expected, names = experiment(tmp_path, epochs=40)
    draw, epoch = random.Random(0), len(names) // 40
    for _ in range(40):
        assert kills.run(path, tmp_path / "run", fatal=draw.randint(1, 2 * epoch)) == 9
    assert resume_point(tmp_path / "run" / RUN).epochs > 5
    assert kills.run(path, tmp_path / "run") == 0
    assert_equal(tmp_path / "run", expected)
