"""What benchmarks/gpu.py does on a GPU, rehearsed without one."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def load(script):
    spec = importlib.util.spec_from_file_location(script, ROOT / "benchmarks" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu():
    return load("gpu")


def test_every_stage_runs_at_a_reduced_size_and_the_table_says_what_it_found(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", str(tmp_path), "--device", "cpu", "--small"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    stages = ["check", "tests", "training", "step", "monitor"]
    assert list(results["stages"]) == stages
    for name in ("tests", "training"):
        assert results[name]["counts"]["PASSED"] > 3
        assert not results[name]["failed"]
    assert not results["step"]["left_out"]["1e5"]
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"gpu.json", "table.txt", *(f"{name}.log" for name in stages)}
    shown = (tmp_path / "table.txt").read_text(encoding="utf-8")
    assert run.stdout.endswith(shown)
    for line in ("Aida K=2 fused", "vgg11, with the monitor", "vgg11, whole epochs"):
        assert line in shown


def test_what_fails_is_named_and_ended_at_its_limit_and_the_next_stage_runs(
    gpu, tmp_path, monkeypatch, capsys
):
    waits = "import sys, time\ntry: time.sleep(99)\nexcept KeyboardInterrupt: print('asked to end')"
    ignores = "import signal, time\nsignal.signal(2, signal.SIG_IGN)\ntime.sleep(99)"
    stages = {
        "fails": gpu.Stage(30, [sys.executable, "-c", "raise SystemExit('no card')"]),
        "waits": gpu.Stage(4, [sys.executable, "-c", waits]),
        "ignores": gpu.Stage(4, [sys.executable, "-c", ignores]),
        "works": gpu.Stage(30, [sys.executable, "-c", "print('at last')"]),
    }
    monkeypatch.setattr(gpu, "GRACE", 2)
    monkeypatch.setattr(gpu, "stages_of", lambda *_: stages)
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path)])
    start = time.monotonic()
    assert gpu.main() == 3
    assert time.monotonic() - start < 30
    ended = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert [ended[name]["ended"] for name in stages] == [
        "failed, code 1", "over its 4 s", "over its 4 s", "done",
    ]  # fmt: skip
    assert (tmp_path / "waits.log").read_text() == "asked to end\n"
    assert (tmp_path / "works.log").read_text() == "at last\n"
    assert "no card" in capsys.readouterr().out


def test_all_stages_together_end_in_less_than_eight_minutes(gpu, tmp_path):
    stages = gpu.stages_of("cuda", False, tmp_path)
    assert sum(stage.limit for stage in stages.values()) <= gpu.TOTAL < 480
    # With the table and the numbers: no more files than are brought back from such a machine.
    assert len(stages) + 2 <= 8
    late = gpu.run(gpu.Stage(30, ["true"]), tmp_path / "log", {}, left=gpu.GRACE - 1)
    assert late["ended"] == "no time left"


def test_a_gpus_stages_are_given_options_that_the_scripts_have(gpu, tmp_path):
    stages = gpu.stages_of("cuda", False, tmp_path)
    for name, script in {"step": "step", "monitor": "monitor", "layers": "monitor"}.items():
        _, path, *options = stages[name].command
        assert path.endswith(f"{script}.py")
        load(script).make_parser().parse_args(options)


def test_a_gpus_stage_runs_every_test_that_needs_one_gpu(gpu):
    marks = re.compile("needs_gpu|onlyCUDA|DEVICE = ")
    needy = {path for path in (ROOT / "tests").rglob("*.py") if marks.search(path.read_text())}
    assert needy - {Path(__file__), ROOT / "tests/devices.py"} == {
        ROOT / path for path in (*gpu.ON_DEVICE, *gpu.TRAINING)
    }


def test_outcomes_are_read_of_one_process_and_of_several(gpu):
    one = (
        "tests/a.py::test_x[{'k': 1}-cpu] PASSED      [ 33%]\n"
        "tests/a.py::T::test_y FAILED                 [ 66%]\n"
        "tests/a.py::test_z SKIPPED (needs a CUDA device)    [100%]\n"
        "FAILED tests/a.py::T::test_y - AssertionError: 1 != 2\n"
    )
    several = (
        "[gw0] [ 33%] PASSED tests/a.py::test_x[{'k': 1}-cpu] \n"
        "[gw1] [ 66%] FAILED tests/a.py::T::test_y \n"
        "[gw1] [100%] SKIPPED tests/a.py::test_z \n"
        "FAILED tests/a.py::T::test_y - AssertionError: 1 != 2\n"
    )
    for log in (one, several):
        assert gpu.outcomes(log) == {
            "counts": {"PASSED": 1, "FAILED": 1, "SKIPPED": 1},
            "failed": ["FAILED tests/a.py::T::test_y - AssertionError: 1 != 2"],
        }


def test_a_wheel_of_what_is_missing_is_installed_for_the_stages_alone(gpu, tmp_path, monkeypatch):
    site, wheels = tmp_path / "site", tmp_path / "wheels"
    site.mkdir(), wheels.mkdir()
    absent = {"expecttest", "pytorch_optimizer"}
    monkeypatch.setattr(gpu, "version_of", lambda name: None if name in absent else "1")
    info = "expecttest-0.3.0.dist-info"
    with zipfile.ZipFile(wheels / "expecttest-0.3.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("expecttest.py", "here = True\n")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: expecttest\nVersion: 0.3.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    assert gpu.install(wheels, site) == ["pytorch_optimizer"]
    assert (site / "expecttest.py").read_text() == "here = True\n"


def test_without_its_metadata_the_tree_has_its_version(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "version_of", lambda name: None if name == "aida-lightning" else "1")
    gpu.install(None, tmp_path)
    code = "from importlib.metadata import version; print(version('aida-lightning'))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert run.stdout.strip() == version("aida-lightning")


def test_the_requirements_are_pinned_and_declared_by_the_package_or_needed_by_what_is(gpu):
    pins = gpu.required()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins.values())
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = ["torchmetrics", "tensorboard", "jsonargparse", "google-crc32c", "matplotlib", "rich"]
    for name in [*names, "expecttest", "pytorch_optimizer", "hypothesis"]:
        assert name in pins
        assert f'"{name}' in declared


class Event:
    """What torch.cuda.Event is to a device that has always done what it was given."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


