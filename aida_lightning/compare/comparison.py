"""Trains one model from one initialisation under several optimizers, and reports."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from aida_lightning.compare.choices import choose_optimizers, pick_methods
from aida_lightning.compare.loading import LoadedExperiment
from aida_lightning.compare.methods import OptimizerChoice, UsageError
from aida_lightning.compare.report import draw_experiment, results_table, write_csv
from aida_lightning.compare.results import RunResult
from aida_lightning.compare.resume import (
    CONFIG,
    check_same_comparison,
    check_same_run,
    finished_run,
    run_settings,
    settings_digest,
    write_yaml,
)
from aida_lightning.compare.run import check_experiment, train_run

_HIGHEST_SEED = 2**32 - 1  # Lightning's
_LOCK = ".lock"


def compare(
    loaded: LoadedExperiment,
    optimizers: Sequence[str] | None = None,
    output: str | Path | None = None,
    keep_checkpoints: bool = False,
) -> list[RunResult]:
    """Trains one model from one initialisation under several optimizers, and reports.

    Writes under one folder: TensorBoard event files of each run, in `<label>/seed_<n>`;
    `results.csv`, a row a run; `config.yaml`, an experiment that repeats the comparison; and the
    experiment's figures. A run that fails or diverges is reported and does not stop the others;
    after Ctrl-C everything so far is kept. Called again, a comparison goes on from the last
    checkpoint of the run that was stopped, and trains no run again that is finished.

    Args:
        loaded: The experiment.
        optimizers: Labels of its methods, or other optimizers, as `pick_methods` reads them; None
            for all of its methods.
        output: The folder to write to, new, empty, or of the same comparison; by default one in
            aida_runs/ whose name follows from the experiment and its settings.
        keep_checkpoints: Keeps the last checkpoint of each finished run.

    Returns:
        The results of all runs.

    Raises:
        UsageError: If anything that was asked for is refused; nothing was trained then.
    """
    loaded = _with_optimizers(loaded, optimizers)
    experiment = loaded.experiment
    chosen = choose_optimizers(experiment.optimizers, experiment.optimizer_options)
    _check_numbers(loaded)
    folder = Path(output) if output is not None else _default_folder(loaded)
    _check_folder(folder, loaded, chosen)
    check_experiment(loaded, chosen)
    with _locked(folder):
        _check_folder(folder, loaded, chosen)  # again: another comparison may have been first
        with _refused(folder):
            write_yaml(folder / CONFIG, loaded.config)
        return _train_all(loaded, chosen, folder, keep_checkpoints)


def _train_all(
    loaded: LoadedExperiment,
    chosen: Sequence[OptimizerChoice],
    folder: Path,
    keep_checkpoints: bool,
) -> list[RunResult]:
    experiment = loaded.experiment
    console = Console(markup=False)  # labels, paths and values are the user's
    plan = [(optimizer, seed) for seed in experiment.seeds for optimizer in chosen]
    results: list[RunResult] = []
    for number, (optimizer, seed) in enumerate(plan, start=1):
        run = folder / optimizer.folder / f"seed_{seed}"
        title = f"[{number}/{len(plan)}] {optimizer.label}, seed {seed}"
        result = finished_run(run, experiment.metric)
        if result is not None:
            console.print(f"{title}: finished before, not run again")
        else:
            console.print(title, style="bold")
            result = train_run(loaded, optimizer, seed, run, keep_checkpoints)
        results.append(result)
        write_csv(results, experiment, folder / "results.csv")
        if result.message:
            console.print(f"{result.status}: {result.message}")
        if result.status == "interrupted":
            console.print(f"Interrupted in run {number} of {len(plan)}; the runs so far are kept.")
            console.print("The same command goes on from the last checkpoint.")
            break
    console.print(results_table(results, experiment))
    _, problems = draw_experiment(experiment, results, folder)
    for problem in problems:
        console.print(f"There is {problem}")
    console.print(f"Results, figures and event files: {folder}", soft_wrap=True, highlight=False)
    console.print(f"tensorboard --logdir {folder}", soft_wrap=True, highlight=False)
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
    seeds = loaded.experiment.seeds
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) > _HIGHEST_SEED:
        raise UsageError(
            f"seeds: different integers from 0 to {_HIGHEST_SEED} are needed, but got {[*seeds]}"
        )
    trainer = loaded.config["trainer"]["init_args"]
    for option, key, default in (
        ("epochs", "max_epochs", None),
        ("monitor_every_n_steps", "log_every_n_steps", 50),
    ):
        number = trainer.get(key, default)
        if number is None or number < 1:
            raise UsageError(f"{option} (trainer.{key}): at least 1 is needed, but got {number}")


def _default_folder(loaded: LoadedExperiment) -> Path:
    """The same for the same settings, so that a repeated command goes on; else another."""
    return Path("aida_runs", f"{loaded.name}-{settings_digest(loaded.config)}")


def _check_folder(
    folder: Path, loaded: LoadedExperiment, chosen: Sequence[OptimizerChoice]
) -> None:
    with _refused(folder):
        exists = folder.exists()
        if exists and not folder.is_dir():
            raise UsageError(f"output: {folder} is no folder")
        holds_more = exists and {path.name for path in folder.iterdir()} - {_LOCK}
    if holds_more:
        check_same_comparison(folder, loaded.config)
    for optimizer in chosen:
        for seed in loaded.experiment.seeds:
            run = folder / optimizer.folder / f"seed_{seed}"
            check_same_run(run, run_settings(loaded.config, optimizer, seed))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps others out of it; the lock is gone when its process is."""
    lock = FileLock(folder / _LOCK, timeout=0)
    with _refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _refused(folder: Path) -> Iterator[None]:
    """Names a folder that cannot be looked into, written to or locked."""
    try:
        yield
    except Timeout as error:
        raise UsageError(
            f"output: another comparison is at work in {folder}: wait until it has ended, or give "
            "another folder. If there is none, the folder's file system may not support locks"
        ) from error
    except NotImplementedError as error:
        raise UsageError(
            f"output: {folder} cannot be locked, its file system may not support it ({error}): "
            "give a folder on another one"
        ) from error
    except OSError as error:
        raise UsageError(f"output: {error}") from error
