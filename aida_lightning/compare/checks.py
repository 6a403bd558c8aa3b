"""Checks of a comparison before any training."""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from aida_lightning._lightning import LightningDataModule, LightningModule, Trainer, find_in
from aida_lightning._private import starts_script_again
from aida_lightning.compare.callbacks import run_callbacks
from aida_lightning.compare.loading import LoadedExperiment
from aida_lightning.compare.methods import GROUPING, OptimizerChoice, UsageError
from aida_lightning.compare.run import build_model, quiet

_HIGHEST_SEED = 2**32 - 1  # Lightning's


def check_numbers(loaded: LoadedExperiment) -> None:
    """Check that seeds and counts are possible values.

    Raises:
        UsageError: a value is impossible; the message names it.
    """
    seeds, tune_seeds = loaded.experiment.seeds, loaded.experiment.tune_seeds
    for key, given, fewest in (("seeds", seeds, 1), ("tune_seeds", tune_seeds, 0)):
        allowed = {seed for seed in given if 0 <= seed <= _HIGHEST_SEED}
        if len(allowed) < max(len(given), fewest):
            raise UsageError(
                f"{key}: different integers from 0 to {_HIGHEST_SEED} are needed, but got "
                f"{[*given]}"
            )
    for option, key, default in (
        ("epochs", "max_epochs", None),
        ("monitor_every_n_steps", "log_every_n_steps", 50),
    ):
        number = loaded.trainer_options.get(key, default)
        if number is None or number < 1:
            raise UsageError(f"{option} (trainer.{key}): at least 1 is needed, but got {number}")


def check_experiment(loaded: LoadedExperiment, optimizers: Sequence[OptimizerChoice]) -> Trainer:
    """Build all parts of an experiment once, before any training, and return the Trainer.

    Raises:
        UsageError: a part of the experiment is refused; the message names it.
    """
    if "LOCAL_RANK" in os.environ:
        raise UsageError(
            "a comparison starts its own processes: call it once, without torchrun or srun, with "
            "devices=N"
        )
    experiment = loaded.experiment
    with quiet():
        with _refusal("trainer"):
            trainer = experiment.trainer(logger=False, callbacks=[])
        if starts_script_again(trainer):
            # It would start the whole comparison again in every process.
            strategy = loaded.trainer_options["strategy"]
            registry = find_in(loaded.package, "pytorch.strategies.StrategyRegistry")
            raise UsageError(
                f"strategy: {strategy!r} starts the program again in every process, which a "
                f"comparison of several runs cannot have; use {_spawning(strategy, registry)!r}"
            )
        with _refusal("data"):
            data = experiment.data()
            data.prepare_data()
            data.setup("fit")
        with _refusal("model"):
            model = build_model(loaded, optimizers[0], data, trainer)
            model.prepare_data()
            _check_readable(model, data)
        with _refusal("model, its optimizer or its lr_scheduler"):
            model.trainer = trainer
            model.configure_optimizers()
        for optimizer in optimizers[1:]:
            if optimizer.options.keys() & GROUPING:  # whose patterns have to match its layers
                with _refusal(f"optimizers: {optimizer.label}"):
                    model = build_model(loaded, optimizer, data, trainer)
                    model.trainer = trainer
                    model.configure_optimizers()
        with _refusal("callbacks"):
            callbacks = run_callbacks(loaded, optimizers[0], 0, Path())
            experiment.trainer(logger=False, callbacks=callbacks)
    return trainer


def without_accelerator(loaded: LoadedExperiment) -> LoadedExperiment:
    """Return an experiment that can be checked without the devices of a cluster's nodes."""
    options = {**loaded.trainer_options, "accelerator": "cpu"}
    if isinstance(options["devices"], list):
        options["devices"] = len(options["devices"])
    trainer = {**loaded.config["trainer"], "init_args": options}
    return replace(loaded, config={**loaded.config, "trainer": trainer})


def _check_readable(*parts: LightningModule | LightningDataModule) -> None:
    """Refuse hyperparameters that a checkpoint cannot restore, so that no run could resume."""
    for part in parts:
        for name, value in part.hparams.items():
            buffer = io.BytesIO()
            try:
                torch.save(value, buffer)
                buffer.seek(0)
                torch.load(buffer, weights_only=True)
            except Exception as error:
                raise UsageError(
                    f"the hyperparameter {name!r} of {type(part).__name__} is a "
                    f"{type(value).__name__}, which cannot be read again from a checkpoint with "
                    "weights_only=True: leave it out, save_hyperparameters(ignore=[…]), or save it "
                    "as a string or a number"
                ) from error


def _spawning(strategy: Any, registry: Any) -> str:
    """Return the spawning form of a strategy, or ``ddp_spawn``."""
    form = str(strategy).replace("ddp", "ddp_spawn", 1)
    return form if form in registry.available_strategies() else "ddp_spawn"


@contextlib.contextmanager
def _refusal(part: str) -> Iterator[None]:
    """Turn any error from a constructor into one message that names the part."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{part}: {error or type(error).__name__}") from error
