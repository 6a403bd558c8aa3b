"""The paper's figures, drawn by name from event files."""

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
    """Draw figures from the event files below some folders, with all runs side by side.

    Args:
        logdirs: folders that hold runs, at any depth.
        output: folder to write to, which is created if it does not exist.
        figures: names of the figures to draw.
        formats: file extensions that matplotlib writes, such as png, svg and pdf.
        optimizers: globs of the labels to show, case-insensitive; None shows all.
        metric: metric of Figures 3, 7 and 8 and the sweep; None is the validation accuracy.
        look: style of the drawing; None is the default look.

    Returns:
        The paths of the pictures.

    Raises:
        EventsError: a folder or run does not exist, a figure has nothing to show, or the output
            cannot be written.
    """
    runs = _chosen(read_runs(logdirs), optimizers)
    # Each folder has its own panel, so labels need not distinguish the folders.
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
    """Draw figures of runs that are already read, and write them.

    Args:
        runs: all runs that the figures show.
        groups: runs of each panel of Figures 3, 7 and 8, by the panel's title.
        output: folder to write to, which is created if it does not exist.
        figures: names of the figures to draw.
        formats: file extensions that matplotlib writes.
        metric: metric of Figures 3, 7 and 8 and the sweep.
        look: style of the drawing; None is the default look.

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
                with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):  # keep text as text
                    figure.savefig(paths[-1], dpi=150)
            except OSError as error:
                raise EventsError(f"output: {error}") from error
    return paths


def _chosen(runs: Sequence[LoggedRun], optimizers: Sequence[str] | None) -> Sequence[LoggedRun]:
    if optimizers is None:
        return runs
    labels = choose_labels([run.label for run in runs], optimizers)
    return [run for run in runs if run.label in labels]
