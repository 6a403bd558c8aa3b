"""The paper's figures of the adaptive stepsizes, drawn from event files alone."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from aida_lightning.experiments.events import (
    Curve,
    FloatArray,
    MonitoredRun,
    epochs_at,
    read_monitored_runs,
)

Statistic = Literal["mean", "std"]
Color = tuple[float, float, float]
_STYLES: dict[Statistic, str] = {"mean": "-", "std": "--"}

# Okabe and Ito's colours, told apart with any colour vision, then more of Paul Tol's.
_VERMILLION, _ORANGE, _BLUE, _GREEN = "#D55E00", "#E69F00", "#0072B2", "#009E73"
_FIXED_COLORS = {
    "aida": _VERMILLION,
    "aida k=2": _VERMILLION,
    "aida k=1": _ORANGE,
    "adabelief": _BLUE,
    "adam+": _GREEN,
}
_OTHER_COLORS = ["#CC79A7", "#56B4E9", "#332288", "#882255", "#999933", "#44AA99"]
_OTHER_COLORS += ["#666666", "#AA4499", "#117733", "#000000", "#DDCC77"]

_TOP_LAYERS = 10
_FIG6_LAYERS = (2, 6, 11)
# Values within this factor of each other are read best on a linear axis.
_LINEAR_RANGE = 15.0


@dataclass(frozen=True)
class _Series:
    """One curve ready to draw: where, what, and nothing to draw where a value is not finite."""

    x: FloatArray
    y: FloatArray


def draw_figures(logdirs: Sequence[str | Path], output: str | Path) -> list[Path]:
    """Draws `fig1.png`, `fig2.png` and `fig6.png` from the event files below some folders.

    Args:
        logdirs: Folders that hold runs with the `StepsizeMonitor`, at any depth.
        output: The folder to write to; made if need be.

    Returns:
        The pictures written.

    Raises:
        EventsError: If there is no such run, or a folder does not exist.
    """
    runs = read_monitored_runs(logdirs)
    Path(output).mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in (("fig1", fig1), ("fig2", fig2), ("fig6", fig6)):
        paths.append(Path(output) / f"{name}.png")
        draw(runs).savefig(paths[-1], dpi=150)
    return paths


def fig1(runs: Sequence[MonitoredRun]) -> Figure:
    """Draws the standard deviation of each layer's adaptive stepsizes, one panel an optimizer.

    Figure 1 of arXiv:2203.13273, for the 10 layers closest to the output.
    """
    return _one_panel_an_optimizer(runs, "std", "standard deviation of the adaptive stepsizes")


def fig2(runs: Sequence[MonitoredRun]) -> Figure:
    """Draws the mean of each layer's adaptive stepsizes, one panel an optimizer.

    Figure 2 of arXiv:2203.13273, for the 10 layers closest to the output.
    """
    return _one_panel_an_optimizer(runs, "mean", "mean of the adaptive stepsizes")


def fig6(runs: Sequence[MonitoredRun]) -> Figure:
    """Draws mean and standard deviation of all optimizers, one panel a layer.

    Figure 6 of arXiv:2203.13273: layers 2, 6 and 11, or the first, the middle and the last of a
    model that has fewer.
    """
    optimizers = _by_label(runs)
    colors = optimizer_colors(optimizers)
    layers = _weight_layers(runs)
    numbers = sorted(
        {*_FIG6_LAYERS}
        if len(layers) >= max(_FIG6_LAYERS)
        else {1, (len(layers) + 1) // 2, len(layers)}
    )
    figure = Figure(figsize=(max(7.0, 1.6 + 3.4 * len(numbers)), 4.6), layout="constrained")
    axes = figure.subplots(1, len(numbers), sharex=True, sharey=True, squeeze=False)[0]
    for axis, number in zip(axes, numbers, strict=True):
        layer = layers[number - 1]
        axis.set_title(f"layer {number}: {_short_name(layer)}", fontsize="medium")
        for label, seeds in optimizers.items():
            for statistic, style in _STYLES.items():
                series = _average(seeds, layer, statistic, _x_of(runs))
                axis.plot(series.x, series.y, style, color=colors[label], linewidth=1.5)
    _finish(axes, len(numbers), runs, "adaptive stepsize")
    handles = [Line2D([], [], color=color, label=label) for label, color in colors.items()]
    handles += [
        Line2D([], [], color="0.25", linestyle="-", label="mean"),
        Line2D([], [], color="0.25", linestyle="--", label="standard deviation"),
    ]
    columns = min(len(handles), 2 * len(numbers))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize="small")
    figure.suptitle("Mean and standard deviation of the adaptive stepsizes")
    return figure


def optimizer_colors(labels: Iterable[str]) -> dict[str, Color]:
    """Chooses a colour for each label: always the same for the paper's, one of its own each."""
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


