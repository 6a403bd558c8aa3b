"""The callbacks that a comparison gives to each run, beside the experiment's own."""

import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from aida_lightning.compare.loading import LoadedExperiment
from aida_lightning.logs import tags

CHECKPOINT = "last.ckpt"


def run_callbacks(loaded: LoadedExperiment, seed: int, folder: Path) -> list[Callback]:
    """Build the callbacks of a run.

    Args:
        loaded: the experiment, whose own callbacks come first.
        seed: the run's seed.
        folder: the run's folder.
    """
    has_bar = loaded.trainer_options.get("enable_progress_bar") is not False
    return [
        *(callback() for callback in loaded.experiment.callbacks),
        OptimizerStateSize(),
        *([ProgressBar()] if has_bar else []),
        _FiniteLoss(),
        Resumable(seed),
        _LastCheckpoint(folder),
    ]


class Resumable(Callback):
    """Keep in each checkpoint what a resumed run needs to equal an unbroken one.

    The random numbers of an epoch follow from the seed, the epoch and the process alone, so that
    no generator has to be saved; and event files are complete up to the step of each checkpoint.

    Args:
        seed: the run's seed.
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
    def on_save_checkpoint(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        _flush(trainer)

    def _reseed(self, epoch: int, rank: int) -> None:
        self._seeded = epoch
        seeds = np.random.SeedSequence((self.seed, epoch, rank))
        for_torch, for_numpy, for_python = seeds.generate_state(3)
        torch.manual_seed(int(for_torch))
        np.random.seed(for_numpy)
        random.seed(int(for_python))


class OptimizerStateSize(Callback):
    """Log the size of all tensors in the optimizers' state, in bytes, whenever it changed."""

    def __init__(self) -> None:
        self._logged: int | None = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"logged": self._logged}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._logged = state_dict["logged"]

    @override
    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._logged is None:  # after the first step, so that an interrupted run has it too
            self._log(trainer, trainer.fit_loop.epoch_loop._batches_that_stepped)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Parameters may join later.
        self._log(trainer, trainer.fit_loop.epoch_loop._batches_that_stepped - 1)

    def _log(self, trainer: Trainer, step: int) -> None:
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
                tags.STATE_BYTES, size, step, new_style=True, double_precision=True
            )


class ProgressBar(RichProgressBar):
    """Show Lightning's bar without the run's number, which the line above it says better."""

    @override
    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class _FiniteLoss(EarlyStopping):
    """Stop when the loss is not finite.

    A class of its own keeps its state apart from that of a user's `EarlyStopping`.
    """

    def __init__(self) -> None:
        super().__init__(
            "train_loss", patience=sys.maxsize, strict=False, check_on_train_epoch_end=True
        )


class _LastCheckpoint(ModelCheckpoint):
    """Keep the checkpoint that a run goes on from, apart from a user's `ModelCheckpoint`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            filename=CHECKPOINT.removesuffix(".ckpt"),
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )


def _flush(trainer: Trainer) -> None:
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
