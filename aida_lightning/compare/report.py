"""What a comparison found: a row per run in `results.csv`, a row per method on the terminal."""

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from rich.filesize import decimal
from rich.table import Table

from aida_lightning.compare.experiment import Experiment
from aida_lightning.compare.folder import run_folder, write_whole
from aida_lightning.compare.methods import Published, method_label
from aida_lightning.compare.results import RunResult
from aida_lightning.compare.settings import INCIDENTAL
from aida_lightning.figures.draw import write_figures
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.metric import Metric
from aida_lightning.logs.runs import read_runs

_DASH = "–"
# What of the data and the metric may be changed, and the paper's numbers compare all the same.
_COMPARABLE = {*INCIDENTAL, "data.batch_size", "metric.title"}
# Changes that the table shows in another way, or that do not change a result.
_TOLD_OTHERWISE = {*INCIDENTAL, "seeds", "trainer.max_epochs"}


def write_csv(results: Sequence[RunResult], experiment: Experiment, path: Path) -> None:
    """Write one row per run, with the paper's number beside it; a reader never sees half a file.

    The columns `best_<metric>` and `last_<metric>` have the metric as it was logged, `paper_mean`
    and `paper_std` the paper's in the table's unit.
    """
    name = experiment.metric.name
    columns = ["label", "method", "optimizer", "options", "seed"]
    columns += ["metric", f"best_{name}", f"last_{name}", "floor", "paper_mean", "paper_std"]
    columns += ["wall_time_s", "optimizer_state_bytes", "epochs", "paper_epochs", "status"]
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, extrasaction="ignore")
    writer.writeheader()
    for result in results:
        paper = published(experiment, result)
        row = asdict(result) | {
            "options": json.dumps(result.options, default=str),
            f"best_{name}": result.best,
            f"last_{name}": result.last,
            "paper_mean": paper.mean if paper else None,
            "paper_std": paper.std if paper else None,
            "paper_epochs": experiment.paper.epochs if experiment.paper else None,
            "wall_time_s": f"{result.wall_time_s:.2f}",
        }
        writer.writerow(row)
    write_whole(path, table.getvalue())


def results_table(results: Sequence[RunResult], experiment: Experiment) -> Table:
    """Draw up one row per method, with the paper's number and the difference from it.

    Means and sample standard deviations are over the completed seeds. Of a grid the best point
    stands for the method, and is named.
    """
    metric = experiment.metric
    names = {result.metric for result in results} or {metric.name}
    title = metric.label + (" in %" if metric.in_percent else "")
    if names != {metric.name}:
        title = f"{', '.join(sorted(names))} (a proxy is not the paper's {metric.label})"
    spread = "best of" if metric.over_seeds == "best" else "mean ± std over"
    table = Table(
        title=f"{title[0].upper()}{title[1:]}, {spread} the completed seeds",
        caption="\n".join(notes(results, experiment)) or None,
        caption_justify="left",
    )
    table.add_column("Optimizer")
    has_paper = any(published(experiment, result) for result in results)
    columns = ["Best", "Last", *(["Paper", "Difference"] if has_paper else [])]
    for name in [*columns, "Time", "State", "Runs"]:
        table.add_column(name, justify="right", no_wrap=True)
    digits = _decimals(results, metric)
    for name, runs in representatives(results, metric).items():
        rows = _counted(runs)
        sizes = [run.optimizer_state_bytes for run in runs if run.optimizer_state_bytes is not None]
        all_of_method = [result for result in results if result.method == name]
        labels = {result.label for result in all_of_method}
        suffix = runs[0].label.removeprefix(name).strip()
        cells = [name]
        if len(labels) > 1:
            known = reported(rows, metric) is not None
            settings = f"best of {len(labels)}: {suffix}" if known else f"{len(labels)} settings"
            cells = [f"{name}, {settings}"]
        cells += [_spread([run.best for run in rows], metric, digits)]
        cells += [_spread([run.last for run in rows], metric, digits)]
        if has_paper:
            cells += _beside_paper(rows, experiment, digits)
        cells += [str(timedelta(seconds=round(statistics.mean(run.wall_time_s for run in rows))))]
        cells += [decimal(max(sizes)) if sizes else _DASH, _completed(all_of_method)]
        table.add_row(*cells)
    return table


def representatives(results: Sequence[RunResult], metric: Metric) -> dict[str, list[RunResult]]:
    """Choose for each method the runs of the point of its grid with the best reported value."""
    by_method: dict[str, dict[str, list[RunResult]]] = {}
    for result in results:
        by_label = by_method.setdefault(result.method, {})
        by_label.setdefault(result.label, []).append(result)

    def rank(runs: list[RunResult]) -> float:
        value = reported(_counted(runs), metric)
        return -math.inf if value is None else value if metric.better == "max" else -value

    return {method: max(labels.values(), key=rank) for method, labels in by_method.items()}


