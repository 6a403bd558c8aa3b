"""The callbacks that a comparison adds to the experiment's own in each run."""

import atexit
import os
import random
import time
from collections.abc import Mapping
from copy import deepcopy
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from typing_extensions import override

from aida_lightning._lightning import (
    Callback,
    LightningModule,
    ModelCheckpoint,
    RichProgressBar,
    TensorBoardLogger,
    Trainer,
)
from aida_lightning._private import steps_taken
from aida_lightning.checkpoint_io import DurableCheckpointIO
from aida_lightning.compare.hyperparameters import Hyperparameters
from aida_lightning.compare.loading import LoadedExperiment
from aida_lightning.compare.methods import OptimizerChoice
from aida_lightning.logs import tags

CHECKPOINT = "last.ckpt"


def run_callbacks(
    loaded: LoadedExperiment,
    optimizer: OptimizerChoice,
    seed: int,
    folder: Path,
) -> list[Callback]:
    """Build the callbacks of a run.

    Args:
        loaded: experiment of the run, whose own callbacks come before most of the others.
        optimizer: optimizer of the run.
        seed: seed of the run.
        folder: folder of the run.
    """
    has_bar = loaded.trainer_options.get("enable_progress_bar") is not False
    return [
        Resumable(seed),  # before others start work that the last checkpoint lacks
        *(callback() for callback in loaded.experiment.callbacks),
        OptimizerStateSize(),
        Hyperparameters(loaded, optimizer, seed),
        *([ProgressBar()] if has_bar else []),
        FiniteLoss(),
        _LastCheckpoint(folder),
        LetGlooFinish(),
    ]


class Resumable(Callback):
    """Save in each checkpoint the data that make a resumed run equal an unbroken one.

    The random numbers of an epoch depend only on the seed, the epoch and the process, so no
    generator state needs to be saved. Event files are complete up to the step of each checkpoint.

    Args:
        seed: seed of the run.
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
        # Lightning draws the first epoch's batches before it announces the epoch's start.
        self._reseed(int(self._done["epochs"]), trainer.global_rank)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._seeded != trainer.current_epoch:
            self._reseed(trainer.current_epoch, trainer.global_rank)
        _write_checkpoint(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _write_checkpoint(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._done = {
            "epochs": trainer.current_epoch + 1,
            "steps": steps_taken(trainer),
            "seconds": time.perf_counter() - self._started,
        }

    def _reseed(self, epoch: int, rank: int) -> None:
        self._seeded = epoch
        seeds = np.random.SeedSequence((self.seed, epoch, rank))
        for_torch, for_numpy, for_python = seeds.generate_state(3)
        torch.manual_seed(int(for_torch))
        np.random.seed(for_numpy)
        random.seed(int(for_python))


class OptimizerStateSize(Callback):
    """Log the size of all tensors in the optimizers' state, in bytes, whenever it changes."""

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
        if self._logged is None:  # after the first step, so that an interrupted run also logs it
            self._log(trainer, steps_taken(trainer))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Parameters may be added later.
        self._log(trainer, steps_taken(trainer) - 1)

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
    """Show Lightning's bar without the run's number, because the line above it names the run."""

    @override
    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class FiniteLoss(Callback):
    """Stop when the optimized loss or the logged ``train_loss`` is not finite.

    The callback reads the result at the end of an epoch, so no step waits for the device.
    """

    def __init__(self) -> None:
        self._not_finite: torch.Tensor | None = None

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self._look_at(loss)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look_at(trainer.callback_metrics.get("train_loss"))
        if self._not_finite is None:
            return
        if trainer.strategy.reduce_boolean_decision(bool(self._not_finite), all=False):
            trainer.should_stop = True
            step = steps_taken(trainer) - 1
            for logger in trainer.loggers:
                logger.log_metrics({tags.DIVERGED: 1.0}, step=step)

    def _look_at(self, loss: Any) -> None:
        if isinstance(loss, torch.Tensor):
            found = ~torch.isfinite(loss.detach()).all()
            self._not_finite = found if self._not_finite is None else self._not_finite | found


class _LastCheckpoint(ModelCheckpoint):
    """Keep the checkpoint for resuming a run, separate from a user's `ModelCheckpoint`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            filename=CHECKPOINT.removesuffix(".ckpt"),
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )


class LetGlooFinish(Callback):
    """Make a spawned process wait briefly for gloo's threads before its interpreter ends.

    Otherwise, a thread that still holds the last collective's tensor waits for the interpreter's
    lock and aborts the process. The run then counts as failed although its training has ended
    (pytorch#179291). Leaving the process group does not join the threads.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if parent_process() is not None and dist.is_available() and dist.is_gloo_available():
            atexit.register(time.sleep, 0.2)


class LastCheckpointIO(DurableCheckpointIO):
    """Hold the checkpoint for resuming a run until all metrics of its epoch are logged.

    Lightning logs an epoch's means after it announces the epoch's end and saves checkpoints. A run
    that is killed in between would otherwise resume without these means.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = os.path.realpath(folder / CHECKPOINT)  # the form that ModelCheckpoint uses
        self._held: dict[str, Any] | None = None

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        if os.path.realpath(path) != self._path:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        # No step is taken before it is written, but everything else may change.
        steps = ("state_dict", "optimizer_states")
        self._held = {k: v if k in steps else deepcopy(v) for k, v in checkpoint.items()}
        self._held["optimizer_states"] = [
            {**state, "param_groups": deepcopy(state["param_groups"])}
            for state in checkpoint.get("optimizer_states", [])
        ]

    def write(self) -> None:
        """Write the held checkpoint, if there is one."""
        if self._held is not None:
            super().save_checkpoint(self._held, self._path)
            self._held = None


def _write_checkpoint(trainer: Trainer) -> None:
    """Write the held checkpoint after the event files are complete up to its step."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
    if isinstance(trainer.strategy.checkpoint_io, LastCheckpointIO):
        trainer.strategy.checkpoint_io.write()
