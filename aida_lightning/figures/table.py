"""Tables of each layer's statistics, made only from event files."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from aida_lightning.figures.layers import pick_layers, short_name
from aida_lightning.figures.plotting import Look
from aida_lightning.logs import tags
from aida_lightning.logs.runs import MonitoredRun, choose_labels, read_monitored_runs

# The column, the monitor's tag, and the name of the statistic in the monitor's options.
_COLUMNS = {
    "Mean": (tags.MEAN, "mean"),
    "Std": (tags.STD, "std"),
    "Std/mean": (tags.STD_OVER_MEAN, "std_over_mean"),
    "Min": (tags.MIN, "min"),
    "Max": (tags.MAX, "max"),
    "At ceiling": (tags.CEILING_SHARE, "ceiling_share"),
    "Effective": (tags.EFFECTIVE_MEAN, "effective_mean"),
    "SNR": (tags.SNR, "snr"),
    "SNR, rows": (tags.SNR_ROWS, "snr_rows"),
    "Update/weight": (tags.UPDATE_RATIO, "update_ratio"),
    "Update": (tags.UPDATE_NORM, "update_norm"),
    "Weight": (tags.WEIGHT_NORM, "weight_norm"),
    "Gradient": (tags.GRADIENT_NORM, "gradient_norm"),
    "Cosine": (tags.GRADIENT_COSINE, "gradient_cosine"),
}


def summarize(
    logdirs: Sequence[str | Path],
    layers: Sequence[str] | None = None,
    optimizers: Sequence[str] | None = None,
) -> list[Table]:
    """Make one table of the last logged statistics per optimizer, with one row per layer.

    With several seeds, the numbers are means over the seeds. "Effective" is the mean stepsize times
    the learning rate and the correction of the momentum's bias. "SNR" is the signal-to-noise ratio
    of the second moment. "Update", "Weight" and "Gradient" are Euclidean norms. "Cosine" is the
    cosine of the angle between momentum and gradient.

    Args:
        logdirs: folders that hold runs with the ``StepsizeMonitor``, at any depth.
        layers: layers to show, as in ``Look``; None shows all.
        optimizers: globs of the labels to show, case-insensitive; None shows all.

    Raises:
        EventsError: a run, layer or optimizer does not exist.
    """
    runs = read_monitored_runs(logdirs)
    labels = choose_labels([run.label for run in runs], optimizers)
    return [_table(label, [run for run in runs if run.label == label], layers) for label in labels]


def print_table(table: Table, console: Console) -> None:
    """Print a table folded to the terminal's width, and its caption with unbroken lines."""
    table, caption = copy(table), table.caption
    table.caption = None
    if not console.is_terminal:  # a file or a pipe has no width
        wide = console.options.update(max_width=1000)
        console.width = console.measure(table, options=wide).maximum
    console.print(table, soft_wrap=False)
    if caption:
        console.print(caption, style="table.caption", soft_wrap=True, highlight=False)


def _table(label: str, seeds: Sequence[MonitoredRun], layers: Sequence[str] | None) -> Table:
    everything = range(1, 1 + max(len(run.layers) for run in seeds))
    numbered = pick_layers(seeds, Look(layers=layers), everything)
    values = {
        column: {layer: _last(seeds, layer, tag) for layer in numbered.values()}
        for column, (tag, _) in _COLUMNS.items()
    }
    columns = [
        column for column, of in values.items() if any(value is not None for value in of.values())
    ]
    has_stepsizes = any(_COLUMNS[column][0].startswith("stepsize_") for column in columns)
    missing = [
        name
        for column, (tag, name) in _COLUMNS.items()
        # An optimizer without adaptive stepsizes has the statistics of its steps, and some
        # optimizers with them have none of the second moment.
        if column not in columns
        and (tag in tags.OF_THE_STEP or (has_stepsizes and tag.startswith("stepsize_")))
    ]
    step = max(
        int(c.steps[-1]) for run in seeds for s in run.statistics.values() for c in s.values()
    )
    table = Table(
        title=f"{label}: {'adaptive stepsizes' if has_stepsizes else 'updates'} "
        f"at step {step}" + (f", means over {len(seeds)} seeds" if len(seeds) > 1 else ""),
        caption=f"Not logged: {', '.join(missing)}. StepsizeMonitor(statistics=[…]) logs them."
        if missing
        else None,
        caption_justify="left",
    )
    table.add_column("", justify="right")
    table.add_column("Layer", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for number, layer in numbered.items():
        cells = [_written(column, values[column][layer]) for column in columns]
        table.add_row(str(number), short_name(layer), *cells)
    return table


def _last(seeds: Sequence[MonitoredRun], layer: str, tag: str) -> float | None:
    found = [
        float(curve.values[-1])
        for run in seeds
        if (curve := run.statistics.get(tag, {}).get(layer)) is not None
    ]
    if found:
        return float(np.mean(found))
    if tag == tags.STD_OVER_MEAN:  # computed from two other statistics
        mean, std = _last(seeds, layer, tags.MEAN), _last(seeds, layer, tags.STD)
        return std / mean if mean and std is not None else None
    return None


def _written(column: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if _COLUMNS[column][0] == tags.CEILING_SHARE else f"{value:.4g}"
