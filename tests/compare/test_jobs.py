"""Several runs of a comparison at once, each a job of submitit on this machine."""

import csv
import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from compare.tiny import write_experiment
from rich.console import Console

from aida_lightning.commands import main
from aida_lightning.compare.comparison import compare, due_runs, progress
from aida_lightning.compare.folder import is_at_work, locked_run, set_edited_aside, write_config
from aida_lightning.compare.jobs import Job, train_as_jobs
from aida_lightning.compare.launcher import Launcher
from aida_lightning.compare.loading import load_experiment
from aida_lightning.compare.methods import UsageError
from aida_lightning.compare.settings import run_settings

pytest.importorskip("submitit", reason="needs submitit: pip install 'aida-lightning[cluster]'")
RUNS = ["Aida_K=2", "AdaBelief_eps=1e-08", "AdaBelief_eps=1e-16"]


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.chdir(tmp_path)  # a relative folder, as by default


@pytest.fixture
def reporter(in_turn, monkeypatch):
    """A function that starts the command, whose runs wait in their second epoch for a file."""
    monkeypatch.setenv("TINY_GATE", "gate")
    command = [sys.executable, "-m", "aida_lightning", "compare", in_turn[0], "--output", "out"]
    started = []

    def start(*options):
        started.append(subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True))
        return started[-1]

    # A test run in the background ignores Ctrl-C, and what it starts would, too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield start
    signal.signal(signal.SIGINT, before)
    Path("gate").touch()
    for process in started:
        with process:
            process.kill()


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory):
    """The experiment's file, and the results of one process."""
    folder = tmp_path_factory.mktemp("in_turn")
    path = write_experiment(folder, figures=None)
    compare(load_experiment(path), output=folder / "out")
    return path, results(folder / "out")


def results(folder):
    with (Path(folder) / "results.csv").open(newline="", encoding="utf-8") as file:
        return [
            {k: v for k, v in row.items() if k != "wall_time_s"} for row in csv.DictReader(file)
        ]


def attempts(folder):
    return [len([*(Path(folder) / run / "seed_0").glob("*tfevents*")]) for run in RUNS]


