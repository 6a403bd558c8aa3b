"""A comparison on a real SLURM cluster of one node: ``pytest -m slurm tests/compare``."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from compare import slurm
from compare.test_jobs import RUNS, attempts, in_turn, reporter, results, wait
from compare.tiny import write_experiment

from aida_lightning.commands import main
from aida_lightning.compare.comparison import progress
from aida_lightning.compare.folder import is_at_work
from aida_lightning.compare.loading import load_experiment

pytest.importorskip("submitit", reason="needs submitit: pip install 'aida-lightning[cluster]'")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        bool(slurm.missing()),
        reason=f"needs {', '.join(slurm.missing())}: apt-get install slurm-wlm slurmdbd munge "
        "mariadb-server",
    ),
]
LAUNCHER = ["--launcher", "slurm", "--launcher_options", "timeout_min=20", "cpus_per_task=1"]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    with slurm.cluster(folder) as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


__all__ = ["in_turn", "reporter"]  # fixtures


def test_slurm_gives_what_one_process_gives_in_one_job_array(in_turn):
    path, expected = in_turn
    assert main(["compare", path, *LAUNCHER, "--output", "out"]) == 0
    assert results("out") == expected
    script = next(Path("out/.jobs").glob("*_submission.sh")).read_text()
    assert "#SBATCH --array=0-2%" in script
    logs = "".join(log.read_text() for log in Path("out/.jobs").glob("*_log.*"))
    assert "srun" not in logs  # nothing of Lightning's on SLURM


def test_jobs_are_requeued_or_told_and_the_next_call_completes_them(in_turn, monkeypatch, capsys):
    path, expected = in_turn
    with monkeypatch.context() as patch:
        patch.setenv("TINY_SIGNALS", "SIGUSR2 SIGTERM SIGKILL")
        assert main(["compare", path, *LAUNCHER, "--output", "out"]) == 1
    assert sorted(row["status"] for row in results("out")) == ["completed", "completed", "failed"]
    assert "was ended, and its log is" in capsys.readouterr().out
    logs = [log.read_text() for log in Path("out/.jobs").glob("*.out")]
    assert sum("Requeued job" in log for log in logs) == 1
    assert main(["compare", path, *LAUNCHER, "--output", "out"]) == 0
    assert results("out") == expected


def test_the_next_call_attaches_to_jobs_that_run_or_wait(in_turn, reporter):
    path, expected = in_turn
    options = [*LAUNCHER, "--jobs", "2"]
    first = reporter(*options)
    folders = [Path("out", run, "seed_0") for run in RUNS]
    wait(lambda: all(is_at_work(folder) and any(folder.glob("*.ckpt")) for folder in folders[:2]))
    first.send_signal(signal.SIGINT)  # which ends no job
    assert "The jobs go on" in first.communicate()[0]
    assert first.returncode == 130
    runs = progress(load_experiment(path), output="out")
    assert [run.state for run in runs] == ["running", "running", "waiting"]
    assert [run.epochs for run in runs] == [1, 1, 0]
    again = reporter(*options)
    wait(lambda: is_at_work(Path("out")))
    time.sleep(2)  # in which it looks at all runs
    Path("gate").touch()
    assert "[1/3] Aida K=2, seed 0: completed" in again.communicate()[0]
    assert again.returncode == 0
    assert results("out") == expected
    assert attempts("out") == [1, 1, 1]
    assert len([*Path("out/.jobs").glob("*_submission.sh")]) == 1


def test_two_devices_of_a_run_are_two_processes_of_one_task(tmp_path):
    path = write_experiment(tmp_path, figures=None, callbacks=None)
    options = ["--devices", "2", "--optimizers", "Aida K=2", "--epochs", "1"]
    assert main(["compare", path, *options, "--output", "in_turn"]) == 0
    assert main(["compare", path, *options, *LAUNCHER, "--output", "out"]) == 0
    assert results("out") == results("in_turn")
