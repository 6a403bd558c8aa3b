"""A picture of the adaptive stepsizes of all layers, for networks of any depth."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from aida_lightning.figures.layers import (
    by_label,
    check_logged,
    layer_line,
    pick_layers,
    short_name,
    weights_of,
)
from aida_lightning.figures.plotting import Look, XOf, x_axis
from aida_lightning.logs import tags
from aida_lightning.logs.curves import FloatArray
from aida_lightning.logs.runs import MonitoredRun
from aida_lightning.logs.spread import evenly

_ROWS = {"mean": tags.MEAN, "standard deviation": tags.STD, "standard deviation / mean": None}
_MOST_TICKS = 20
_TITLE_WIDTH = 30  # characters
_LAYER_HEIGHT = 0.16  # inches, as long as the layers fit into a panel
_PANEL_HEIGHTS = (1.4, 4.0)


def heatmap(runs: Sequence[MonitoredRun], look: Look | None = None) -> Figure:
    """Draw the mean, the spread and their ratio as colours, by layer (rows) and step (columns).

    There is one column of panels per optimizer, and one logarithmic colour scale per row of panels.
    A panel is grey where a layer has no point or its value is 0.

    Args:
        runs: runs to draw; the seeds of one optimizer are averaged.
        look: style of the drawing. By default, all weights are shown. All options except ``log_y``
            apply.

    Raises:
        EventsError: no run has a mean or a standard deviation, or a layer does not exist.
    """
    look = look or Look()
    check_logged(runs, [tags.MEAN, tags.STD])
    optimizers = by_label(runs)
    layers = pick_layers(runs, look, range(1, len(weights_of(runs)) + 1))
    x_name, x_of = x_axis(runs)
    low, high = _PANEL_HEIGHTS
    height = min(max(_LAYER_HEIGHT * len(layers), low), high)
    figure = Figure(
        figsize=(max(6.5, 2.6 + 3.2 * len(optimizers)), 1.0 + 3 * (height + 0.4)),
        layout="constrained",
    )
    axes = figure.subplots(3, len(optimizers), sharex=True, sharey=True, squeeze=False)
    grids = [_grids(seeds, [*layers.values()], x_of, look) for seeds in optimizers.values()]
    for row, name in enumerate(_ROWS):
        _draw_row(figure, axes[row], [(x, values[name]) for x, values in grids], name)
    for axis, label in zip(axes[0], optimizers, strict=True):
        axis.set_title(textwrap.fill(label, _TITLE_WIDTH), fontweight="bold", fontsize="medium")
    places = evenly(len(layers), _MOST_TICKS)
    names = [f"{number}  {short_name(layer)}" for number, layer in layers.items()]
    axes[0, 0].set_yticks([place + 0.5 for place in places], [names[place] for place in places])
    axes[0, 0].set_ylim(len(layers), 0)
    for axis in axes[:, 0]:
        axis.tick_params(axis="y", labelsize="x-small")
    for axis in axes[-1]:
        axis.set_xlabel(x_name)
        if look.log_x:
            axis.set_xscale("log", nonpositive="mask")
    figure.suptitle("Adaptive stepsizes of each layer")
    return figure


def _grids(
    seeds: Sequence[MonitoredRun], layers: Sequence[str], x_of: XOf, look: Look
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Return the x of all points, and an array of shape ``(layers, points)`` per row of panels."""
    lines = {
        tag: [layer_line(seeds, layer, tag, x_of, look) for layer in layers]
        for tag in (tags.MEAN, tags.STD)
    }
    x = np.unique(np.concatenate([line[0] for some in lines.values() for line in some]))
    found = {}
    for tag, some in lines.items():
        found[tag] = np.full((len(layers), len(x)), np.nan)
        for row, (at, values) in zip(found[tag], some, strict=True):
            row[np.searchsorted(x, at)] = values
    mean, std = found[tags.MEAN], found[tags.STD]
    with np.errstate(divide="ignore", invalid="ignore"):
        return x, dict(zip(_ROWS, (mean, std, std / mean), strict=True))


def _draw_row(
    figure: Figure, axes: Sequence[Axes], grids: Sequence[tuple[FloatArray, FloatArray]], name: str
) -> None:
    shown = [np.where(np.isfinite(v) & (v > 0), v, np.nan) for _, v in grids]
    known = np.concatenate([values[np.isfinite(values)] for values in shown])
    norm = LogNorm(known.min(), known.max()) if known.size else None
    mesh = None
    for axis, (x, _), values in zip(axes, grids, shown, strict=True):
        axis.set_facecolor("0.85")
        if norm is not None and x.size:
            rows = np.arange(len(values) + 1)
            mesh = axis.pcolormesh(_edges(x), rows, values, norm=norm, rasterized=True)
    if mesh is not None:
        bar = figure.colorbar(mesh, ax=list(axes), label=name)
        for ticks in (bar.ax.yaxis.set_major_formatter, bar.ax.yaxis.set_minor_formatter):
            ticks(LogFormatter(minor_thresholds=(1.5, 0.5)))
    else:
        for axis in axes:
            axis.text(0.5, 0.5, f"no {name} above 0", transform=axis.transAxes, ha="center")


def _edges(x: FloatArray) -> FloatArray:
    """Return the edges of the cells around points, halfway between neighbours."""
    if len(x) == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate([[x[0]], middle, [x[-1]]])