def wait(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_jobs_give_what_one_process_gives_and_a_line_for_each_run(in_turn, capsys):
    path, expected = in_turn
    assert main(["compare", path, "--jobs", "2", "--output", "out"]) == 0
    assert results("out") == expected
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert sorted(lines) == [
        "[1/3] Aida K=2, seed 0: completed",
        "[2/3] AdaBelief eps=1e-08, seed 0: completed",
        "[3/3] AdaBelief eps=1e-16, seed 0: completed",
    ]
    screen = io.StringIO()  # once more, on a terminal
    console = Console(file=screen, force_terminal=True, width=100)
    plan = due_runs(load_experiment(path), Path("out"))
    assert len([*train_as_jobs(Launcher(), plan, console)]) == 3
    assert "3 finished" in screen.getvalue()
    assert "completed" not in screen.getvalue()
    assert attempts("out") == [1, 1, 1]


def test_a_job_that_is_told_to_end_goes_on_and_one_that_is_killed_is_told(
    in_turn, monkeypatch, capsys
):
    path, expected = in_turn
    with monkeypatch.context() as patch:
        patch.setenv("TINY_SIGNALS", "SIGUSR2 SIGTERM SIGKILL")
        assert main(["compare", path, "--jobs", "3", "--output", "out"]) == 1
    assert sorted(row["status"] for row in results("out")) == ["completed", "completed", "failed"]
    assert "was ended, and its log is" in capsys.readouterr().out
    states = [run.state for run in progress(load_experiment(path), output="out")]
    assert sorted(states) == ["failed", "finished", "finished"]
    # submitit requeues by the first signal, which precedes the time limit, and passes over SIGTERM.
    logs = [log.read_text() for log in Path("out/.jobs").glob("*.out")]
    assert [sum("Requeued job" in log for log in logs), sorted(attempts("out"))] == [1, [1, 1, 2]]
    assert main(["compare", path, "--jobs", "3", "--output", "out"]) == 0
    assert results("out") == expected
    assert sorted(attempts("out")) == [1, 2, 2]


def test_the_next_call_attaches_to_what_runs_and_starts_only_what_is_missing(in_turn, reporter):
    path, expected = in_turn
    first = reporter("--jobs", "2")
    folders = [Path("out", run, "seed_0") for run in RUNS]
    wait(lambda: all(is_at_work(folder) and any(folder.glob("*.ckpt")) for folder in folders[:2]))
    first.kill()
    first.wait()
    runs = progress(load_experiment(path), output="out")
    assert [run.state for run in runs] == ["running", "running", "waiting"]
    assert [run.epochs for run in runs] == [1, 1, 0]
    assert all(0 <= run.last <= 1 for run in runs[:2])
    again = reporter("--jobs", "3")
    wait(lambda: is_at_work(folders[2]))
    Path("gate").touch()
    assert "[1/3] Aida K=2, seed 0: completed" in again.communicate()[0]
    assert again.returncode == 0
    assert results("out") == expected
    assert attempts("out") == [1, 1, 1]


def test_ctrl_c_ends_the_jobs_on_this_machine(in_turn, reporter):
    path, _ = in_turn
    process = reporter("--jobs", "1", "--launcher", "local")
    run = Path("out", RUNS[0], "seed_0")
    wait(lambda: is_at_work(run) and any(run.glob("*.ckpt")))
    process.send_signal(signal.SIGINT)
    assert "the same command goes on from where they were" in process.communicate(timeout=60)[0]
    assert process.returncode == 130
    wait(lambda: not is_at_work(run))
    assert progress(load_experiment(path), output="out")[0].state == "stopped"


def test_a_run_that_another_process_trains_is_waited_for_and_not_moved(tmp_path, monkeypatch):
    loaded = load_experiment(write_experiment(tmp_path, figures=None))
    run = Path("out", RUNS[0], "seed_0")
    optimizer = due_runs(loaded, Path("out"))[0].optimizer
    with ThreadPoolExecutor(1) as pool:
        with locked_run(run):
            write_config(Path("out"), loaded.config)
            other = pool.submit(compare, loaded, ["Aida K=2"], "out")
            wait(lambda: is_at_work(Path("out")))
            assert progress(loaded, ["Aida K=2"], "out")[0].state == "running"
            assert attempts("out") == [0, 0, 0]
            (run / "run.yaml").write_text("sources: {compare.tiny: of yesterday}\nseed: 0\n")
            with pytest.raises(UsageError, match=r"a job trains .*seed_0: wait until it has ended"):
                set_edited_aside(Path("out"), loaded.config, [optimizer], 0)
        (result,) = other.result()
    assert result.status == "completed"


def test_every_process_of_a_job_trains_under_jobs_as_in_one(tmp_path):
    path = write_experiment(tmp_path, figures=None, callbacks=None)
    options = ["--devices", "2", "--optimizers", "Aida K=2", "--epochs", "1"]
    assert main(["compare", path, *options, "--output", "in_turn"]) == 0
    assert main(["compare", path, *options, "--launcher", "local", "--output", "out"]) == 0
    assert results("out") == results("in_turn")


def test_a_job_whose_code_was_edited_since_it_was_submitted_does_not_train(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NAME", "")
    path = write_experiment(Path(), figures=None)
    run = due_runs(load_experiment(path), Path("out"))[0]
    settings = run_settings(run.loaded.config, run.optimizer, run.seed)
    settings["sources"] = {"compare.tiny": "of yesterday"}
    result = Job(run, settings)()
    assert result.status == "failed"
    assert "of a job whose classes were edited since then" in result.message
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slurm_partitoin": "gpu"}, "no 'slurm_partitoin'; did you mean: slurm_partition"),
        ({"gpu_per_node": 1}, "did you mean: gpus_per_node"),
        ({"timeout_min": 5, "nodes": 2}, "nodes=2: a run is one task on one node"),
        ({"slurm_ntasks_per_node": 2}, "a run is one task on one node"),
        ({"slurm_partition": "gpu"}, "timeout_min is needed"),
        ({"slurm_time": "04:00:00"}, "slurm_time=04:00:00: submitit takes it in minutes"),
        ({"xyz": 1}, "no 'xyz'; it has cpus_per_task, .*slurm_partition, "),
        ({"timeout_min": "long"}, "launcher_options: .*timeout_min"),
    ],
)
def test_options_that_submitit_does_not_take_are_refused(options, message, monkeypatch):
    monkeypatch.setattr("submitit.SlurmExecutor.affinity", lambda *_: 1)
    with pytest.raises(UsageError, match=message):
        Launcher("slurm", options=options)


