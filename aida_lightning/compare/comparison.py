"""Train one model from one initialisation under several optimizers, and report."""

import contextlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from aida_lightning.compare.checks import check_experiment, check_numbers, without_accelerator
from aida_lightning.compare.choices import pick_methods
from aida_lightning.compare.folder import (
    check_folder,
    finished_run,
    locked,
    run_folder,
    set_edited_aside,
    write_config,
)
from aida_lightning.compare.jobs import noted_job, train_as_jobs
from aida_lightning.compare.launcher import Launcher, LauncherName
from aida_lightning.compare.loading import LoadedExperiment
from aida_lightning.compare.methods import choose_optimizers
from aida_lightning.compare.progress import Progress, progress_of
from aida_lightning.compare.report import draw_experiment, results_table, write_csv
from aida_lightning.compare.results import RunResult
from aida_lightning.compare.run import Run, stopped_run, train_run
from aida_lightning.compare.settings import settings_digest

# What trains the runs of a plan, and yields the result of each with its place in the plan.
_Executor = Callable[[Sequence[Run], Console], Generator[tuple[int, RunResult]]]


def compare(
    loaded: LoadedExperiment,
    optimizers: Sequence[str] | None = None,
    output: str | Path | None = None,
    keep_checkpoints: bool = False,
    rerun: bool = False,
    jobs: int | None = None,
    launcher: LauncherName | None = None,
    launcher_options: Mapping[str, Any] | None = None,
) -> list[RunResult]:
    """Train one model from one initialisation under several optimizers, and report.

    This writes under one folder: TensorBoard event files of each run, in `<label>/seed_<n>`;
    `results.csv`, a row per run; `config.yaml`, an experiment that repeats the comparison; and the
    experiment's figures. A run that fails or diverges is reported and does not stop the others;
    after Ctrl-C everything so far is kept. Called again, a comparison goes on from the last
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
        jobs: how many runs train at once, each in a process of its own; by default one, in this
            process, and under SLURM as many as it lets.
        launcher: `slurm` to have a cluster train the runs, or `local` for this machine.
        launcher_options: what submitit is to ask SLURM for, as its `AutoExecutor` takes it.

    Returns:
        the results of all runs.

    Raises:
        UsageError: something that was asked for is refused; nothing was trained then.
        KeyboardInterrupt: Ctrl-C ended a comparison whose runs are jobs.
    """
    loaded = _with_optimizers(loaded, optimizers)
    check_numbers(loaded)
    plan = _plan(loaded, output, keep_checkpoints)
    folder, seeds = plan[0].folder.parents[1], loaded.experiment.seeds
    chosen = [run.optimizer for run in plan if run.seed == seeds[0]]
    has_jobs = launcher is not None or jobs not in (None, 1) or launcher_options
    starter = Launcher(launcher or "local", jobs, launcher_options or {}) if has_jobs else None
    check_folder(folder, loaded.config, chosen, seeds, rerun)
    elsewhere = starter is not None and starter.name == "slurm"
    trainer = check_experiment(without_accelerator(loaded) if elsewhere else loaded, chosen)
    execute: _Executor = _train_in_turn
    if starter is not None:
        execute = partial(train_as_jobs, starter.with_gpus_for(trainer))
    with locked(folder):
        # Again: another comparison may have been first.
        check_folder(folder, loaded.config, chosen, seeds, rerun)
        for seed in seeds if rerun else []:
            set_edited_aside(folder, loaded.config, chosen, seed)
        write_config(folder, loaded.config)
        return _train_all(plan, folder, execute)


def progress(
    loaded: LoadedExperiment,
    optimizers: Sequence[str] | None = None,
    output: str | Path | None = None,
) -> list[Progress]:
    """Read how far each run of a comparison is; nothing is trained or written.

    The arguments are those of `compare`.
    """
    runs = _plan(_with_optimizers(loaded, optimizers), output)
    # SLURM is asked once for all jobs that are known.
    jobs = [noted_job(run.folder) or (0, None) for run in runs]
    return [progress_of(run, job) for run, (_, job) in zip(runs, jobs, strict=True)]


def _plan(
    loaded: LoadedExperiment, output: str | Path | None, keep_checkpoints: bool = False
) -> list[Run]:
    """Return the runs of a comparison, all optimizers with a seed before the next seed."""
    experiment = loaded.experiment
    chosen = choose_optimizers(experiment.optimizers, experiment.optimizer_options)
    if output is None:
        # The same for the same settings, so that a repeated command goes on; else another.
        output = Path("aida_runs", f"{loaded.name}-{settings_digest(loaded.config)}")
    return [
        Run(
            loaded,
            optimizer,
            seed,
            run_folder(Path(output), optimizer.label, seed),
            keep_checkpoints,
        )
        for seed in experiment.seeds
        for optimizer in chosen
    ]


def _train_all(plan: Sequence[Run], folder: Path, execute: _Executor) -> list[RunResult]:
    experiment = plan[0].loaded.experiment
    console = Console(markup=False)  # labels, paths and values are the user's
    found: dict[int, RunResult] = {}
    interrupt: KeyboardInterrupt | None = None
    try:
        with contextlib.closing(execute(plan, console)) as results:
            for number, result in results:
                found[number] = result
                write_csv([found[key] for key in sorted(found)], experiment, folder / "results.csv")
    except KeyboardInterrupt as error:
        interrupt = error
    ended = [found[key] for key in sorted(found)]
    if ended:
        console.print(results_table(ended, experiment))
        for problem in draw_experiment(experiment, ended, folder):
            console.print(f"There is {problem}")
    console.print(f"Results, figures and event files: {folder}", soft_wrap=True, highlight=False)
    console.print(f"tensorboard --logdir {folder}", soft_wrap=True, highlight=False)
    if interrupt is not None:
        raise interrupt
    return ended


def _train_in_turn(plan: Sequence[Run], console: Console) -> Generator[tuple[int, RunResult]]:
    """Train the runs one after the other in this process."""
    for number, run in enumerate(plan):
        title = f"[{number + 1}/{len(plan)}] {run.title}"
        result = finished_run(run.folder, run.loaded.experiment.metric)
        if result is not None:
            console.print(f"{title}: finished before, not run again")
        else:
            console.print(title, style="bold")
            try:
                result = train_run(*run)
            except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
                result = stopped_run(run, "interrupted")
        yield number, result
        if result.message:
            console.print(f"{result.status}: {result.message}")
        if result.status == "interrupted":
            console.print(
                f"Interrupted in run {number + 1} of {len(plan)}; the runs so far are kept."
            )
            console.print("The same command goes on from the last checkpoint.")
            break


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