def reported(runs: Sequence[RunResult], metric: Metric) -> float | None:
    """Return the value of one label's runs that the paper's number stands for, in its unit."""
    values = [run.best if metric.report == "best" else run.last for run in runs]
    known = _scaled(values, metric)
    if not known or not np.isfinite(known).all():
        return None
    return _over_seeds(known, metric)


def published(experiment: Experiment, result: RunResult) -> Published | None:
    """Return the paper's number for a run; None beside other data or another metric."""
    if result.metric != experiment.metric.name or not _compares(experiment):
        return None
    found = [
        method.paper for method in experiment.optimizers if method_label(method) == result.method
    ]
    return found[0] if found else None


def notes(results: Sequence[RunResult], experiment: Experiment) -> list[str]:
    """Say where the paper's numbers are from, and in what the runs were not the paper's."""
    lines = [
        f"{result.label}, seed {result.seed}: {result.status}."
        for result in results
        if result.status != "completed"
    ]
    if experiment.changes.get("data") == "sample":
        lines.append("On the built-in sample, so no number of the paper compares.")
    elif experiment.paper is not None:
        if not _compares(experiment):
            lines.append("Other data or another metric than the paper's: no number compares.")
        elif any(method.paper for method in experiment.optimizers):
            lines.append(f"Paper: {experiment.paper.source}.")
        epochs = sorted({result.epochs for result in results})
        if epochs and epochs != [experiment.paper.epochs]:
            span = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else f"{epochs[0]}"
            lines.append(f"Epochs: {span}, where the paper's runs have {experiment.paper.epochs}.")
    others = [
        f"{key}={value}"
        for key, value in experiment.changes.items()
        if key not in _TOLD_OTHERWISE and (key, value) != ("data", "sample")
    ]
    if others:
        lines.append(f"Changed: {', '.join(others)}")
    floors = sorted({(r.metric, r.floor) for r in results if r.floor is not None})
    lines += [f"Floor, real against real ({name}): {value:.4g}" for name, value in floors]
    return lines


def draw_experiment(
    experiment: Experiment, results: Sequence[RunResult], folder: Path
) -> list[str]:
    """Draw an experiment's figures from the runs of a comparison into its folder.

    Of a method with a grid, the point that stands for it is drawn, under the method's label. Where
    a grid has learning rates, their figure is drawn, too, of all completed runs.

    Returns:
        what could not be drawn, and for want of what.
    """
    shown = {
        run_folder(folder, run.label, run.seed).resolve(): method
        for method, runs in representatives(results, experiment.metric).items()
        for run in runs
    }
    names = {result.metric for result in results}
    metric = experiment.metric
    if len(names) == 1 and names != {metric.name}:
        metric = replace(metric, name=names.pop(), title=f"{metric.label}, by a proxy")
    try:
        found = {run.path: run for run in read_runs([folder])}
    except EventsError as error:
        return [str(error)]
    runs = [replace(found[path], label=shown[path]) for path in shown if path in found]
    figures = {name: runs for name in experiment.figures}
    if any("lr" in method.grid for method in experiment.optimizers):
        completed = [run for run in results if run.status == "completed"]
        paths = {run_folder(folder, r.label, r.seed).resolve(): r.label for r in completed}
        figures["sweep"] = [replace(found[p], label=paths[p]) for p in paths if p in found]
    lacking: dict[str, list[str]] = {}
    for name, drawn in figures.items():
        try:
            write_figures(drawn, {"": drawn}, folder, [name], ("png",), metric, None)
        except EventsError as error:
            lacking.setdefault(str(error), []).append(name)
    return [f"no {', no '.join(names)}: {reason}" for reason, names in lacking.items()]


def _compares(experiment: Experiment) -> bool:
    """Return whether the data and the metric are those that the paper's numbers are of."""
    keys = experiment.changes.keys() - _COMPARABLE
    return not any(key.partition(".")[0] in ("data", "metric") for key in keys)


def _counted(runs: Sequence[RunResult]) -> Sequence[RunResult]:
    # Where no run completed, what is known of the others says more than nothing.
    return [run for run in runs if run.status == "completed"] or runs


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
    return f"{_over_seeds(known, metric):.{decimals}f}{spread}"


def _over_seeds(known: Sequence[float], metric: Metric) -> float:
    if metric.over_seeds == "best":  # NumPy's are NaN in whatever order the seeds are
        return float(np.max(known) if metric.better == "max" else np.min(known))
    return statistics.mean(known)


def _beside_paper(runs: Sequence[RunResult], experiment: Experiment, decimals: int) -> list[str]:
    paper, value = published(experiment, runs[0]), reported(runs, experiment.metric)
    if paper is None:
        return [_DASH, _DASH]
    spread = "" if paper.std is None else f" ± {paper.std:.{decimals}f}"
    difference = _DASH if value is None else f"{value - paper.mean:+.{decimals}f}"
    return [f"{paper.mean:.{decimals}f}{spread}", difference]


def _completed(runs: Sequence[RunResult]) -> str:
    return f"{sum(run.status == 'completed' for run in runs)} of {len(runs)}"
