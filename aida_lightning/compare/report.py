"""The findings of a comparison as tables of text, for a terminal and for files."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from aida_lightning.compare.findings import Findings
from aida_lightning.compare.methods import Published
from aida_lightning.compare.results import RunResult
from aida_lightning.compare.selection import Standing, completed, over_seeds, reported_value
from aida_lightning.compare.statistics import CONFIDENCE
from aida_lightning.figures.table import print_table
from aida_lightning.logs.metric import Metric

_DASH = "–"
_LEVEL = f"{CONFIDENCE:.0%}".replace("%", " %")


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    Args:
        title: title of the table.
        columns: names of the columns; the first column holds labels.
        rows: rows of the table, with one cell per column.
        notes: remarks that a reader of the table needs.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def sheets(found: Findings) -> list[Sheet]:
    """Make the tables of a comparison.

    The first table has one row per method, with the paper's number and the difference from it. With
    several methods, the second table has their differences from the baseline. With a target, the
    last table has the steps, epochs and seconds to the target.
    """
    tables = [_results(found)]
    if len(found.standings) > 1:
        tables.append(_differences(found))
    if found.target is not None:
        tables.append(_ways(found))
    return tables


def print_sheets(found: Findings, console: Console) -> None:
    """Print the tables of a comparison, and fold labels that do not fit."""
    for sheet in sheets(found):
        table = Table(
            title=sheet.title, caption="\n".join(sheet.notes) or None, caption_justify="left"
        )
        for number, name in enumerate(sheet.columns):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*row)
        print_table(table, console)


def _results(found: Findings) -> Sheet:
    metric, digits = found.metric, _decimals(found.results, found.metric)
    names = {run.metric for run in found.results} or {metric.name}
    title = metric.label + (" in %" if metric.in_percent else "")
    if names != {metric.name}:
        title = f"{', '.join(sorted(names))} (a proxy is not the paper's {metric.label})"
    spread = "best of" if metric.over_seeds == "best" else "mean ± std over"
    several = any(len(standing.counted) > 1 for standing in found.standings)
    paper = ["Paper", "Difference"] if found.published else []
    rows = []
    for standing in found.standings:
        runs = standing.counted
        sizes = [run.optimizer_state_bytes for run in runs if run.optimizer_state_bytes is not None]
        times = [run.wall_time_s for run in runs]
        row = [_name(standing, metric)]
        row += [_spread([run.best for run in runs], metric, digits)]
        row += [_spread([run.last for run in runs], metric, digits)]
        if paper:
            row += _beside_paper(runs, found.published.get(standing.method), metric, digits)
        row += [str(standing.settings)]
        row += [str(timedelta(seconds=round(statistics.mean(times)))) if times else _DASH]
        row += [decimal(max(sizes)) if sizes else _DASH]
        row += [f"{len(completed(standing.all_runs))} of {len(standing.all_runs)}"]
        rows.append(row)
    return Sheet(
        title=f"{title[0].upper()}{title[1:]}, "
        + (f"{spread} the completed seeds" if several else "one seed"),
        columns=["Optimizer", "Best", "Last", *paper, "Settings", "Time", "State", "Runs"],
        rows=rows,
        notes=found.notes,
    )


def _differences(found: Findings) -> Sheet:
    metric, rows = found.metric, []
    scale = 100 if metric.in_percent else 1
    ends = [(d.low, d.high) for d in found.differences.values()]
    widths = [high - low for low, high in ends if low is not None and high is not None]
    digits = _decimals(found.results, metric)
    if widths:  # show two digits of the narrowest interval
        digits = max(digits, min(1 - math.floor(math.log10(scale * min(widths))), 10))
    for method, difference in found.differences.items():
        interval = _DASH
        if difference.low is not None and difference.high is not None:
            low, high = scale * difference.low, scale * difference.high
            interval = f"[{low:+.{digits}f}, {high:+.{digits}f}]"
        mean = _DASH if difference.mean is None else f"{scale * difference.mean:+.{digits}f}"
        row = [method, mean, interval, str(difference.seeds), difference.verdict(metric.better)]
        rows.append(row)
    notes = []
    if found.comparisons:
        notes.append(
            f"Means of the paired differences of the {metric.report} values, over the seeds that "
            "both completed; Student's t."
        )
    if found.comparisons > 1 and widths:
        notes.append(f"The {found.comparisons} intervals hold together with {_LEVEL} (Bonferroni).")
    runs = {standing.method: len(standing.runs) for standing in found.standings}
    lacking = [
        method
        for method, difference in found.differences.items()
        if difference.seeds < max(runs[method], runs.get(found.baseline, 0))
    ]
    if lacking:
        notes.append(
            "Seeds that one of the two did not complete are left out, which may favour it: "
            f"{', '.join(lacking)}."
        )
    unit = " in percentage points" if metric.in_percent else ""
    return Sheet(
        title=f"Difference from {found.baseline}{unit}",
        columns=["Optimizer", "Difference", f"{_LEVEL} interval", "Seeds", "Verdict"],
        rows=rows,
        notes=notes,
    )


def _ways(found: Findings) -> Sheet:
    assert found.target is not None
    metric, rows = found.metric, []
    for standing in found.standings:
        way = found.way_to_target(standing)
        numbers = [
            (way.steps, ",.0f"),
            (way.epochs, ".4g"),
            (way.seconds, ",.1f"),
        ]
        cells = [_DASH if number is None else format(number, form) for number, form in numbers]
        rows.append([standing.method, f"{way.reached} of {way.runs}", *cells])
    several = any(len(standing.runs) > 1 for standing in found.standings)
    value = f"{100 * found.target.value:g} %" if metric.in_percent else f"{found.target.value:g}"
    better = "at least" if metric.better == "max" else "at most"
    return Sheet(
        title=f"Until the {metric.label} was {better} {value}",
        columns=["Optimizer", "Reached it", "Steps", "Epochs", "Seconds"],
        rows=rows,
        notes=[
            "Medians over the seeds; a run that never reached it counts as later than all others."
        ]
        if several
        else [],
    )


def _name(standing: Standing, metric: Metric) -> str:
    if standing.settings == 1:
        return standing.method
    known = any(reported_value(run, metric) is not None for run in standing.all_runs)
    best = f"best of {standing.settings}: {standing.setting}"
    return f"{standing.method}, {best if known else f'{standing.settings} settings'}"


def _scaled(values: Sequence[float | None], metric: Metric) -> list[float]:
    return [(100 if metric.in_percent else 1) * value for value in values if value is not None]


def _decimals(results: Sequence[RunResult], metric: Metric) -> int:
    """Return how many decimals the column of a metric needs.

    They show four significant digits of the largest value and two of the smallest, and are at
    least two.
    """
    values = _scaled([value for run in results for value in (run.best, run.last)], metric)
    scales = [math.floor(math.log10(abs(v))) for v in values if v and math.isfinite(v)] or [1]
    return min(max(2, 3 - max(scales), 1 - min(scales)), 10)


def _spread(values: Sequence[float | None], metric: Metric, decimals: int) -> str:
    known = _scaled(values, metric)
    if not known:
        return _DASH
    several = len(known) > 1 and metric.over_seeds == "mean" and np.isfinite(known).all()
    spread = f" ± {statistics.stdev(known):.{decimals}f}" if several else ""
    return f"{over_seeds(known, metric):.{decimals}f}{spread}"


def _beside_paper(
    runs: Sequence[RunResult], paper: Published | None, metric: Metric, decimals: int
) -> list[str]:
    if paper is None:
        return [_DASH, _DASH]
    values = _scaled([reported_value(run, metric) for run in runs], metric)
    known = values and np.isfinite(values).all()
    spread = "" if paper.std is None else f" ± {paper.std:.{decimals}f}"
    difference = f"{over_seeds(values, metric) - paper.mean:+.{decimals}f}" if known else _DASH
    return [f"{paper.mean:.{decimals}f}{spread}", difference]