def test_on_a_gpu_the_time_is_between_events_and_what_fails_leaves_the_others_in(monkeypatch):
    step = load("step")
    cuda = torch.device("cuda")
    waits = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    between, on_host = step.time_each(lambda: time.sleep(0.01), 3, cuda)
    assert 0.0099 < on_host == pytest.approx(between, rel=0.1)
    assert waits == [cuda, cuda]  # before the first step and after the last

    monkeypatch.setattr(step, "Aida", lambda *_, **__: 1 / 0)
    assert step.first_step(torch.device("cpu")) == "ZeroDivisionError: division by zero"

    params = [torch.nn.Parameter(torch.zeros(3))]
    params[0].grad = torch.ones(3)

    def fails(params):
        raise torch.OutOfMemoryError("tried to allocate\n100 GiB")

    works = step.CONTENDERS["torch Adam foreach"]
    contenders = {"fails": works._replace(build=fails), "works": works}
    monkeypatch.setattr(step, "CONTENDERS", contenders)
    found = step.measure(params, [*contenders], cuda, 2, 60.0)
    assert found.left_out == {"fails": "OutOfMemoryError: tried to allocate"}
    assert len(found.seconds["works"]) == len(found.host_seconds["works"]) == 2
    found = step.measure(params, ["works"], cuda, 2, -1.0)
    assert found == step.Found({}, {}, {"works": "the -1 s are over"})
