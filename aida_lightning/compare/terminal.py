"""What a run shows on the terminal and what it keeps from it; its small callbacks."""

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from aida_lightning.compare.methods import UsageError
from aida_lightning.logs import tags


class OptimizerStateSize(Callback):
    """Logs the size of all tensors in the optimizers' state, in bytes, whenever it changed."""

    def __init__(self) -> None:
        self._logged: int | None = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"logged": self._logged}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._logged = state_dict["logged"]

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._logged is None:  # after the first step, so that an interrupted run has it too
            self._log(trainer, trainer.fit_loop.epoch_loop._batches_that_stepped)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Parameters may join later.
        self._log(trainer, trainer.fit_loop.epoch_loop._batches_that_stepped - 1)

    def _log(self, trainer: pl.Trainer, step: int) -> None:
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
                tags.STATE_BYTES,
                size,
                step,
                new_style=True,
                double_precision=True,
            )


class ProgressBar(RichProgressBar):
    """Lightning's progress bar without the run's number, which the line above it says better."""

    @override
    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps from the terminal what Lightning says at every start; its warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for pattern in (
                # The data modules choose their workers; a second opinion a run helps nobody.
                ".*does not have many workers.*",
                # A comparison of few batches is meant.
                ".*is smaller than the logging interval.*",
                # SGD has none, and stands beside those that have for its accuracy.
                "StepsizeMonitor logs nothing of .*",
                # Lightning's own use of torch's pytree.
                ".*isinstance.treespec, LeafSpec.*",
                # A run goes on in the folder, and from the end of an epoch, that it had: Lightning
                # counts the steps of all optimizers, of which one may step less often.
                ".*Checkpoint directory .* exists and is not empty.*",
                ".*The dirpath has changed from.*",
                ".*resuming from a checkpoint that ended before the epoch ended.*",
            ):
                warnings.filterwarnings("ignore", pattern)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def refusal(part: str) -> Iterator[None]:
    """Turns whatever a constructor raises into one message that names the part."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{part}: {error or type(error).__name__}") from error


@contextlib.contextmanager
def sigint_handler_restored() -> Iterator[None]:
    """Gives Ctrl-C back its meaning, which Lightning takes from it when it was pressed once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