def test_a_machine_without_slurm_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match='Could not detect "srun"'):
        Launcher("slurm", options={"timeout_min": 5})


def test_options_come_from_the_command_line_with_their_types(in_turn, monkeypatch, capsys):
    monkeypatch.setattr("submitit.SlurmExecutor.affinity", lambda *_: 1)
    seen = []
    monkeypatch.setattr(Launcher, "with_gpus_for", lambda self, _: seen.append(self) or self)
    monkeypatch.setattr(Launcher, "submit", lambda *_: pytest.fail("it is submitted"))
    options = ["timeout_min=30", 'slurm_setup=["module load cuda"]', "slurm_exclude=a,b"]
    command = ["compare", in_turn[0], "--launcher", "slurm", "--launcher_options", *options]
    with pytest.raises(pytest.fail.Exception):
        main([*command, "--jobs", "4", "--accelerator", "gpu", "--output", "out"])
    (launcher,) = seen  # a GPU is not needed here, but on the cluster
    assert (launcher.jobs, launcher.limit(9)) == (4, 9)
    assert launcher.options == {
        "timeout_min": 30,
        "slurm_setup": ["module load cuda"],
        "slurm_exclude": "a,b",
    }
    parameters = launcher.executor(Path("logs"))._executor.parameters
    assert (parameters["array_parallelism"], parameters["time"]) == (4, 30)


def test_the_gpus_of_a_machine_are_dealt_out_to_its_jobs(monkeypatch):
    trainer = SimpleNamespace(
        num_devices=1, strategy=SimpleNamespace(root_device=torch.device("cuda"))
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [*Launcher().with_gpus_for(trainer).gpus] == [0, 1, 2, 3]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES=GPU-5 must give"):
        Launcher().with_gpus_for(trainer)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    launcher = Launcher("local", jobs=3).with_gpus_for(trainer)
    calls = dict.fromkeys(range(3), partial(os.getenv, "CUDA_VISIBLE_DEVICES"))
    jobs = dict(launcher.submit(launcher.executor(Path("logs")), calls))
    assert {slot: job.result() for slot, job in jobs.items()} == {0: "4", 1: "6", 2: "4"}
    both = Launcher("local", jobs=2, options={"gpus_per_node": 2}).with_gpus_for(trainer)
    assert [both.gpus_of(slot) for slot in range(2)] == [[4, 6], [4, 6]]
    trainer.strategy.root_device = torch.device("cpu")
    assert Launcher("local", jobs=2).with_gpus_for(trainer).gpus_of(1) == []


def test_one_run_after_the_other_needs_no_submitit(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    loaded = load_experiment(write_experiment(tmp_path, figures=None))
    (result,) = compare(loaded, ["Aida K=2"], "out", jobs=1)
    assert result.status == "completed"
    assert progress(loaded, ["Aida K=2"], "out")[0].state == "finished"
    with pytest.raises(UsageError, match=r"pip install 'aida-lightning\[cluster\]'"):
        compare(loaded, ["Aida K=2"], "out", jobs=2)


def test_the_status_of_jobs_names_what_it_needs(in_turn, monkeypatch, capsys):
    run = Path("out") / RUNS[0] / "seed_0"
    run.mkdir(parents=True)
    (run / "job.json").write_text('{"launcher": "local", "job": "1", "slot": 0}')
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["compare", in_turn[0], "--output", "out", "--status"]) == 2
    assert "pip install 'aida-lightning[cluster]'" in capsys.readouterr().err
