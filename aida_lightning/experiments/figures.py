"""The paper's figures by name, drawn from event files alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from aida_lightning.experiments.curve_figures import metric_curves
from aida_lightning.experiments.events import EventsError
from aida_lightning.experiments.experiment import Experiment, FigureName, Metric
from aida_lightning.experiments.plotting import Look
from aida_lightning.experiments.projections import fig5
from aida_lightning.experiments.report import representatives
from aida_lightning.experiments.results import RunResult
from aida_lightning.experiments.runs import (
    LoggedRun,
    choose_labels,
    folder_titles,
    monitored_runs,
    read_runs,
)
from aida_lightning.experiments.stepsize_figures import fig1, fig2, fig4, fig6

_STEPSIZE_FIGURES = {"fig1": fig1, "fig2": fig2, "fig4": fig4, "fig6": fig6}
_CURVES = ("fig3", "fig7", "fig8")
DEFAULT_FIGURES: tuple[FigureName, ...] = ("fig1", "fig2", "fig6")


def draw_figures(
    logdirs: Sequence[str | Path],
    output: str | Path,
    figures: Sequence[FigureName] = DEFAULT_FIGURES,
    formats: Sequence[str] = ("png",),
    optimizers: Sequence[str] | None = None,
    metric: Metric | None = None,
    look: Look | None = None,
) -> list[Path]:
    """Draws figures from the event files below some folders, all runs side by side.

    Args:
        logdirs: Folders that hold runs, at any depth.
        output: The folder to write to; made if need be.
        figures: Which ones.
        formats: Endings of files that matplotlib writes: png, svg, pdf.
        optimizers: Globs of the labels to show, in any case; None for all.
        metric: What Figures 3, 7 and 8 show; by default the validation accuracy.
        look: How to draw.

    Returns:
        The pictures written.

    Raises:
        EventsError: If there is no such run, a folder does not exist, or the output cannot be
            written.
    """
    runs = _chosen(read_runs(logdirs), optimizers)
    # A panel each, in which labels need not tell the folders apart.
    groups = {title: read_runs([folder]) for folder, title in folder_titles(logdirs).items()}
    shown = {run.path for run in runs}
    groups = {name: [run for run in group if run.path in shown] for name, group in groups.items()}
    metric = metric or Metric()
    return _write(runs, groups, Path(output), figures, formats, metric, look)


def draw_experiment(
    experiment: Experiment, results: Sequence[RunResult], folder: Path
) -> tuple[list[Path], list[str]]:
    """Draws an experiment's figures from the runs of a comparison.

    Of a method with a grid, the point that stands for it is drawn, under the method's label.

    Args:
        experiment: The experiment.
        results: The runs.
        folder: The comparison's.

    Returns:
        The pictures written, and what could not be drawn for want of what.
    """
    shown = {
        (folder / run.label.replace(" ", "_") / f"seed_{run.seed}").resolve(): method
        for method, runs in representatives(results, experiment.metric).items()
        for run in runs
    }
    names = {result.metric for result in results}
    metric = experiment.metric
    if len(names) == 1 and names != {metric.name}:
        metric = replace(metric, name=names.pop(), title=f"{metric.label}, by a proxy")
    paths: list[Path] = []
    problems: list[str] = []
    try:
        found = {run.path: run for run in read_runs([folder])}
    except EventsError as error:
        return [], [str(error)]
    runs = [replace(found[path], label=shown[path]) for path in shown if path in found]
    for name in experiment.figures:
        try:
            paths += _write(runs, {"": runs}, folder, [name], ("png",), metric, None)
        except EventsError as error:
            problems.append(f"no {name}: {error}")
    return paths, problems


def _write(
    runs: Sequence[LoggedRun],
    groups: Mapping[str, Sequence[LoggedRun]],
    output: Path,
    figures: Sequence[FigureName],
    formats: Sequence[str],
    metric: Metric,
    look: Look | None,
) -> list[Path]:
    paths = []
    for name in figures:
        if name in _CURVES:
            figure = metric_curves(groups, metric, look)
        elif name == "fig5":
            figure = fig5(runs)
        else:
            figure = _STEPSIZE_FIGURES[name](monitored_runs(runs), look)
        for ending in formats:
            paths.append(output / f"{name}.{ending}")
            try:
                output.mkdir(parents=True, exist_ok=True)
                figure.savefig(paths[-1], dpi=150)
            except OSError as error:
                raise EventsError(f"output: {error}") from error
    return paths


def _chosen(runs: Sequence[LoggedRun], optimizers: Sequence[str] | None) -> Sequence[LoggedRun]:
    if optimizers is None:
        return runs
    labels = choose_labels([run.label for run in runs], optimizers)
    return [run for run in runs if run.label in labels]
