"""The folders of a comparison and of its runs: their content, and the point where a run resumes."""

import contextlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from filelock import FileLock, Timeout

from aida_lightning.checkpoint_io import DurableCheckpointIO, find_whole
from aida_lightning.compare.callbacks import CHECKPOINT, Resumable
from aida_lightning.compare.experiment import Experiment
from aida_lightning.compare.methods import OptimizerChoice, UsageError
from aida_lightning.compare.results import RunResult, Status, measure_run, measured_by, run_result
from aida_lightning.compare.settings import (
    common_settings,
    edited_sources,
    refuse_differences,
    run_settings,
)
from aida_lightning.logs.events import DamagedEventsWarning

_T = TypeVar("_T")

ERROR_LOG = "error.log"
_CONFIG = "config.yaml"
_LOCK = ".lock"
_SETTINGS = "run.yaml"
_RESULT = "result.json"


class DamagedFileError(RuntimeError):
    """A file that a run resumes from cannot be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} cannot be read ({reason}): put a good copy there or move it away. Without "
            f"its {CHECKPOINT} (and the previous one, in .backup), a run starts from the beginning"
        )


@dataclass(frozen=True)
class ResumePoint:
    """The point where a run resumes.

    Args:
        checkpoint: checkpoint, or None for a run from the start.
        epochs: number of trained epochs.
        steps: number of batches after which an optimizer stepped.
        seconds: time that they took.
    """

    checkpoint: Path | None = None
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0


def run_folder(folder: Path, label: str, seed: int) -> Path:
    """Return the folder of a run, inside the folder of its comparison.

    Example:
        >>> run_folder(Path("runs"), "Aida K=2", 0).as_posix()
        'runs/Aida_K=2/seed_0'
    """
    return folder / label.replace(" ", "_") / f"seed_{seed}"


def check_folder(
    folder: Path,
    config: Mapping[str, Any],
    optimizers: Sequence[OptimizerChoice],
    seeds: Sequence[int],
    rerun: bool = False,
) -> None:
    """Refuse a folder that holds anything but a comparison with the same settings.

    Optimizers, seeds and the metric may differ; with ``rerun``, so may the sources of the classes.
    A damaged file of the settings is no obstacle if each run has its own.

    Raises:
        UsageError: the folder cannot be used; the message names what differs.
    """
    with _refused_access(folder):
        exists = folder.exists()
        if exists and not folder.is_dir():
            raise UsageError(f"output: {folder} is not a folder")
        holds_more = exists and {path.name for path in folder.iterdir()} - {_LOCK}
    if holds_more:
        try:
            there = yaml.safe_load((folder / _CONFIG).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            there = None
        # Other programs and people write a config.yaml, too, but none with the noted changes.
        known = isinstance(there, dict) and "changes" in there
        if not known and not any(folder.glob(f"*/seed_*/{_SETTINGS}")):
            raise UsageError(
                f"output: {folder} exists and is not empty, and has no {_CONFIG} of a comparison; "
                "nothing is overwritten. Choose a new folder, or one of the same comparison"
            )
        if known:
            refuse_differences(
                f"{folder} holds a comparison", common_settings(there), common_settings(config)
            )
    for optimizer in optimizers:
        for seed in seeds:
            run = run_folder(folder, optimizer.label, seed)
            with contextlib.suppress(DamagedFileError):  # It is reported when that run begins.
                if (noted := _read_settings(run)) is not None:
                    settings = run_settings(config, optimizer, seed)
                    if rerun:
                        noted.pop("sources", None)
                    refuse_differences(f"{run} holds a run", noted, settings)


def set_edited_aside(
    folder: Path, config: Mapping[str, Any], optimizers: Sequence[OptimizerChoice], seed: int
) -> None:
    """Move the runs of one seed whose classes were edited since then into ``.replaced``."""
    for optimizer in optimizers:
        run = run_folder(folder, optimizer.label, seed)
        with contextlib.suppress(DamagedFileError):
            noted = _read_settings(run) or {}
            if edited_sources(noted, run_settings(config, optimizer, seed)):
                if is_at_work(run):
                    raise UsageError(f"rerun: a job trains {run}: wait until it has ended")
                for number in itertools.count(1):
                    aside = folder / ".replaced" / f"{run.parent.name}-{run.name}-{number}"
                    if not aside.exists():
                        aside.parent.mkdir(exist_ok=True)
                        run.rename(aside)
                        break


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a folder and lock it against other comparisons; the lock ends with its process."""
    lock = FileLock(folder / _LOCK, timeout=0)
    with _refused_access(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Make a run's folder, and wait until no other process trains the run."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / _LOCK).acquire(poll_interval=0.5):
        yield


def is_at_work(folder: Path) -> bool:
    """Tell whether a process trains the run of a folder."""
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        with contextlib.ExitStack() as held:
            if Path(lock.lock_file).exists():
                held.enter_context(lock)
    except Timeout:
        return True
    return False


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the experiment that repeats a comparison into its folder."""
    with _refused_access(folder):
        path = folder / _CONFIG
        if path.exists() and "changes:" not in path.read_text(encoding="utf-8", errors="replace"):
            path.replace(path.with_name(f"{_CONFIG}.damaged"))  # Keep what is left of it.
        write_whole(path, _as_yaml(config))


def begin_run(folder: Path, settings: Mapping[str, Any]) -> ResumePoint:
    """Create a run's folder with a file of its settings, and return where the run resumes.

    Raises:
        DamagedFileError: an existing file of the run cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _read_settings(folder)
    _read_result(folder)
    point = resume_point(folder)
    (folder / ERROR_LOG).unlink(missing_ok=True)  # of an attempt before
    write_whole(folder / _SETTINGS, _as_yaml(settings))
    return point


def resume_point(folder: Path) -> ResumePoint:
    """Read from a run's last checkpoint how far it got.

    Raises:
        DamagedFileError: the checkpoint cannot be read.
    """
    path = folder / CHECKPOINT
    try:
        whole = Path(find_whole(path))
        if not whole.is_file():
            return ResumePoint()
        checkpoint = torch.load(whole, map_location="cpu", weights_only=True, mmap=True)
        return ResumePoint(path, **checkpoint["callbacks"][Resumable.__qualname__])
    except Exception as error:  # torch raises errors of nearly any kind.
        reason = (str(error).splitlines() or [""])[0]
        raise DamagedFileError(path, f"{type(error).__name__}: {reason}") from error


def finish_run(folder: Path, result: RunResult, keep_checkpoint: bool) -> None:
    """Mark a run as finished, and remove the checkpoint that was only needed to resume."""
    write_whole(folder / _RESULT, json.dumps(asdict(result), indent=2, default=str))
    if not keep_checkpoint:
        DurableCheckpointIO().remove_checkpoint(folder / CHECKPOINT)


def finished_run(
    folder: Path, optimizer: OptimizerChoice, experiment: Experiment
) -> RunResult | None:
    """Return the result of a finished run, under the optimizer's current label, or None.

    The label may differ from the folder's name in the case of letters. If the metric or the target
    is not the one that the run was finished with, the run is measured again from its
    event files.
    """
    metric, target = experiment.metric, experiment.target
    try:
        _read_settings(folder)
        result = _read_result(folder)
    except DamagedFileError:
        return None  # The error is reported when the run begins.
    if result is None:
        return None
    result = replace(result, label=optimizer.label, method=optimizer.method)
    known = measured_by(result, metric)
    if known and (target is None or result.target == target.value):
        return result
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DamagedEventsWarning)
            measured = measure_run(folder, metric, target)
    except DamagedEventsWarning as error:  # Some points alone would give another number.
        if known:
            return replace(result, message=f"the way to the target is not measured: {error}")
        message = f"{metric.name} is not measured: {error}. The result by {result.metric} is kept"
        return replace(result, best=None, last=None, status="failed", message=message)
    if known and (measured["best"], measured["last"]) != (result.best, result.last):
        message = f"the way to the target is not measured: event files in {folder} are missing"
        return replace(result, message=message)
    return replace(result, **measured)


