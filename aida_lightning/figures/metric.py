"""Figures 3, 7 and 8 of the paper: a metric over the epochs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aida_lightning.figures.plotting import (
    Look,
    finish_panels,
    legend_below,
    marker,
    optimizer_colors,
    over_seeds,
    panels,
    smoothed,
    tell_apart,
    x_axis,
)
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.metric import Metric
from aida_lightning.logs.runs import LoggedRun

# In runs of at least this many epochs, the frame follows the epochs after the first tenth.
_LONG = 20


def metric_curves(
    groups: Mapping[str, Sequence[LoggedRun]], metric: Metric, look: Look | None = None
) -> Figure:
    """Draw a metric over the epochs: one line per optimizer, one panel per group of runs.

    Lines are means over the seeds. With several seeds, each line has a band of one standard
    deviation. In long runs, the frame fits the last nine tenths, so the steep start may leave it.

    Args:
        groups: runs of each panel, by the panel's title.
        metric: metric to draw.
        look: style of the drawing; None is the default look.

    Raises:
        EventsError: no run logged the metric.
    """
    look = look or Look()
    logged = {
        title: [run for run in runs if metric.name in run.scalars] for title, runs in groups.items()
    }
    runs = [run for group in logged.values() for run in group]
    if not runs:
        raise EventsError(f"no run has a scalar {metric.name!r}")
    colors = optimizer_colors(dict.fromkeys(run.label for run in runs))
    figure, axes, columns = panels(len(logged), 3)
    x_name, x_of = x_axis(runs)
    scale = 100 if metric.in_percent else 1
    for axis, (title, group) in zip(axes, logged.items(), strict=True):
        axis.set_title(title, fontsize="medium")
        for label in dict.fromkeys(run.label for run in group):
            seeds = [(run, run.scalars[metric.name]) for run in group if run.label == label]
            curves = [
                (x_of(run, curve), scale * smoothed(curve.values, look.smooth))
                for run, curve in seeds
            ]
            x, mean, std = over_seeds(curves)
            color = colors[label]
            axis.plot(x, mean, marker=marker(mean), color=color, linewidth=1.5, label=label)
            if len(curves) > 1:
                axis.fill_between(x, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)
    name = metric.label + (" in %" if metric.in_percent else "")
    linear = replace(look, log_y=False) if metric.in_percent and look.log_y is None else look
    finish_panels(axes, columns, x_name, name, linear)
    _frame(axes)
    handles = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    legend_below(figure, list(handles.values()), 2 * columns + 1)
    tell_apart(axes)
    return figure


def _frame(axes: Sequence[Axes]) -> None:
    lines = [line for axis in axes for line in axis.get_lines()]
    points = [np.asarray(line.get_xydata(), dtype=np.float64) for line in lines]
    if max(map(len, points)) < _LONG:
        return
    end = max(float(x.max()) for x, _ in (p.T for p in points))
    late = np.concatenate([y[(x > end / 10) & np.isfinite(y)] for x, y in (p.T for p in points)])
    if len(late) and axes[0].get_yscale() == "linear":
        margin = 0.05 * (late.max() - late.min()) or 1.0
        axes[0].set_ylim(late.min() - margin, late.max() + margin)
