"""The paper's figures, drawn by their names from event files alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context

from aida_lightning.figures import FigureName
from aida_lightning.figures.heatmap import heatmap
from aida_lightning.figures.metric import metric_curves
from aida_lightning.figures.plotting import Look
from aida_lightning.figures.projections import fig5
from aida_lightning.figures.stepsizes import fig1, fig2, fig4, fig6
from aida_lightning.figures.sweep import sweep
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.metric import Metric
from aida_lightning.logs.runs import (
    LoggedRun,
    choose_labels,
    folder_titles,
    monitored_runs,
    read_runs,
)

_STEPSIZE_FIGURES = {"fig1": fig1, "fig2": fig2, "fig4": fig4, "fig6": fig6, "heatmap": heatmap}
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
    """Draw figures from the event files below some folders, all runs side by side.

    Args:
        logdirs: folders that hold runs, at any depth.
        output: the folder to write to, which is made if need be.
        figures: the figures to draw.
        formats: endings of files that matplotlib writes: png, svg, pdf.
        optimizers: globs of the labels to show, in any case; None shows all.
        metric: what Figures 3, 7 and 8 and the sweep show; None is the validation accuracy.
        look: how to draw; None is the default look.

    Returns:
        The paths of the pictures.

    Raises:
        EventsError: there is no such run or folder, a figure has nothing to show, or the output
            cannot be written.
    """
    runs = _chosen(read_runs(logdirs), optimizers)
    # A panel each, in which labels need not tell the folders apart.
    groups = {title: read_runs([folder]) for folder, title in folder_titles(logdirs).items()}
    shown = {run.path for run in runs}
    groups = {name: [run for run in group if run.path in shown] for name, group in groups.items()}
    metric = metric or Metric()
    return write_figures(runs, groups, Path(output), figures, formats, metric, look)


def write_figures(
    runs: Sequence[LoggedRun],
    groups: Mapping[str, Sequence[LoggedRun]],
    output: Path,
    figures: Sequence[FigureName],
    formats: Sequence[str],
    metric: Metric,
    look: Look | None,
) -> list[Path]:
    """Draw figures of runs that were read already, and write them.

    Args:
        runs: all runs.
        groups: the runs of each panel of Figures 3, 7 and 8, by the panel's title.
        output: the folder to write to, which is made if need be.
        figures: the figures to draw.
        formats: endings of files that matplotlib writes.
        metric: what Figures 3, 7 and 8 and the sweep show.
        look: how to draw; None is the default look.

    Returns:
        The paths of the pictures.

    Raises:
        EventsError: a figure has nothing to show, or the output cannot be written.
    """
    paths = []
    for name in figures:
        if name in _CURVES:
            figure = metric_curves(groups, metric, look)
        elif name == "fig5":
            figure = fig5(runs)
        elif name == "sweep":
            figure = sweep(runs, metric, look)
        else:
            figure = _STEPSIZE_FIGURES[name](monitored_runs(runs), look)
        for ending in formats:
            paths.append(output / f"{name}.{ending}")
            try:
                output.mkdir(parents=True, exist_ok=True)
                with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):  # text as text
                    figure.savefig(paths[-1], dpi=150)
            except OSError as error:
                raise EventsError(f"output: {error}") from error
    return paths


def _chosen(runs: Sequence[LoggedRun], optimizers: Sequence[str] | None) -> Sequence[LoggedRun]:
    if optimizers is None:
        return runs
    labels = choose_labels([run.label for run in runs], optimizers)
    return [run for run in runs if run.label in labels]
