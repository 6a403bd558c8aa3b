"""Run all checks that need a GPU on one, in under 8 minutes and without a network.

    python benchmarks/gpu.py OUT [--wheels FOLDER] [--stages tests step]

Each stage is a separate process with a time limit: the list of installed packages, the tests that
need CUDA, the time of a step (step.py), and the cost of the monitor (monitor.py). If a stage fails,
the script names it and continues with the next one. At the end, the script prints a table; OUT then
holds the table, all numbers as JSON, and one log per stage. `--device cpu --small` rehearses
everything on a machine without a GPU.

The script uses the package from this tree. It installs packages of requirements-gpu.txt that the
machine lacks from the wheels in FOLDER.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
REQUIREMENTS = Path(__file__).with_name("requirements-gpu.txt")
GIVEN = ["torch", "triton", "lightning", "pytorch-lightning", "torchvision", "numpy", "pytest"]
# Seconds for all stages, and for a process to end when it is asked to.
TOTAL, GRACE = 465, 8
REFERENCE, WITHOUT = "torch Adam fused", "without"
ON_DEVICE = [
    "tests/optim/triton_on_device.py",
    "tests/optim/test_triton.py",
    "tests/optim/test_devices.py",
    "tests/optim/test_torch_contract.py",
]
TRAINING = ["tests/callbacks/test_devices.py"]


class Stage(NamedTuple):
    """A command, its limit in seconds, and the environment that it needs beside ours."""

    limit: float
    command: list[str]
    environment: Mapping[str, str] = MappingProxyType({})


def stages_of(device: str, small: bool, scratch: Path, workers: int = 0) -> dict[str, Stage]:
    """Return the stages by name, in the order that they run in; what matters most goes first."""
    benchmarks = Path(__file__).parent

    def script(name: str, stage: str, *arguments: Any) -> list[str]:
        given = [*arguments, "--device", device, "--json", scratch / f"{stage}.json"]
        return [sys.executable, *map(str, (benchmarks / name, *given))]

    tests = [sys.executable, "-m", "pytest", "-v", "-rfE", "--tb=short"]
    tests += ["-o", f"cache_dir={scratch / 'pytest'}"]
    # Other versions may warn of what ours do not; a test that hangs shows where.
    tests += ["-W", "default", "-o", "faulthandler_timeout=60", "--continue-on-collection-errors"]
    chosen = ["-k", "not cpu and not interpreter"]
    interpreted: dict[str, str] = {}
    if device == "cpu":
        chosen = [
            "-k",
            "test_devices and cpu and LAida or twenty and AdamPlus" if small else "not interpreter",
        ]
        interpreted = {"TRITON_INTERPRET": "1"}
    of_training = ["-k", "cpu and laida"] if small else chosen
    shared = ["-n", str(workers)] if workers else []
    step: list[Any] = ["--models", "vgg11", "resnet34", "transformer", "llama", "tiny"]
    step += ["--rounds", 3, "--limit", 22]
    monitor: list[Any] = ["--points", 0, "--models", "vgg11", "--epochs", 2, "--contenders"]
    monitor += ["default interval", "every step"]
    layers: list[Any] = ["--points", 0, "--models", "layers", "--steps", 20, "--contenders"]
    layers += ["every step", "every step, all layers"]
    if small:
        step = ["--models", "1e5", "--rounds", 1, "--limit", 5]
        monitor = ["--points", 0, "--models", "vgg11", "--steps", 4, "--batch_size", 2]
        monitor += ["--epochs", 1, "--pictures", 16, "--contenders", "every step"]
    stages = {
        "check": Stage(45, [sys.executable, __file__, "--check", "--device", device]),
        "tests": Stage(125, [*tests, *ON_DEVICE, *chosen, *shared], interpreted),
        "training": Stage(45, [*tests, *TRAINING, *of_training]),
        "step": Stage(120, script("step.py", "step", *step)),
        "monitor": Stage(80, script("monitor.py", "monitor", *monitor)),
        "layers": Stage(45, script("monitor.py", "layers", *layers)),
    }
    if small:
        del stages["layers"]
    return stages


def check(device: str) -> None:
    """Print what is installed and what the card is; exit with 1 if it cannot be used."""
    names = [*GIVEN, *required()]
    print("  ".join(f"{name}: {version_of(name) or 'missing'}" for name in names))
    print(f"python: {platform.python_version()}  cores: {len(os.sched_getaffinity(0))}")
    import torch

    if device == "cuda":
        if shutil.which("nvidia-smi"):
            subprocess.run(["nvidia-smi"], check=False)
        print(torch.cuda.get_device_properties(0), "CUDA", torch.version.cuda, flush=True)
    total = torch.ones(1 << 20, device=device).sum().item()
    assert total == 1 << 20, total


def version_of(package: str) -> str | None:
    """Return the version of a package, or None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def required() -> dict[str, str]:
    """Return the requirements beside what every such machine has, pinned, by name."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    pins = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return {pin.partition("==")[0]: pin for pin in pins}


def install(wheels: Path | None, site: Path) -> list[str]:
    """Install into a folder what is missing and among the wheels; return what stays missing."""
    if not version_of("aida-lightning"):  # The tree is imported as it is, but its version is asked.
        (version,) = re.findall('^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
        info = site / f"aida_lightning-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: aida-lightning\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
    missing = {name for name in required() if not version_of(name)}
    there = {
        _plain(wheel.name.partition("-")[0]): wheel for wheel in (wheels or site).glob("*.whl")
    }
    if found := [name for name in missing if _plain(name) in there]:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command += ["--no-compile", "--no-cache-dir", "--target", str(site)]
        command += [str(there[_plain(name)]) for name in found]
        if subprocess.run(command, check=False).returncode == 0:
            missing.difference_update(found)
    return sorted(missing)


def _plain(name: str) -> str:
    return name.replace("-", "_").lower()


def run(stage: Stage, log: Path, environment: dict[str, str], left: float) -> dict[str, Any]:
    """Run a stage and return how it ended; at its limit it is asked to end, and then made to."""
    limit = min(stage.limit, left)
    if limit < GRACE:
        return {"ended": "no time left", "seconds": 0.0}
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            stage.command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment | stage.environment,
            start_new_session=True,
        )
        try:
            code = process.wait(limit - GRACE)
            ended = "done" if code == 0 else f"failed, code {code}"
        except subprocess.TimeoutExpired:
            ended = f"over its {limit:.0f} s"
            process.send_signal(signal.SIGINT)  # Python and pytest write what they have then.
            try:
                process.wait(GRACE - 1)
            except subprocess.TimeoutExpired:
                pass
        try:  # Nothing of it stays on the card.
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    return {"ended": ended, "seconds": round(time.monotonic() - start, 1)}


def outcomes(log: str) -> dict[str, Any]:
    """Count the tests by outcome, out of pytest's log, and name those that failed."""
    words = "PASSED|FAILED|ERROR|SKIPPED|XFAIL"
    found = re.findall(rf"^(?:\S+::.* ({words}) |\[gw\d+\] .* ({words}) \S+::)", log, re.MULTILINE)
    counts = Counter(word for pair in found for word in pair if word)
    failed = re.findall(r"^(?:FAILED|ERROR) \S.*", log, re.MULTILINE)
    return {"counts": dict(counts), "failed": failed}