def stopped_run(
    folder: Path,
    optimizer: OptimizerChoice,
    seed: int,
    experiment: Experiment,
    status: Status,
    message: str = "",
) -> RunResult:
    """Return the result of an unfinished run from the files in its folder.

    Its time counts only the epochs that need not be trained again.
    """
    point = ResumePoint()
    with contextlib.suppress(DamagedFileError):  # the next start of the run reports it
        point = resume_point(folder)
    failure = {"status": status, "message": message}
    return run_result(folder, optimizer, seed, experiment, point.seconds, point.epochs, failure)


def write_whole(path: Path, text: str) -> None:
    """Replace a file as a whole, so that neither a reader nor a kill finds half of it."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_text(text, encoding="utf-8", newline="")
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise OSError(
            f"{path} cannot be written: {error}. The previous file and everything that the runs "
            "wrote are kept; free disk space, and run the same command again to resume"
        ) from error


@contextlib.contextmanager
def _refused_access(folder: Path) -> Iterator[None]:
    """Name a folder that cannot be read, written to or locked."""
    try:
        yield
    except Timeout as error:
        raise UsageError(
            f"output: another comparison is running in {folder}: wait until it has ended, or "
            "choose another folder. If none is running, the file system may not support locks"
        ) from error
    except NotImplementedError as error:
        raise UsageError(
            f"output: {folder} cannot be locked, because its file system may not support locks "
            f"({error}); choose a folder on another one"
        ) from error
    except OSError as error:
        raise UsageError(f"output: {error}") from error


def _as_yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)


def _read_settings(folder: Path) -> dict[str, Any] | None:
    def parse(text: str) -> dict[str, Any]:
        settings: dict[str, Any] = yaml.safe_load(text)
        settings["seed"]  # This is the last setting, so nothing is cut off.
        return settings

    return _read_file(folder / _SETTINGS, parse)


def _read_result(folder: Path) -> RunResult | None:
    return _read_file(folder / _RESULT, lambda text: RunResult(**json.loads(text)))


def _read_file(path: Path, parse: Callable[[str], _T]) -> _T | None:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DamagedFileError(path, type(error).__name__) from error