def _one_panel_an_optimizer(
    runs: Sequence[MonitoredRun], statistic: Statistic, name: str
) -> Figure:
    optimizers = _by_label(runs)
    colors = optimizer_colors(optimizers)
    columns = min(len(optimizers), 4)
    rows = -(-len(optimizers) // columns)
    size = (max(6.0, 1.8 + 3.0 * columns), 1.2 + 3.2 * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis in axes[len(optimizers) :]:
        axis.set_visible(False)
    all_layers = _weight_layers(runs)
    shown = all_layers[-_TOP_LAYERS:]
    for axis, (label, seeds) in zip(axes, optimizers.items(), strict=False):
        axis.set_title(label, color=colors[label], fontweight="bold")
        for layer, shade in zip(shown, _ramp(colors[label], len(shown)), strict=True):
            series = _average(seeds, layer, statistic, _x_of(runs))
            axis.plot(series.x, series.y, color=shade, linewidth=1.4)
    _finish(list(axes[: len(optimizers)]), columns, runs, name)
    handles = [
        Line2D([], [], color=shade, linewidth=2.5, label=f"{number}  {_short_name(layer)}")
        for shade, (number, layer) in zip(
            _ramp(to_rgb("0.5"), len(shown)),
            list(enumerate(all_layers, start=1))[-_TOP_LAYERS:],
            strict=True,
        )
    ]
    figure.legend(
        handles=handles,
        title="layer, light: input side,\ndark: output side",
        loc="outside right center",
        fontsize="small",
        title_fontsize="small",
    )
    figure.suptitle(f"{name[0].upper()}{name[1:]}")
    return figure


def _finish(axes: Sequence[Axes], columns: int, runs: Sequence[MonitoredRun], name: str) -> None:
    """Labels the panels, and gives them a logarithmic y axis where a linear one would hide much."""
    drawn = [
        np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axis.get_lines()])
        for axis in axes
    ]
    positive = np.concatenate([values[values > 0] for values in drawn])
    logarithmic = len(positive) > 0 and positive.max() > _LINEAR_RANGE * positive.min()
    for index, (axis, values) in enumerate(zip(axes, drawn, strict=True)):
        if logarithmic:
            axis.set_yscale("log", nonpositive="mask")
        if not np.any(np.isfinite(values)):
            axis.text(0.5, 0.5, "nothing to draw", transform=axis.transAxes, ha="center")
        elif logarithmic and not np.any(values > 0):
            axis.text(0.5, 0.5, "zero throughout", transform=axis.transAxes, ha="center")
        axis.grid(True, which="major", color="0.9", linewidth=0.8)
        if axis.get_xlim()[1] > 2:
            axis.xaxis.set_major_locator(
                MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True)
            )
        axis.spines[["top", "right"]].set_visible(False)
        if index + columns >= len(axes):  # nothing below it
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("epoch" if _all_have_epochs(runs) else "optimizer step")
        if index % columns == 0:
            axis.set_ylabel(name)


def _average(
    seeds: Sequence[MonitoredRun],
    layer: str,
    statistic: Statistic,
    x_of: Callable[[MonitoredRun, Curve], FloatArray],
) -> _Series:
    """The mean over the seeds, each interpolated between its own points and nowhere beyond them."""
    curves = [
        _Series(x_of(run, curve), np.where(np.isfinite(curve.values), curve.values, np.nan))
        for run in seeds
        if (curve := getattr(run, statistic).get(layer)) is not None
    ]
    if len(curves) == 1:
        return curves[0]
    finite = [np.isfinite(curve.y) for curve in curves]
    known = [(c.x[keep], c.y[keep]) for c, keep in zip(curves, finite, strict=True) if keep.any()]
    if not known:
        return _Series(np.empty(0), np.empty(0))
    grid = np.unique(np.concatenate([x for x, _ in known]))
    values = np.array([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in known])
    return _Series(grid, np.nanmean(values, axis=0))


def _by_label(runs: Sequence[MonitoredRun]) -> dict[str, list[MonitoredRun]]:
    grouped: dict[str, list[MonitoredRun]] = {}
    for run in runs:
        grouped.setdefault(run.label, []).append(run)
    return grouped


def _weight_layers(runs: Sequence[MonitoredRun]) -> list[str]:
    """The weight tensors from input to output; all layers where no name tells which they are."""
    layers = list(dict.fromkeys(layer for run in runs for layer in run.layers))
    return [name for name in layers if name.rpartition(".")[2].startswith("weight")] or layers


def _short_name(layer: str) -> str:
    return layer.removeprefix("model.").removesuffix(".weight")


def _all_have_epochs(runs: Sequence[MonitoredRun]) -> bool:
    return all(run.epoch is not None for run in runs)


def _x_of(runs: Sequence[MonitoredRun]) -> Callable[[MonitoredRun, Curve], FloatArray]:
    if not _all_have_epochs(runs):
        return lambda run, curve: curve.steps.astype(np.float64)
    return lambda run, curve: (
        epochs_at(curve.steps, run.epoch)
        if run.epoch is not None
        else curve.steps.astype(np.float64)
    )


def _ramp(color: Color, count: int) -> list[Color]:
    """Shades of a colour from light to dark, the colour itself two thirds of the way."""
    shades = []
    for position in np.linspace(0.0, 1.0, count) if count > 1 else [2 / 3]:
        if position <= 2 / 3:
            weight, towards = 0.7 * (1 - position * 1.5), 1.0
        else:
            weight, towards = 0.55 * (position * 3 - 2), 0.0
        red, green, blue = (part * (1 - weight) + towards * weight for part in color)
        shades.append((float(red), float(green), float(blue)))
    return shades
