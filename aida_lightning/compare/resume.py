"""Runs that go on where they were killed, and are not run again once they are finished."""

import contextlib
import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from aida_lightning.compare.experiment import flat
from aida_lightning.compare.methods import OptimizerChoice, UsageError
from aida_lightning.compare.results import RunResult, measure, measured_by
from aida_lightning.logs.metric import Metric

_T = TypeVar("_T")

CHECKPOINT = "last.ckpt"
CONFIG = "config.yaml"
_SETTINGS = "run.yaml"
_RESULT = "result.json"
# What may differ when a run goes on, for example on another machine.
_INCIDENTAL = {
    "data.init_args.root",
    "data.init_args.download",
    "data.init_args.num_workers",
    "trainer.init_args.accelerator",
    "trainer.init_args.default_root_dir",
    "trainer.init_args.enable_progress_bar",
}


class DamagedFileError(RuntimeError):
    """A file that a run goes on from cannot be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} cannot be read ({reason}): put a good copy there or move it away; without "
            f"its {CHECKPOINT} a run starts anew"
        )


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on.

    Args:
        checkpoint: The checkpoint, or None for a run from the start.
        epochs: The epochs that were trained.
        steps: The batches after which an optimizer stepped.
        seconds: How long they took.
    """

    checkpoint: Path | None = None
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0


class Resumable(Callback):
    """Keeps in each checkpoint what a resumed run needs to equal an unbroken one.

    The random numbers of an epoch follow from the seed, the epoch and the process alone, so that
    no generator has to be saved; and event files are complete up to the step of each checkpoint.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._done: dict[str, float] = {"epochs": 0, "steps": 0, "seconds": 0.0}
        self._started = 0.0
        self._seeded = -1

    @override
    def state_dict(self) -> dict[str, Any]:
        return dict(self._done)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._done = dict(state_dict)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter() - self._done["seconds"]
        # The first epoch's batches are drawn before its start is announced.
        self._reseed(int(self._done["epochs"]), trainer.global_rank)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._seeded != trainer.current_epoch:
            self._reseed(trainer.current_epoch, trainer.global_rank)
        _flush(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._done = {
            "epochs": trainer.current_epoch + 1,
            "steps": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "seconds": time.perf_counter() - self._started,
        }

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        _flush(trainer)

    def _reseed(self, epoch: int, rank: int) -> None:
        self._seeded = epoch
        for_torch, for_numpy, for_python = np.random.SeedSequence(
            (self.seed, epoch, rank)
        ).generate_state(3)
        torch.manual_seed(int(for_torch))
        np.random.seed(for_numpy)
        random.seed(int(for_python))


def run_settings(
    config: Mapping[str, Any], optimizer: OptimizerChoice, seed: int
) -> dict[str, Any]:
    """All that the weights of a run depend on, of an experiment's resolved file."""
    settings = {
        **{key: config[key] for key in ("model", "data", "trainer")},
        "callbacks": config.get("callbacks", []),
        "optimizer": {"name": optimizer.name, "options": optimizer.options},
        "seed": seed,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def settings_digest(config: Mapping[str, Any]) -> str:
    """Eight letters that follow from what all runs of an experiment have in common."""
    settings = {k: v for k, v in flat(_common(config)).items() if k not in _INCIDENTAL}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def check_same_comparison(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses a folder that holds anything but a comparison with the same settings.

    Optimizers, seeds and the metric may differ.

    Raises:
        UsageError: If it does; the message names what differs.
    """
    try:
        there = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        there = None
    # Other programs write a config.yaml, too, and people do; none has the changes that we note.
    if not isinstance(there, dict) or "changes" not in there:
        raise UsageError(
            f"output: {folder} exists and is not empty, and has no {CONFIG} of a comparison; "
            "nothing is overwritten. Give a new folder, or one of the same comparison"
        )
    _refuse_differences(f"{folder} holds a comparison", _common(there), _common(config))


def check_same_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuses a folder that holds a run with other settings.

    Raises:
        UsageError: If there is one; the message names what differs.
    """
    with contextlib.suppress(DamagedFileError):  # which is told when that run's turn comes
        if (there := _read_settings(folder)) is not None:
            _refuse_differences(f"{folder} holds a run", there, settings)


def begin_run(folder: Path, settings: Mapping[str, Any]) -> ResumePoint:
    """Makes a run's folder with a note of its settings, and tells where the run goes on.

    Raises:
        DamagedFileError: If a file of the run that is there already cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _read_settings(folder)
    _read_result(folder)
    point = resume_point(folder)
    write_yaml(folder / _SETTINGS, settings)
    return point


def resume_point(folder: Path) -> ResumePoint:
    """Reads from a run's last checkpoint how far it got.

    Raises:
        DamagedFileError: If it cannot be read.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return ResumePoint()
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return ResumePoint(path, **checkpoint["callbacks"][Resumable.__qualname__])
    except Exception as error:  # torch raises nearly anything
        raise DamagedFileError(path, type(error).__name__) from error


def finish_run(folder: Path, result: RunResult, keep_checkpoint: bool) -> None:
    """Marks a run as finished, and removes what only its going on had needed."""
    _write(folder / _RESULT, json.dumps(asdict(result), indent=2, default=str))
    if not keep_checkpoint:
        (folder / CHECKPOINT).unlink(missing_ok=True)


def finished_run(folder: Path, metric: Metric) -> RunResult | None:
    """Returns the result of a run that is finished, or None.

    By another metric than it was finished with, it is measured again, from its event files.
    """
    try:
        _read_settings(folder)
        result = _read_result(folder)
    except DamagedFileError:
        return None  # the run's begin tells
    if result is None:
        return None
    if measured_by(result, metric):
        return result
    measured = measure(folder, metric)
    status, message = measured.outcome
    changed = {**measured.values, "better": metric.better}
    return replace(result, **changed, status=status, message=message)


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces a file as a whole, so that a kill leaves no half of it."""
    _write(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


def _flush(trainer: Trainer) -> None:
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("model", "data", "trainer", "callbacks", "optimizer_options")
    return {key: config.get(key) for key in keys}


def _refuse_differences(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    old, new = flat(there), flat(here)
    differences = [
        f"{key} is {old.get(key)!r} there and {new.get(key)!r} here"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and key not in _INCIDENTAL
    ]
    if differences:
        raise UsageError(
            f"output: {what} with other settings, which is kept: {'; '.join(differences)}. "
            "Give another folder"
        )


def _read_settings(folder: Path) -> dict[str, Any] | None:
    def parse(text: str) -> dict[str, Any]:
        settings: dict[str, Any] = yaml.safe_load(text)
        settings["seed"]  # the last of them: nothing is cut off
        return settings

    return _read(folder / _SETTINGS, parse)


def _read_result(folder: Path) -> RunResult | None:
    return _read(folder / _RESULT, lambda text: RunResult(**json.loads(text)))


def _read(path: Path, parse: Callable[[str], _T]) -> _T | None:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DamagedFileError(path, type(error).__name__) from error


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
