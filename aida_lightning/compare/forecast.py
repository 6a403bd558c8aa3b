"""A forecast of a comparison's duration after some steps of its first run."""

import math
import time
from datetime import timedelta
from typing import Any

import torch
from typing_extensions import override

from aida_lightning._lightning import Callback, LightningModule, Trainer

# The first batches compile kernels and fill caches.
_FIRST, _LAST = 5, 30


class Forecast(Callback):
    """Print once, after 30 batches, how long the training of all remaining runs may take.

    The callback prints nothing if a run has fewer batches or an unknown length.

    Args:
        runs: number of remaining runs, including this one; 0 prints nothing.
    """

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._batches = 0
        self._started = 0.0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if not self._runs or self._batches == _LAST:
            return
        self._batches += 1
        if self._batches == _FIRST:
            _wait_for_device()
            self._started = time.perf_counter()
        elif self._batches == _LAST:
            _wait_for_device()
            pace = (time.perf_counter() - self._started) / (_LAST - _FIRST)
            whole = _batches_of_run(trainer)
            done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            left = pace * (self._runs * whole - done)
            if math.isfinite(left) and left > 0:
                trainer.print(_sentence(left, self._runs))


def _batches_of_run(trainer: Trainer) -> float:
    by_epochs = (trainer.max_epochs or math.inf) * float(trainer.num_training_batches)
    by_steps = trainer.max_steps * trainer.accumulate_grad_batches
    return by_epochs if by_steps < 0 else min(by_epochs, by_steps)


def _sentence(seconds: float, runs: int) -> str:
    what = "this run" if runs == 1 else f"{runs} runs"
    return (
        f"About {timedelta(seconds=round(seconds))} of training are left for {what}, by the pace "
        f"of the first {_LAST} batches; validation comes on top."
    )


def _wait_for_device() -> None:
    if torch.accelerator.is_available():  # it may still work on earlier steps
        torch.accelerator.synchronize()
