"""The paper's figures of the adaptive stepsizes: Figures 1, 2, 4 and 6."""

import re
import textwrap
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aida_lightning.figures.plotting import (
    Look,
    XOf,
    finish_panels,
    legend_below,
    marker,
    optimizer_colors,
    over_seeds,
    panels,
    shades,
    smoothed,
    x_axis,
)
from aida_lightning.logs import tags
from aida_lightning.logs.curves import FloatArray
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.runs import MonitoredRun

_STYLES: dict[str, Literal["-", "--"]] = {tags.MEAN: "-", tags.STD: "--"}
_MARKERS = {tags.MEAN: "o", tags.STD: "x"}
_NAMES = {tags.MEAN: "mean", tags.STD: "standard deviation"}
_TOP_LAYERS = 10
_TITLE_WIDTH = 22  # characters
_THREE_LAYERS = (2, 6, 11)
_LAYERS_IN_A_ROW = 4
# What torch.nn.utils.parametrize computes a tensor from, by the tensor's name.
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original\d*$")


def fig1(runs: Sequence[MonitoredRun], look: Look | None = None) -> Figure:
    """Draw the standard deviation of each layer's adaptive stepsizes, one panel per optimizer.

    This is Figure 1 of arXiv:2203.13273, of the 10 layers closest to the output.
    """
    return _one_panel_an_optimizer(runs, tags.STD, look or Look())


def fig2(runs: Sequence[MonitoredRun], look: Look | None = None) -> Figure:
    """Draw the mean of each layer's adaptive stepsizes, one panel per optimizer.

    This is Figure 2 of arXiv:2203.13273, of the 10 layers closest to the output.
    """
    return _one_panel_an_optimizer(runs, tags.MEAN, look or Look())


def fig4(runs: Sequence[MonitoredRun], look: Look | None = None) -> Figure:
    """Draw the mean adaptive stepsize of all optimizers, one panel per layer.

    This is Figure 4 of arXiv:2203.13273, of layers 2, 6 and 11, or of the first, the middle and the
    last layer of a model that has fewer.
    """
    return _one_panel_a_layer(runs, [tags.MEAN], look or Look())


def fig6(runs: Sequence[MonitoredRun], look: Look | None = None) -> Figure:
    """Draw the mean and the standard deviation of all optimizers, one panel per layer.

    This is Figure 6 of arXiv:2203.13273, of the layers of Figure 4.
    """
    return _one_panel_a_layer(runs, [tags.MEAN, tags.STD], look or Look())


def pick_layers(runs: Sequence[MonitoredRun], look: Look, default: Sequence[int]) -> dict[int, str]:
    """Choose the layers to show, with their numbers from 1 at the input.

    Weight tensors are counted, or all layers where no name tells which of them are weights. A layer
    that is no weight has no number in the paper; its number comes after those of the weights.

    Raises:
        EventsError: a layer that is asked for does not exist; the message names those that do.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.layers))
    weights = _weights(runs)
    numbered = dict(enumerate([*weights, *(name for name in names if name not in weights)], 1))
    if look.layers is None:
        return {number: numbered[number] for number in default if number in numbered}
    found: dict[int, str] = {}
    for wanted in look.layers:
        some = {
            number: name
            for number, name in numbered.items()
            if str(number) == str(wanted) or fnmatchcase(name, str(wanted))
        }
        if not some:
            there = ", ".join(f"{number} {name}" for number, name in numbered.items())
            raise EventsError(f"layers: {wanted!r} is none of {there}")
        found |= some
    return dict(sorted(found.items()))


def short_name(layer: str) -> str:
    """Shorten a layer's name to what figures and tables show of it.

    Example:
        >>> short_name("model.features.3.weight")
        'features.3'
    """
    tensor = _PARAMETRIZED.sub(r"\1", layer)
    return tensor.removeprefix("model.").removesuffix(".weight")


def _one_panel_an_optimizer(runs: Sequence[MonitoredRun], statistic: str, look: Look) -> Figure:
    _check_logged(runs, [statistic])
    optimizers = _by_label(runs)
    colors = optimizer_colors(optimizers)
    figure, axes, columns = panels(len(optimizers), 4)
    count = len(_weights(runs))
    layers = pick_layers(runs, look, range(max(1, count - _TOP_LAYERS + 1), count + 1))
    x_name, x_of = x_axis(runs)
    for axis, (label, seeds) in zip(axes, optimizers.items(), strict=True):
        title = "\n".join(textwrap.wrap(label, _TITLE_WIDTH))
        axis.set_title(title, color=colors[label], fontweight="bold")
        ramp = shades(colors[label], len(layers))
        for layer, shade in zip(layers.values(), ramp, strict=True):
            x, y = _line(seeds, layer, statistic, x_of, look)
            axis.plot(x, y, marker=marker(y), color=shade, linewidth=1.4)
    name = f"{_NAMES[statistic]} of the adaptive stepsizes"
    finish_panels(axes, columns, x_name, name, look)
    handles = [
        Line2D([], [], color=shade, linewidth=2.5, label=f"{number}  {short_name(layer)}")
        for shade, (number, layer) in zip(
            shades(to_rgb("0.5"), len(layers)), layers.items(), strict=True
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


def _one_panel_a_layer(
    runs: Sequence[MonitoredRun], statistics: Sequence[str], look: Look
) -> Figure:
    _check_logged(runs, statistics)
    optimizers = _by_label(runs)
    colors = optimizer_colors(optimizers)
    count = len(_weights(runs))
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
                x, y = _line(seeds, layer, statistic, x_of, look)
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
    title = f"{' and '.join(names)} of the adaptive stepsizes"
    figure.suptitle(f"{title[0].upper()}{title[1:]}")
    return figure


def _check_logged(runs: Sequence[MonitoredRun], statistics: Sequence[str]) -> None:
    if not any(run.statistics.get(statistic) for run in runs for statistic in statistics):
        there = sorted({statistic for run in runs for statistic in run.statistics})
        raise EventsError(
            f"no run has {' or '.join(statistics)}, there are {', '.join(there)}; "
            "StepsizeMonitor(statistics=[…]) chooses"
        )


def _line(
    seeds: Sequence[MonitoredRun], layer: str, statistic: str, x_of: XOf, look: Look
) -> tuple[FloatArray, FloatArray]:
    curves = [
        (x_of(run, curve), smoothed(curve.values, look.smooth))
        for run in seeds
        if (curve := run.statistics.get(statistic, {}).get(layer)) is not None
    ]
    x, mean, _ = over_seeds(curves) if curves else over_seeds([])
    return x, mean


def _by_label(runs: Sequence[MonitoredRun]) -> dict[str, list[MonitoredRun]]:
    grouped: dict[str, list[MonitoredRun]] = {}
    for run in runs:
        grouped.setdefault(run.label, []).append(run)
    return grouped


def _weights(runs: Sequence[MonitoredRun]) -> list[str]:
    names = list(dict.fromkeys(name for run in runs for name in run.layers))
    weights = {}
    for name in names:
        tensor = _PARAMETRIZED.sub(r"\1", name)
        # nn.MultiheadAttention has an in_proj_weight, nn.LSTM a weight_hh_l0.
        if "weight" in tensor.rpartition(".")[2]:
            weights[tensor] = name  # of weight_norm's gain and direction the direction
    return [*weights.values()] or names
