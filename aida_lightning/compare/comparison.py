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
from aida_lightning.compare.findings import Findings, findings_of
from aida_lightning.compare.folder import (
    ERROR_LOG,
    check_folder,
    locked,
    run_folder,
    set_edited_aside,
    write_config,
)
from aida_lightning.compare.forecast import Forecast
from aida_lightning.compare.jobs import noted_job, train_as_jobs
from aida_lightning.compare.launcher import Launcher, LauncherName
from aida_lightning.compare.loading import LoadedExperiment
from aida_lightning.compare.methods import choose_optimizers
from aida_lightning.compare.outputs import draw, write_results
from aida_lightning.compare.progress import Progress, progress_of
from aida_lightning.compare.report import print_sheets
from aida_lightning.compare.results import RunResult
from aida_lightning.compare.run import Run, train_run
from aida_lightning.compare.selection import check_selection, next_runs
from aida_lightning.compare.settings import settings_digest
from aida_lightning.compare.statistics import require_scipy

# A function that trains the runs of a plan, and yields each result with its place in the plan.
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

    The function writes to one folder: TensorBoard event files of each run, in `<label>/seed_<n>`;
    `results.csv`, with one row per run; `config.yaml`, an experiment that repeats the comparison;
    and the experiment's figures. A run that fails or diverges is reported and does not stop the
    others. After Ctrl-C, all results so far are kept. A repeated call continues from the last
    checkpoint of the stopped run, and does not train finished runs again.

    Args:
        loaded: experiment to run.
        optimizers: labels of its methods, or other optimizers, as `pick_methods` reads them; None
            selects all of its methods.
        output: folder to write to, which is new, empty, or of the same comparison; None is a folder
            in aida_runs/ named after the experiment and its settings.
        keep_checkpoints: whether to keep the last checkpoint of each finished run.
        rerun: whether to repeat runs whose classes were edited since, and move the old runs aside;
            by default, such runs are refused.
        jobs: number of runs that train at once, each in its own process; None trains one run at a
            time in this process, or as many as SLURM allows.
        launcher: `slurm` to train the runs on a cluster, or `local` for this machine.
        launcher_options: options of submitit's `AutoExecutor`, such as the resources of a job.

    Returns:
        The results of all runs.

    Raises:
        UsageError: a request is refused; in this case, nothing is trained.
        KeyboardInterrupt: Ctrl-C ends a comparison whose runs are jobs.
    """
    loaded = _with_optimizers(loaded, optimizers)
    experiment = loaded.experiment
    check_numbers(loaded)
    chosen = choose_optimizers(experiment.optimizers, experiment.optimizer_options)
    check_selection(experiment)
    require_scipy()
    folder, seeds = _folder(loaded, output), [*experiment.tune_seeds, *experiment.seeds]
    has_jobs = launcher is not None or jobs not in (None, 1) or launcher_options
    starter = Launcher(launcher or "local", jobs, launcher_options or {}) if has_jobs else None
    check_folder(folder, loaded.config, chosen, seeds, rerun)
    elsewhere = starter is not None and starter.name == "slurm"
    trainer = check_experiment(without_accelerator(loaded) if elsewhere else loaded, chosen)
    execute: _Executor = _train_in_turn
    if starter is not None:
        execute = partial(train_as_jobs, starter.with_gpus_for(trainer))
    with locked(folder):
        # Check again, because another comparison may have been first.
        check_folder(folder, loaded.config, chosen, seeds, rerun)
        for seed in seeds if rerun else []:
            set_edited_aside(folder, loaded.config, chosen, seed)
        write_config(folder, loaded.config)
        return _train_all(loaded, folder, keep_checkpoints, execute)


def progress(
    loaded: LoadedExperiment,
    optimizers: Sequence[str] | None = None,
    output: str | Path | None = None,
) -> list[Progress]:
    """Read the progress of each run of a comparison, without training or writing anything.

    The arguments are the same as those of `compare`.
    """
    loaded = _with_optimizers(loaded, optimizers)
    folder, results, runs = _folder(loaded, output), list[RunResult](), list[Run]()
    while due := due_runs(loaded, folder, results):
        runs += due
        ended = [_ended(run) for run in due]
        results += [result for result in ended if result is not None]
        if None in ended:
            break  # the later runs depend on their results
    # SLURM is asked once for all jobs that are known.
    jobs = [noted_job(run.folder) or (0, None) for run in runs]
    return [progress_of(run, job) for run, (_, job) in zip(runs, jobs, strict=True)]


def _ended(run: Run) -> RunResult | None:
    """Return the result of a run that a comparison went on from: trained to its end, or failed."""
    result = run.finished()
    if result is None and (run.folder / ERROR_LOG).exists():
        result = run.stopped("failed")
    return result


def _folder(loaded: LoadedExperiment, output: str | Path | None) -> Path:
    if output is not None:
        return Path(output)
    # Equal settings give the same folder, so a repeated command continues there.
    return Path("aida_runs", f"{loaded.name}-{settings_digest(loaded.config)}")


def due_runs(
    loaded: LoadedExperiment,
    folder: Path,
    results: Sequence[RunResult] = (),
    keep_checkpoints: bool = False,
) -> list[Run]:
    """Return the runs of a comparison that can be trained now, from the results so far."""
    experiment = loaded.experiment
    chosen = choose_optimizers(experiment.optimizers, experiment.optimizer_options)
    return [
        Run(loaded, choice, seed, run_folder(folder, choice.label, seed), keep_checkpoints)
        for choice, seed in next_runs(chosen, experiment, results)
    ]


def _train_all(
    loaded: LoadedExperiment, folder: Path, keep_checkpoints: bool, execute: _Executor
) -> list[RunResult]:
    # Labels, paths and values come from the user, and a pipe needs unbroken lines.
    console = Console(markup=False, soft_wrap=True)
    results: list[RunResult] = []
    found: Findings | None = None
    interrupt: KeyboardInterrupt | None = None
    try:
        while plan := due_runs(loaded, folder, results, keep_checkpoints):
            _announce(plan, console)
            before, ended = results, dict[int, RunResult]()
            with contextlib.closing(execute(plan, console)) as runs:
                for number, result in runs:
                    ended[number] = result
                    results = [*before, *(ended[key] for key in sorted(ended))]
                    found = findings_of(loaded.experiment, results, folder)
                    write_results(found, folder)
            if any(result.status == "interrupted" for result in results):
                break
            assert len(ended) == len(plan)
    except KeyboardInterrupt as error:
        interrupt = error
    if found is not None:
        print_sheets(found, console)
        for problem in draw(found, folder):
            console.print(f"There is {problem}")
    console.print(f"Results, figures and event files: {folder}", highlight=False)
    console.print(f"tensorboard --logdir {folder}", highlight=False)
    if interrupt is not None:
        raise interrupt
    return results


def _announce(plan: Sequence[Run], console: Console) -> None:
    left = sum(run.finished() is None for run in plan)
    if left:
        epochs = plan[0].loaded.trainer_options["max_epochs"]
        seeds = ", ".join(str(seed) for seed in dict.fromkeys(run.seed for run in plan))
        console.print(f"Runs: {len(plan)}, each of {epochs} epochs (seeds: {seeds}); {left} to go")


def _train_in_turn(plan: Sequence[Run], console: Console) -> Generator[tuple[int, RunResult]]:
    """Train the runs one by one in this process."""
    forecast = [Forecast(sum(run.finished() is None for run in plan))]
    for number, run in enumerate(plan):
        title = f"[{number + 1}/{len(plan)}] {run.title}"
        result = run.finished()
        if result is not None:
            console.print(f"{title}: finished before, not run again")
        else:
            console.print(title, style="bold")
            try:
                result = train_run(run, forecast)
            except (KeyboardInterrupt, SystemExit):  # Lightning turns the former into the latter
                result = run.stopped("interrupted")
            forecast = []  # the forecast is printed only once
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
    # Convert them to the form of a loaded file, without tuples.
    listed = json.loads(json.dumps([asdict(method) for method in methods]))
    return replace(loaded, config={**loaded.config, "optimizers": listed})
