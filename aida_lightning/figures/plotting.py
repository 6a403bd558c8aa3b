"""The elements that all figures share: colours, averages over seeds, smoothing and axes."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from aida_lightning.logs.curves import Curve, FloatArray, epochs_at
from aida_lightning.logs.runs import LoggedRun, MonitoredRun

Color = tuple[float, float, float]
XOf = Callable[[Any, Curve], FloatArray]

# Okabe and Ito's colours, distinct for any colour vision, then more by Paul Tol.
_FIXED_COLORS = {
    "aida": "#D55E00",
    "aida k=2": "#D55E00",
    "aida k=1": "#E69F00",
    "adabelief": "#0072B2",
    "adam+": "#009E73",
}
_OTHER_COLORS = ["#CC79A7", "#56B4E9", "#332288", "#882255", "#999933", "#44AA99"]
_OTHER_COLORS += ["#666666", "#AA4499", "#117733", "#000000", "#DDCC77"]
# The share of a panel's height that a line takes up.
_LINE_WIDTH = 0.005
# For coinciding lines: the dash length in line widths, and the growth of markers in points.
_DASH, _RING = 5.0, 4.0
_LEGEND_WIDTH = 60  # characters
# Values within this factor of each other are easiest to read on a linear axis.
_LINEAR_RANGE = 15.0


@dataclass(frozen=True)
class Look:
    """The style of a drawing.

    Args:
        layers: layers to show: numbers from 1 at the input, or names or globs of names, as figures
            and tables show them or as the parameters are named. None shows the paper's layers.
        smooth: weight of the past in an exponential moving average, in [0, 1), as in TensorBoard's
            slider.
        log_x: whether the x axis is logarithmic.
        log_y: whether the y axis is logarithmic; None makes it logarithmic where a linear axis
            would hide details.
    """

    layers: Sequence[str] | None = None
    smooth: float = 0.0
    log_x: bool = False
    log_y: bool | None = None


def optimizer_colors(labels: Iterable[str]) -> dict[str, Color]:
    """Choose a separate colour for each label; the paper's methods have fixed colours."""
    labels = list(labels)
    colors: dict[str, str] = {}
    for label in labels:
        color = _FIXED_COLORS.get(label.lower())
        if color is not None and color not in colors.values():
            colors[label] = color
    free = [color for color in _OTHER_COLORS if color not in colors.values()]
    free += [color for color in _FIXED_COLORS.values() if color not in {*colors.values(), *free}]
    others = [label for label in labels if label not in colors]
    colors |= {label: free[index % len(free)] for index, label in enumerate(others)}
    return {label: to_rgb(colors[label]) for label in labels}


def shades(color: Color, count: int) -> list[Color]:
    """Make shades of a colour from light to dark; the colour itself lies at two thirds."""
    found = []
    for position in np.linspace(0.0, 1.0, count) if count > 1 else [2 / 3]:
        if position <= 2 / 3:
            weight, towards = 0.7 * (1 - position * 1.5), 1.0
        else:
            weight, towards = 0.55 * (position * 3 - 2), 0.0
        red, green, blue = (part * (1 - weight) + towards * weight for part in color)
        found.append((float(red), float(green), float(blue)))
    return found


def smoothed(values: FloatArray, weight: float) -> FloatArray:
    """Return the exponential moving average, corrected for its bias towards 0 at the start.

    Example:
        >>> smoothed(np.array([1.0, 1.0, 4.0]), 0.5).round(3).tolist()
        [1.0, 1.0, 2.714]
    """
    average, seen, result = 0.0, 0.0, np.array(values, dtype=np.float64)
    for index, value in enumerate(values):
        if np.isfinite(value):
            average = weight * average + (1 - weight) * float(value)
            seen = weight * seen + (1 - weight)
            result[index] = average / seen
    return result


def marker(values: FloatArray, shape: str = "o") -> str:
    """Return a marker for a line of a single point, or no marker for other lines."""
    return shape if np.isfinite(values).sum() == 1 else ""