def table(results: dict[str, Any]) -> str:
    """Lay out what the stages found."""
    lines = [f"{name:10} {end['ended']:24} {end['seconds']:6.1f} s" for name, end in
             results["stages"].items()]  # fmt: skip
    lines += [f"missing    {', '.join(results['missing'])}"] if results["missing"] else []
    for name in ("tests", "training"):
        if tests := results.get(name):
            lines += ["", f"{name}: {tests['counts']}", *(f[:160] for f in tests["failed"][:20])]
    if step := results.get("step"):
        lines += ["", *_settings(step), *_steps(step)]
    for name in ("monitor", "layers"):
        for model, summary in results.get(name, {}).get("summary", {}).items():
            lines += ["", f"{model}, with the monitor / without, {summary[WITHOUT]['ms']:.2f} ms"]
            lines += [
                f"{contender:32} {entry['ratio']:8.3f}" for contender, entry in summary.items()
            ]
    if epochs := results.get("monitor", {}).get("epochs"):
        without = statistics.median(epochs[WITHOUT])
        lines += ["", "vgg11, whole epochs, ms per step and ratio"]
        lines += [
            f"{name:32} {1e3 * statistics.median(of):8.3f} {statistics.median(of) / without:8.3f}"
            for name, of in epochs.items()
        ]
    return "\n".join(lines)


