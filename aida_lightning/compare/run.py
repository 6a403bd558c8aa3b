"""One run of a comparison: the same model, initialisation and data order, one optimizer."""

import contextlib
import inspect
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.multiprocessing.spawn import ProcessRaisedException

from aida_lightning.compare.loading import LoadedExperiment
from aida_lightning.compare.methods import OptimizerChoice, UsageError
from aida_lightning.compare.results import RunResult, Status, measure
from aida_lightning.compare.resume import (
    CHECKPOINT,
    DamagedFileError,
    Resumable,
    ResumePoint,
    begin_run,
    finish_run,
    resume_point,
    run_settings,
)
from aida_lightning.compare.terminal import (
    OptimizerStateSize,
    ProgressBar,
    quiet,
    refusal,
    sigint_handler_restored,
)
from aida_lightning.registry import get_optimizer_class

_NOT_TRAINED = (
    "no epoch was trained: the data are empty, or trainer.fast_dev_run, limit_train_batches or "
    "max_steps leaves nothing to do"
)


def check_experiment(loaded: LoadedExperiment, optimizers: Sequence[OptimizerChoice]) -> None:
    """Builds everything once, before anything trains.

    Raises:
        UsageError: If a part of the experiment is refused; the message names it.
    """
    if "LOCAL_RANK" in os.environ:
        raise UsageError(
            "a comparison starts its own processes: call it once, without torchrun or srun, with "
            "devices=N"
        )
    experiment = loaded.experiment
    with quiet():
        with refusal("trainer"):
            trainer = experiment.trainer(logger=False, callbacks=[])
        if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
            # It would start the whole comparison again in every process.
            strategy = loaded.config["trainer"]["init_args"]["strategy"]
            raise UsageError(
                f"strategy: {strategy!r} starts the program again in every process, which a "
                f"comparison of several runs cannot have; use {_spawning(strategy)!r}"
            )
        with refusal("data"):
            data = experiment.data()
            data.prepare_data()
            data.setup("fit")
        with refusal("model"):
            model = _build_model(loaded, optimizers[0], data, trainer)
            model.prepare_data()
        with refusal("model, its optimizer or its lr_scheduler"):
            model.trainer = trainer
            model.configure_optimizers()
        with refusal("callbacks"):
            experiment.trainer(logger=False, callbacks=_callbacks(loaded, 0, Path()))


def _spawning(strategy: Any) -> str:
    """The form of a strategy that spawns, or a strategy that does."""
    form = str(strategy).replace("ddp", "ddp_spawn", 1)
    return form if form in StrategyRegistry.available_strategies() else "ddp_spawn"


