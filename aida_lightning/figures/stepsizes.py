"""The paper's figures of the adaptive stepsizes: Figures 1, 2, 4 and 6."""

import textwrap
from collections.abc import Sequence
from typing import Literal

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aida_lightning.figures.layers import (
    by_label,
    check_logged,
    layer_line,
    pick_layers,
    short_name,
    weights_of,
)
from aida_lightning.figures.plotting import (
    Look,
    finish_panels,
    legend_below,
    marker,
    optimizer_colors,
    panels,
    shades,
    tell_apart,
    x_axis,
)
from aida_lightning.logs import tags
from aida_lightning.logs.runs import MonitoredRun
from aida_lightning.logs.spread import evenly

_STYLES: dict[str, Literal["-", "--"]] = {tags.MEAN: "-", tags.STD: "--"}
_MARKERS = {tags.MEAN: "o", tags.STD: "x"}
_NAMES = {tags.MEAN: "mean", tags.STD: "standard deviation"}
_TOP_LAYERS = 10
# For networks with more layers than the paper's, Figures 1 and 2 show all layers.
_DEEP = 12
_LEGEND_LAYERS = 12
_TITLE_WIDTH = 22  # characters
_THREE_LAYERS = (2, 6, 11)
_LAYERS_IN_A_ROW = 4


def fig1(runs: Sequence[MonitoredRun], look: Look | None = None) -> Figure:
    """Draw the standard deviation of each layer's adaptive stepsizes, one panel per optimizer.

    This is Figure 1 of arXiv:2203.13273. It shows the 10 layers closest to the output, or all
    layers of a model that has more than 12.
    """
    return _one_panel_an_optimizer(runs, tags.STD, look or Look())


def fig2(runs: Sequence[MonitoredRun], look: Look | None = None) -> Figure:
    """Draw the mean of each layer's adaptive stepsizes, one panel per optimizer.

    This is Figure 2 of arXiv:2203.13273. It shows the layers of Figure 1.
    """
    return _one_panel_an_optimizer(runs, tags.MEAN, look or Look())


def fig4(runs: Sequence[MonitoredRun], look: Look | None = None) -> Figure:
    """Draw the mean adaptive stepsize of all optimizers, one panel per layer.

    This is Figure 4 of arXiv:2203.13273. It shows layers 2, 6 and 11, or the first, middle and last
    layers of a model that has fewer than 11.
    """
    return _one_panel_a_layer(runs, [tags.MEAN], look or Look())


def fig6(runs: Sequence[MonitoredRun], look: Look | None = None) -> Figure:
    """Draw the mean and the standard deviation of all optimizers, one panel per layer.

    This is Figure 6 of arXiv:2203.13273. It shows the layers of Figure 4.
    """
    return _one_panel_a_layer(runs, [tags.MEAN, tags.STD], look or Look())


def _one_panel_an_optimizer(runs: Sequence[MonitoredRun], statistic: str, look: Look) -> Figure:
    check_logged(runs, [statistic])
    optimizers = by_label(runs)
    colors = optimizer_colors(optimizers)
    figure, axes, columns = panels(len(optimizers), 4)
    count = len(weights_of(runs))
    first = 1 if count > _DEEP else max(1, count - _TOP_LAYERS + 1)
    layers = pick_layers(runs, look, range(first, count + 1))
    x_name, x_of = x_axis(runs)
    for axis, (label, seeds) in zip(axes, optimizers.items(), strict=True):
        title = textwrap.fill(label, _TITLE_WIDTH)
        axis.set_title(title, color=colors[label], fontweight="bold")
        ramp = shades(colors[label], len(layers))
        for layer, shade in zip(layers.values(), ramp, strict=True):
            x, y = layer_line(seeds, layer, statistic, x_of, look)
            axis.plot(x, y, marker=marker(y), color=shade, linewidth=1.4)
    name = f"{_NAMES[statistic]} of the adaptive stepsizes"
    finish_panels(axes, columns, x_name, name, look)
    tell_apart(axes)
    ramp = shades(to_rgb("0.5"), len(layers))
    handles = [
        Line2D([], [], color=shade, linewidth=2.5, label=f"{number}  {short_name(layer)}")
        for shade, (number, layer) in zip(ramp, layers.items(), strict=True)
    ]
    handles = [handles[place] for place in evenly(len(handles), _LEGEND_LAYERS)]
    figure.legend(
        handles=handles,
        title="layer, light: input side,\ndark: output side",
        loc="outside right center",
        fontsize="small",
        title_fontsize="small",
    )
    figure.suptitle(f"{name[0].upper()}{name[1:]}")
    return figure


def _one_panel_a_layer(
    runs: Sequence[MonitoredRun], statistics: Sequence[str], look: Look
) -> Figure:
    check_logged(runs, statistics)
    optimizers = by_label(runs)
    colors = optimizer_colors(optimizers)
    count = len(weights_of(runs))
    enough = count >= max(_THREE_LAYERS)
    default = sorted({*_THREE_LAYERS} if enough else {1, (count + 1) // 2, count})
    layers = pick_layers(runs, look, default)
    figure, axes, columns = panels(len(layers), _LAYERS_IN_A_ROW)
    x_name, x_of = x_axis(runs)
    kinds = {
        name: Line2D([], [], color="0.25", linestyle=_STYLES[name], label=_NAMES[name])
        for name in statistics
    }
    for axis, (number, layer) in zip(axes, layers.items(), strict=True):
        axis.set_title(f"layer {number}: {short_name(layer)}", fontsize="medium")
        for label, seeds in optimizers.items():
            for statistic in statistics:
                x, y = layer_line(seeds, layer, statistic, x_of, look)
                (line,) = axis.plot(x, y, _STYLES[statistic], color=colors[label], linewidth=1.5)
                if shape := marker(y, _MARKERS[statistic]):
                    line.set_marker(shape)
                    kinds[statistic].set_marker(shape)
    finish_panels(axes, columns, x_name, "adaptive stepsize", look)
    handles = [Line2D([], [], color=color, label=label) for label, color in colors.items()]
    names = [_NAMES[statistic] for statistic in statistics]
    if len(statistics) > 1:
        handles += kinds.values()
    legend_below(figure, handles, 2 * columns)
    tell_apart(axes)
    title = f"{' and '.join(names)} of the adaptive stepsizes"
    figure.suptitle(f"{title[0].upper()}{title[1:]}")
    return figure
