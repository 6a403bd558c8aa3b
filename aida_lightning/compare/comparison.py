"""Train one model from one initialisation under several optimizers, and report."""

import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from aida_lightning._lightning import LightningDataModule, LightningModule, find_in
from aida_lightning._private import starts_script_again
from aida_lightning.compare.callbacks import run_callbacks
from aida_lightning.compare.choices import pick_methods
from aida_lightning.compare.findings import findings_of
from aida_lightning.compare.folder import (
    check_folder,
    finished_run,
    locked,
    run_folder,
    set_edited_aside,
    write_config,
)
from aida_lightning.compare.loading import LoadedExperiment
from aida_lightning.compare.methods import OptimizerChoice, UsageError, choose_optimizers
from aida_lightning.compare.outputs import draw, write_results
from aida_lightning.compare.report import print_sheets
from aida_lightning.compare.results import RunResult
from aida_lightning.compare.run import build_model, quiet, train_run
from aida_lightning.compare.selection import check_selection, next_runs
from aida_lightning.compare.settings import settings_digest
from aida_lightning.compare.statistics import require_scipy

_HIGHEST_SEED = 2**32 - 1  # Lightning's


def compare(
    loaded: LoadedExperiment,
    optimizers: Sequence[str] | None = None,
    output: str | Path | None = None,
    keep_checkpoints: bool = False,
    rerun: bool = False,
) -> list[RunResult]:
    """Train one model from one initialisation under several optimizers, and report.

    This writes under one folder: TensorBoard event files of each run, in `<label>/seed_<n>`;
    `results.csv`, a row per run, and the tables as `results.json`, `.md` and `.tex`; `config.yaml`,
    an experiment that repeats the comparison; the metric's curves and the experiment's figures. A
    run that fails or diverges is reported and does not stop the others; after Ctrl-C everything so
    far is kept. Called again, a comparison goes on from the last
    checkpoint of the run that was stopped, and trains no run again that is finished.

    Args:
        loaded: the experiment.
        optimizers: labels of its methods, or other optimizers, as `pick_methods` reads them; None
            for all of its methods.
        output: the folder to write to, new, empty, or of the same comparison; by default one in
            aida_runs/ whose name follows from the experiment and its settings.
        keep_checkpoints: keep the last checkpoint of each finished run.
        rerun: train runs again whose classes were edited since, and move the old ones aside;
            otherwise they are refused.

    Returns:
        the results of all runs.

    Raises:
        UsageError: something that was asked for is refused; nothing was trained then.
    """
    loaded = _with_optimizers(loaded, optimizers)
    experiment = loaded.experiment
    chosen = choose_optimizers(experiment.optimizers, experiment.optimizer_options)
    _check_numbers(loaded)
    check_selection(experiment)
    require_scipy()
    if output is None:
        # The same for the same settings, so that a repeated command goes on; else another.
        output = Path("aida_runs", f"{loaded.name}-{settings_digest(loaded.config)}")
    folder = Path(output)
    seeds = [*experiment.tune_seeds, *experiment.seeds]
    check_folder(folder, loaded.config, chosen, seeds, rerun)
    check_experiment(loaded, chosen)
    with locked(folder):
        # Again: another comparison may have been first.
        check_folder(folder, loaded.config, chosen, seeds, rerun)
        for seed in seeds if rerun else []:
            set_edited_aside(folder, loaded.config, chosen, seed)
        write_config(folder, loaded.config)
        return _train_all(loaded, chosen, folder, keep_checkpoints)


def check_experiment(loaded: LoadedExperiment, optimizers: Sequence[OptimizerChoice]) -> None:
    """Build everything once, before anything trains.

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
        with _refusal("callbacks"):
            experiment.trainer(
                logger=False, callbacks=run_callbacks(loaded, optimizers[0], 0, Path())
            )


def _check_readable(*parts: LightningModule | LightningDataModule) -> None:
    """Refuse what a run could not go on from: hyperparameters that no checkpoint gives back."""
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


def _train_all(
    loaded: LoadedExperiment,
    chosen: Sequence[OptimizerChoice],
    folder: Path,
    keep_checkpoints: bool,
) -> list[RunResult]:
    experiment = loaded.experiment
    # Labels, paths and values are the user's, and lines are whole in a pipe.
    console = Console(markup=False, soft_wrap=True)
    plan = next_runs(chosen, experiment, [])
    folders = [run_folder(folder, optimizer.label, seed) for optimizer, seed in plan]
    left = sum(finished_run(run, experiment.metric) is None for run in folders)
    if left:
        epochs = loaded.trainer_options["max_epochs"]
        seeds = ", ".join(map(str, dict.fromkeys(seed for _, seed in plan)))
        console.print(f"Runs: {len(plan)}, each of {epochs} epochs (seeds: {seeds}); {left} to go")
    results: list[RunResult] = []
    while plan := next_runs(chosen, experiment, results):
        number, total = len(results) + 1, len(results) + len(plan)
        optimizer, seed = plan[0]
        run = run_folder(folder, optimizer.label, seed)
        title = f"[{number}/{total}] {optimizer.label}, seed {seed}"
        result = finished_run(run, experiment.metric, experiment.target)
        if result is not None:
            console.print(f"{title}: finished before, not run again")
            # As it is called now; a folder's name may be another one's in other letters.
            result = replace(result, label=optimizer.label, method=optimizer.method)
        else:
            console.print(title, style="bold")
            result = train_run(loaded, optimizer, seed, run, keep_checkpoints, left)
            left = 0  # which is told once
        results.append(result)
        found = findings_of(experiment, results, folder)
        write_results(found, folder)
        if result.message:
            console.print(f"{result.status}: {result.message}")
        if result.status == "interrupted":
            console.print(f"Interrupted in run {number} of {total}; the runs so far are kept.")
            console.print("The same command goes on from the last checkpoint.")
            break
    print_sheets(found, console)
    for problem in draw(found, folder):
        console.print(f"There is {problem}")
    console.print(f"Results, figures and event files: {folder}", highlight=False)
    console.print(f"tensorboard --logdir {folder}", highlight=False)
    return results


def _with_optimizers(
    loaded: LoadedExperiment, optimizers: Sequence[str] | None
) -> LoadedExperiment:
    if optimizers is None:
        return loaded
    choose_optimizers(loaded.experiment.optimizers, loaded.experiment.optimizer_options)
    methods = pick_methods(loaded.experiment.optimizers, optimizers)
    # As a loaded file has them, without tuples.
    listed = json.loads(json.dumps([asdict(method) for method in methods]))
    return replace(loaded, config={**loaded.config, "optimizers": listed})


def _check_numbers(loaded: LoadedExperiment) -> None:
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


def _spawning(strategy: Any, registry: Any) -> str:
    """Return the form of a strategy that spawns, or a strategy that does."""
    form = str(strategy).replace("ddp", "ddp_spawn", 1)
    return form if form in registry.available_strategies() else "ddp_spawn"


@contextlib.contextmanager
def _refusal(part: str) -> Iterator[None]:
    """Turn whatever a constructor raises into one message that names the part."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{part}: {error or type(error).__name__}") from error
