"""One run of a comparison: the same model, initialisation and data order, one optimizer."""

import contextlib
import inspect
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.multiprocessing.spawn import ProcessRaisedException

from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.datamodules import CIFAR10DataModule, DigitsDataModule
from aida_lightning.example_modules import ImageClassifier
from aida_lightning.experiments.choices import Choice, OptimizerChoice, UsageError
from aida_lightning.experiments.report import STATE_BYTES_TAG, RunResult, Status, measure
from aida_lightning.registry import get_optimizer_class

DATA_MODULES: dict[str, Callable[..., pl.LightningDataModule]] = {
    "digits": DigitsDataModule,
    "cifar10": CIFAR10DataModule,
}


@dataclass(frozen=True)
class Settings:
    """What all runs of a comparison have in common; see `compare` for the meanings."""

    model: str
    data: Choice
    epochs: int
    lr_scheduler: Choice | None
    accelerator: str
    devices: int | str | list[int]
    strategy: str
    limit_train_batches: int | float
    limit_val_batches: int | float
    monitor_every_n_steps: int


class OptimizerStateSize(Callback):
    """Logs the size of all tensors in the optimizers' state, in bytes, whenever it changed."""

    def __init__(self) -> None:
        self._logged: int | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        """Logs it after the first step, so that an interrupted run has it too."""
        if self._logged is None:
            self._log(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs it again if parameters joined later."""
        self._log(trainer)

    def _log(self, trainer: pl.Trainer) -> None:
        size = sum(
            value.numel() * value.element_size()
            for optimizer in trainer.optimizers
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        )
        if size and size != self._logged and isinstance(trainer.logger, TensorBoardLogger):
            self._logged = size
            # float32, as in a plain scalar event, cannot hold every size above 16 MiB.
            trainer.logger.experiment.add_scalar(
                STATE_BYTES_TAG,
                size,
                trainer.global_step - 1,
                new_style=True,
                double_precision=True,
            )


class ProgressBar(RichProgressBar):
    """Lightning's progress bar without the run's number, which the line above it says better."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Leaves the logger's version out of the metrics."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


def check_settings(settings: Settings, optimizers: Sequence[OptimizerChoice]) -> None:
    """Builds everything once, before anything trains.

    Raises:
        UsageError: If a part of the settings is refused; the message names it.
    """
    if "LOCAL_RANK" in os.environ:
        raise UsageError(
            "a comparison starts its own processes: call it once, without torchrun or srun, with "
            "devices=N"
        )
    with _quiet():
        with _refusal("data", settings.data.name):
            data = _build_data(settings)
            data.prepare_data()
            data.setup("fit")
        with _refusal("model", settings.model):
            for optimizer in optimizers:
                model = _build_model(settings, optimizer)
        with _refusal("accelerator, devices, strategy or limits", None):
            trainer = _build_trainer(settings, logger=False, callbacks=[])
        if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
            # It would start the whole comparison again in every process.
            raise UsageError(
                f"strategy: {settings.strategy!r} starts the program again in every process, which "
                "a comparison of several runs cannot have; use its '_spawn' form, as ddp_spawn"
            )
        if settings.lr_scheduler is not None:
            with _refusal("lr_scheduler", settings.lr_scheduler.name):
                model.trainer = trainer
                model.configure_optimizers()


def train_run(settings: Settings, optimizer: OptimizerChoice, seed: int, output: Path) -> RunResult:
    """Trains one run and reads its results from its event files.

    Whatever goes wrong is reported in the result, not raised, so that the other runs go on.

    Args:
        settings: What all runs have in common.
        optimizer: The optimizer.
        seed: The seed of the initialisation and of the order of the data.
        output: The folder of the comparison; the run's is `<label>/seed_<n>` in it.
    """
    folder = output / optimizer.folder / f"seed_{seed}"
    folder.mkdir(parents=True)
    status: Status = "completed"
    message = ""
    start = time.perf_counter()
    with _quiet(), _sigint_handler_restored():
        try:
            pl.seed_everything(seed, workers=True, verbose=False)
            model = _build_model(settings, optimizer)
            logger = TensorBoardLogger(
                output, optimizer.folder, folder.name, default_hp_metric=False, flush_secs=10
            )
            trainer = _build_trainer(
                settings,
                logger=logger,
                callbacks=[
                    StepsizeMonitor(every_n_steps=settings.monitor_every_n_steps),
                    OptimizerStateSize(),
                    ProgressBar(),
                    # Only for its check that the loss is finite.
                    EarlyStopping(
                        "train_loss",
                        patience=sys.maxsize,
                        strict=False,
                        check_finite=True,
                        check_on_train_epoch_end=True,
                    ),
                ],
            )
            # Building an optimizer or a trainer may draw random numbers; the data's order may not
            # depend on it.
            pl.seed_everything(seed, workers=True, verbose=False)
            start = time.perf_counter()
            trainer.fit(model, datamodule=_build_data(settings))
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second.
            status = "interrupted"
        except Exception as error:  # any failure of one run is that run's alone
            status = "failed"
            message = _summary(error)
            (folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
    wall_time = time.perf_counter() - start
    model = trainer = None  # type: ignore[assignment]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    measured = measure(folder)
    if status == "completed" and measured.diverged:
        status, message = "diverged", "the loss is not finite"
    return RunResult(
        label=optimizer.label,
        optimizer=optimizer.name,
        options=optimizer.options,
        seed=seed,
        best_val_accuracy=measured.best_val_accuracy,
        last_val_accuracy=measured.last_val_accuracy,
        wall_time_s=wall_time,
        optimizer_state_bytes=measured.optimizer_state_bytes,
        epochs=measured.epochs,
        status=status,
        message=message,
    )


def _build_data(settings: Settings) -> pl.LightningDataModule:
    try:
        data_module = DATA_MODULES[settings.data.name]
    except KeyError:
        raise UsageError(f"it is none of {', '.join(DATA_MODULES)}") from None
    return data_module(**settings.data.options)


def _build_model(settings: Settings, optimizer: OptimizerChoice) -> pl.LightningModule:
    scheduler = settings.lr_scheduler
    return ImageClassifier(
        model=settings.model,
        optimizer=optimizer.name,
        optimizer_options=_with_fastest_kernel(settings, optimizer),
        lr_scheduler=scheduler.name if scheduler else None,
        lr_scheduler_options=scheduler.options if scheduler else None,
    )


def _with_fastest_kernel(settings: Settings, optimizer: OptimizerChoice) -> dict[str, Any]:
    """Asks for the fused kernel on a CPU, where no optimizer chooses it by itself."""
    on_cpu = settings.accelerator == "cpu" or (
        settings.accelerator == "auto" and not torch.accelerator.is_available()
    )
    accepted = inspect.signature(get_optimizer_class(optimizer.name)).parameters
    chosen = {"foreach", "fused", "capturable", "differentiable"} & optimizer.options.keys()
    if on_cpu and "fused" in accepted and not chosen:
        return {**optimizer.options, "fused": True}
    return optimizer.options


def _build_trainer(
    settings: Settings, logger: TensorBoardLogger | bool, callbacks: list[Callback]
) -> pl.Trainer:
    strategy = settings.strategy
    if strategy == "auto" and settings.devices not in (1, "1", [0]):
        # The usual "ddp" would start the whole comparison again in every process.
        strategy = "ddp_spawn"
    return pl.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=strategy,
        max_epochs=settings.epochs,
        limit_train_batches=settings.limit_train_batches,
        limit_val_batches=settings.limit_val_batches,
        log_every_n_steps=settings.monitor_every_n_steps,
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _summary(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ProcessRaisedException) and lines:
        return lines[-1]  # the other process's own exception ends its traceback
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps from the terminal what Lightning says at every start; its warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # The data modules choose their workers; a second opinion a run helps nobody.
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            # A comparison of few batches is meant.
            warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
            # Lightning's own use of torch's pytree.
            warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _refusal(option: str, value: str | None) -> Iterator[None]:
    """Turns whatever a constructor raises into one message that names the option."""
    try:
        yield
    except Exception as error:
        given = f" {value}:" if value else ""
        raise UsageError(f"{option}:{given} {error or type(error).__name__}") from error


@contextlib.contextmanager
def _sigint_handler_restored() -> Iterator[None]:
    """Gives Ctrl-C back its meaning, which Lightning takes from it when it was pressed once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