def _settings(step: dict[str, Any]) -> list[str]:
    return ["  ".join(f"{key}: {value}" for key, value in step["setting"].items())]


def _steps(step: dict[str, Any]) -> list[str]:
    models = [*step["seconds"]]
    medians = {
        model: {name: statistics.median(times) for name, times in step["seconds"][model].items()}
        for model in models
    }
    lines = [f"{'ratio to torch Adam fused':32}" + "".join(f"{model:>12}" for model in models)]
    ms = (f"{1e3 * medians[m].get(REFERENCE, float('nan')):12.3f}" for m in models)
    lines += [f"{REFERENCE + ', ms':32}" + "".join(ms)]
    for name in dict.fromkeys(name for model in models for name in medians[model]):
        cells = [
            f"{medians[m][name] / medians[m][REFERENCE]:12.2f}"
            if {name, REFERENCE} <= medians[m].keys()
            else f"{'-':>12}"
            for m in models
        ]
        lines.append(f"{name:32}" + "".join(cells))
    left_out = {
        f"{model}: {name}: {reason}"[:160]
        for model, reasons in step["left_out"].items()
        for name, reason in reasons.items()
    }
    return [*lines, *sorted(left_out)]


def main() -> int:
    """Run the stages and return how many of them did not end well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path("gpu"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="a reduced size, to rehearse")
    names = stages_of("cuda", False, Path())
    parser.add_argument("--stages", nargs="+", choices=names, help="some of the stages only")
    parser.add_argument("--wheels", type=Path, help="a folder with wheels of what may be missing")
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check:
        check(arguments.device)
        return 0

    # A shell that runs this in the background would have every process ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end = time.monotonic() + TOTAL
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch, site = Path(folder), Path(folder) / "site"
        site.mkdir()
        results: dict[str, Any] = {"stages": {}, "missing": install(arguments.wheels, site)}
        paths = [str(ROOT), str(site), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            "MPLBACKEND": "Agg",
            "TRITON_CACHE_DIR": str(scratch / "triton"),
        }
        # Most of the tests' time goes into compiling Triton's kernels, which the cores can share.
        can_share = arguments.device == "cuda" and "pytest-xdist" not in results["missing"]
        workers = min(8, len(os.sched_getaffinity(0))) if can_share else 0
        stages = stages_of(arguments.device, arguments.small, scratch, workers)
        for name, stage in stages.items():
            if name not in (arguments.stages or stages):
                continue
            log = out / f"{name}.log"
            results["stages"][name] = run(stage, log, environment, end - time.monotonic())
            print(name, results["stages"][name], flush=True)
            text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            if results["stages"][name]["ended"] != "done":
                print(*text.splitlines()[-12:], sep="\n", flush=True)
            if name in ("tests", "training"):
                results[name] = outcomes(text)
            elif (found := scratch / f"{name}.json").exists():
                results[name] = json.loads(found.read_text(encoding="utf-8"))
            (out / "gpu.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    shown = table(results)
    (out / "table.txt").write_text(shown + "\n", encoding="utf-8")
    print(f"\n{shown}")
    return sum(stage["ended"] != "done" for stage in results["stages"].values())


if __name__ == "__main__":
    sys.exit(main())