def train_run(
    loaded: LoadedExperiment,
    optimizer: OptimizerChoice,
    seed: int,
    folder: Path,
    keep_checkpoint: bool = False,
) -> RunResult:
    """Trains one run, from its last checkpoint if there is one, and reads its event files.

    Whatever goes wrong is reported in the result, not raised, so that the other runs go on.

    Args:
        loaded: The experiment.
        optimizer: The optimizer.
        seed: The seed of the initialisation and of the order of the data.
        folder: The run's own.
        keep_checkpoint: Keeps the last checkpoint of a run that is finished.
    """
    point = ResumePoint()
    status: Status = "completed"
    message = ""
    start = time.perf_counter()
    with quiet(), sigint_handler_restored():
        try:
            point = begin_run(folder, run_settings(loaded.config, optimizer, seed))
            _fit(loaded, optimizer, seed, folder, point)
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second.
            status = "interrupted"
        except Exception as error:  # any failure of one run is that run's alone
            status, message = "failed", _summary(error)
            with contextlib.suppress(OSError):  # of a folder that cannot be written to
                (folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
    seconds = point.seconds + time.perf_counter() - start
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    measured = measure(folder, loaded.experiment.metric)
    epochs = _epochs(folder)
    finished = status == "completed" and epochs > 0
    if finished:
        status, message = measured.outcome
    elif status == "completed":
        status, message = "failed", _NOT_TRAINED
    result = RunResult(
        label=optimizer.label,
        method=optimizer.method,
        optimizer=optimizer.name,
        options=optimizer.options,
        seed=seed,
        **measured.values,
        wall_time_s=seconds,
        epochs=epochs,
        status=status,
        message=message,
        better=loaded.experiment.metric.better,
    )
    if finished:
        finish_run(folder, result, keep_checkpoint)
    return result


def _epochs(folder: Path) -> int:
    try:
        return resume_point(folder).epochs
    except DamagedFileError:
        return 0  # as far as is known


def _fit(
    loaded: LoadedExperiment,
    optimizer: OptimizerChoice,
    seed: int,
    folder: Path,
    point: ResumePoint,
) -> None:
    experiment = loaded.experiment
    logger = TensorBoardLogger(
        folder.parent.parent,
        folder.parent.name,
        folder.name,
        default_hp_metric=False,
        flush_secs=10,
        # TensorBoard then forgets what a killed run logged after its last checkpoint.
        purge_step=point.steps if any(folder.glob("*tfevents*")) else None,
    )
    trainer = experiment.trainer(
        logger=logger,
        callbacks=_callbacks(loaded, seed, folder),
    )
    pl.seed_everything(seed, workers=True, verbose=False)
    data = experiment.data()
    # Whatever the data module draws, all start from the same weights.
    pl.seed_everything(seed, workers=True, verbose=False)
    model = _build_model(loaded, optimizer, data, trainer)
    trainer.fit(model, datamodule=data, ckpt_path=point.checkpoint, weights_only=True)


class _FiniteLoss(EarlyStopping):
    """Stops when the loss is not finite. Of its own class, so that a user's has another state."""

    def __init__(self) -> None:
        super().__init__(
            "train_loss",
            patience=sys.maxsize,
            strict=False,
            check_finite=True,
            check_on_train_epoch_end=True,
        )


class _LastCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint that a run goes on from. Of its own class for the same reason."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            filename=CHECKPOINT.removesuffix(".ckpt"),
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )


def _callbacks(loaded: LoadedExperiment, seed: int, folder: Path) -> list[pl.Callback]:
    has_bar = loaded.config["trainer"]["init_args"].get("enable_progress_bar") is not False
    return [
        *(callback() for callback in loaded.experiment.callbacks),
        OptimizerStateSize(),
        *([ProgressBar()] if has_bar else []),
        _FiniteLoss(),
        Resumable(seed),
        _LastCheckpoint(folder),
    ]


def _build_model(
    loaded: LoadedExperiment,
    optimizer: OptimizerChoice,
    data: pl.LightningDataModule,
    trainer: pl.Trainer,
) -> pl.LightningModule:
    options = _with_fastest_kernel(optimizer, trainer.strategy.root_device)
    path = loaded.config["model"]["class_path"]
    if "vocab_size" not in inspect.signature(resolve_name(path)).parameters:
        return loaded.experiment.model(optimizer=optimizer.name, optimizer_options=options)
    data.prepare_data()
    data.setup("fit")
    return loaded.experiment.model(
        optimizer=optimizer.name,
        optimizer_options=options,
        vocab_size=data.vocab_size,  # type: ignore[attr-defined]
    )


def _with_fastest_kernel(optimizer: OptimizerChoice, device: torch.device) -> dict[str, Any]:
    """Asks for the fused kernel on a CPU, where no optimizer chooses it by itself."""
    accepted = inspect.signature(get_optimizer_class(optimizer.name)).parameters
    chosen = {"foreach", "fused", "capturable", "differentiable"} & optimizer.options.keys()
    if device.type == "cpu" and "fused" in accepted and not chosen:
        return {**optimizer.options, "fused": True}
    return optimizer.options


def _summary(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ProcessRaisedException) and lines:
        return lines[-1]  # the other process's own exception ends its traceback
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