def over_seeds(
    curves: Sequence[tuple[FloatArray, FloatArray]],
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Average curves; each is interpolated between its own points and never extrapolated.

    Args:
        curves: x and y of each curve; where y is not finite, there is no point.

    Returns:
        The x of all points, and the mean and the standard deviation there. The deviation of a
        single curve is 0.
    """
    clean = [(x, np.where(np.isfinite(y), y, np.nan)) for x, y in curves]
    if len(clean) == 1:
        return *clean[0], np.zeros_like(clean[0][1])
    known = [(x[keep], y[keep]) for x, y in clean if (keep := np.isfinite(y)).any()]
    if not known:
        return np.empty(0), np.empty(0), np.empty(0)
    grid = np.unique(np.concatenate([x for x, _ in known]))
    values = np.array([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in known])
    return grid, np.nanmean(values, axis=0), np.nanstd(values, axis=0)


def x_axis(runs: Sequence[LoggedRun] | Sequence[MonitoredRun]) -> tuple[str, XOf]:
    """Return the axis's name and a function for a curve's x: epochs if all runs have them."""
    if any(run.epoch is None for run in runs):
        return "optimizer step", lambda run, curve: curve.steps.astype(np.float64)
    return "epoch", lambda run, curve: epochs_at(curve.steps, run.epoch)


def panels(count: int, columns: int) -> tuple[Figure, list[Axes], int]:
    """Return a figure, its panels of equal size and scale, and the number of panels per row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(6.0, 1.8 + 3.0 * columns), 1.2 + 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, list(axes[:count]), columns


def finish_panels(axes: Sequence[Axes], columns: int, x_name: str, y_name: str, look: Look) -> None:
    """Label the panels, and make the y axis logarithmic where a linear one hides details."""
    drawn = [
        np.concatenate(
            [np.empty(0), *(np.asarray(line.get_ydata(), dtype=float) for line in axis.get_lines())]
        )
        for axis in axes
    ]
    positive = np.concatenate([values[np.isfinite(values) & (values > 0)] for values in drawn])
    spread = len(positive) > 0 and positive.max() > _LINEAR_RANGE * positive.min()
    # A logarithmic axis without anything on it has no limits.
    logarithmic = spread if look.log_y is None else look.log_y and len(positive) > 0
    for index, (axis, values) in enumerate(zip(axes, drawn, strict=True)):
        if logarithmic:
            axis.set_yscale("log", nonpositive="mask")
        if look.log_x:
            axis.set_xscale("log", nonpositive="mask")
        if not np.any(np.isfinite(values)):
            axis.text(0.5, 0.5, "nothing to draw", transform=axis.transAxes, ha="center")
        elif logarithmic and not np.any(values > 0):
            axis.text(0.5, 0.5, "zero throughout", transform=axis.transAxes, ha="center")
        axis.grid(True, which="major", color="0.9", linewidth=0.8)
        if not look.log_x and axis.get_xlim()[1] > 2:
            axis.xaxis.set_major_locator(
                MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True)
            )
        axis.spines[["top", "right"]].set_visible(False)
        if index + columns >= len(axes):  # no panel is below it
            axis.tick_params(labelbottom=True)
            axis.set_xlabel(x_name)
        if index % columns == 0:
            axis.set_ylabel(y_name)


def tell_apart(axes: Sequence[Axes]) -> None:
    """Alternate the dashes of coinciding lines, and draw larger markers for the lower lines."""
    for axis in axes:
        axis.autoscale_view()
        in_panel = axis.transScale + axis.transLimits  # from 0 to 1
        groups: list[list[tuple[Line2D, FloatArray]]] = []
        for line in axis.get_lines():
            points = in_panel.transform(line.get_xydata())
            points = points[np.isfinite(points).all(axis=1)].T
            group = next((group for group in groups if _coincide(group[0][1], points)), [])
            group.append((line, points))
            if len(group) == 1:
                groups.append(group)
        for group in groups:
            for place, (line, _) in enumerate(group if len(group) > 1 else []):
                dash = _DASH if line.get_linestyle() == "-" else 0.6 * _DASH
                line.set_linestyle((place * _DASH, (dash, len(group) * _DASH - dash)))
                line.set_markersize(line.get_markersize() + _RING * (len(group) - 1 - place))


def _coincide(one: FloatArray, other: FloatArray) -> bool:
    """Return whether lines, given as x and y, are closer to each other than their width."""
    if not one.size or not other.size:
        return False
    apart = np.abs(np.interp(one[0], other[0], other[1], left=np.nan, right=np.nan) - one[1])
    known = apart[np.isfinite(apart)]
    return known.size > 0 and bool(known.max() < _LINE_WIDTH)


def legend_below(figure: Figure, handles: Sequence[Line2D], columns: int) -> None:
    """Put a legend below the panels, in as many columns as fit, at most ``columns``."""
    labels = [textwrap.fill(str(handle.get_label()), _LEGEND_WIDTH) for handle in handles]
    for ncols in range(min(len(handles), columns), 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=ncols, fontsize="small"
        )
        if ncols == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()
