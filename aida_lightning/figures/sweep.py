"""A metric against the learning rate, from the tuning of each optimizer."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from aida_lightning.figures.plotting import (
    Look,
    finish_panels,
    legend_below,
    optimizer_colors,
    panels,
)
from aida_lightning.logs.curves import FloatArray
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.metric import Metric
from aida_lightning.logs.runs import LoggedRun

# The form of the rate in a comparison's labels.
_RATE = re.compile(r"\s*\blr=([\d.]+(?:e[-+]?\d+)?)(?!\S)")
_MOST_TICKS = 8


def sweep(runs: Sequence[LoggedRun], metric: Metric, look: Look | None = None) -> Figure:
    """Draw a metric against the learning rate, with a star at each optimizer's best rate.

    There is one line per optimizer. The rate comes from a run's label, such as ``Aida K=1
    lr=0.001``; the rest of the label names the optimizer. A point is the mean over the seeds of the
    value that the metric reports. With several seeds, the line has a band of one standard
    deviation. A rate at which a run diverged has no point.

    Args:
        runs: runs to draw; those whose label has no rate above 0 are omitted.
        metric: metric to draw.
        look: style of the drawing; None is the default look. The x axis is always logarithmic.

    Raises:
        EventsError: no run has both a rate in its label and the metric in its logs.
    """
    points: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        found = _RATE.search(run.label)
        rate = float(found[1]) if found else 0.0
        if rate > 0 and metric.name in run.scalars:
            label = _RATE.sub("", run.label).strip()
            seeds = points.setdefault(label, {}).setdefault(rate, [])
            seeds.append(_reported(run.scalars[metric.name].values, metric))
    if not points:
        raise EventsError(
            f"no run has a learning rate (lr=…) in its label and {metric.name!r} in its logs"
        )
    figure, (axis,), _ = panels(1, 1)
    colors = optimizer_colors(points)
    better = np.nanargmax if metric.better == "max" else np.nanargmin
    scale = 100 if metric.in_percent else 1
    lines = []
    for label, by_rate in points.items():
        rates = np.array(sorted(by_rate))
        values = [scale * np.array(by_rate[rate]) for rate in rates]
        best_seed = np.max if metric.better == "max" else np.min
        over_seeds = best_seed if metric.over_seeds == "best" else np.mean
        y = np.array([over_seeds(seeds) for seeds in values])
        color, name = colors[label], label
        if np.isfinite(y).any():
            best = better(y)
            name = f"{label}, best at {rates[best]:g}"
            axis.plot(rates[best], y[best], "*", color=color, markersize=14, zorder=3)
        lines += axis.plot(rates, y, marker="o", markersize=4, color=color, label=name)
        if max(map(len, values)) > 1 and metric.over_seeds == "mean":
            std = np.array([seeds.std() for seeds in values])
            axis.fill_between(rates, y - std, y + std, color=color, alpha=0.2, linewidth=0)
    look = replace(look or Look(), log_x=True)
    if metric.in_percent and look.log_y is None:
        look = replace(look, log_y=False)
    name = metric.label + (" in %" if metric.in_percent else "")
    finish_panels([axis], 1, "learning rate", name, look)
    ticks = sorted({rate for by_rate in points.values() for rate in by_rate})
    if len(ticks) <= _MOST_TICKS:
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
    legend_below(figure, lines, 3)
    return figure


def _reported(values: FloatArray, metric: Metric) -> float:
    """Return the value of a run that the metric reports, or NaN if the run diverged."""
    if not np.isfinite(values).all():
        return np.nan
    if metric.report == "last":
        return float(values[-1])
    return float(values.max() if metric.better == "max" else values.min())
