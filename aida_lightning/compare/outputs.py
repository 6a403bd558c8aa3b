"""The findings of a comparison as files: rows, numbers, tables for texts, and figures."""

import csv
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from aida_lightning.compare.findings import Findings
from aida_lightning.compare.folder import write_whole
from aida_lightning.compare.report import Sheet, sheets
from aida_lightning.compare.selection import Standing, completed, reported_value
from aida_lightning.compare.statistics import CONFIDENCE
from aida_lightning.figures.draw import write_figures
from aida_lightning.figures.metric import metric_curves
from aida_lightning.logs.curves import read_scalars
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.runs import LoggedRun

_MARKDOWN = str.maketrans({char: f"\\{char}" for char in "\\`*_[]<>|"})
_LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"[": "{[}", "]": "{]}"}  # otherwise an argument of the previous row
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {"±": r"$\pm$", "–": "--", "×": r"$\times$", "…": r"\dots{}"}
)


def write_results(found: Findings, folder: Path) -> None:
    """Write ``results.csv``, ``.json``, ``.md`` and ``.tex``, each of them atomically."""
    writers: dict[str, Callable[[Findings], str]] = {
        "csv": as_csv,
        "json": as_json,
        "md": as_markdown,
        "tex": as_latex,
    }
    for ending, text in writers.items():
        write_whole(folder / f"results.{ending}", text(found))


def as_csv(found: Findings) -> str:
    """Format one row per run as CSV, with the paper's number beside it.

    The columns `best_<metric>` and `last_<metric>` hold the metric as logged. `paper_mean` and
    `paper_std` hold the paper's values in the table's unit. `settings` is the number of settings of
    the run's method, `at_edge` lists the options of the chosen setting that lie at an edge of their
    grid, and `reported` tells whether the run represents its method.
    """
    name = found.metric.name
    columns = ["label", "method", "optimizer", "options", "seed"]
    columns += ["metric", f"best_{name}", f"last_{name}", "floor", "paper_mean", "paper_std"]
    columns += ["wall_time_s", "optimizer_state_bytes", "epochs", "paper_epochs", "status"]
    columns += ["settings", "at_edge", "reported", "target", "steps_to_target"]
    columns += ["epochs_to_target", "seconds_to_target"]
    standings = {standing.method: standing for standing in found.standings}
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, extrasaction="ignore")
    writer.writeheader()
    for result in found.results:
        number, paper = found.published.get(result.method), found.papers.get(result.method)
        standing = standings[result.method]
        row = asdict(result) | {
            "options": json.dumps(result.options, default=str),
            f"best_{name}": result.best,
            f"last_{name}": result.last,
            "paper_mean": number.mean if number else None,
            "paper_std": number.std if number else None,
            "paper_epochs": paper.epochs if paper else None,
            "wall_time_s": f"{result.wall_time_s:.2f}",
            "settings": standing.settings,
            "at_edge": " ".join(standing.edges),
            "reported": result in standing.runs,
        }
        writer.writerow(row)
    return table.getvalue()


def as_json(found: Findings) -> str:
    """Format all numbers as logged in JSON; values that are not finite are null."""
    content = {
        "metric": asdict(found.metric) | {"title": found.metric.label},
        "baseline": found.baseline,
        "confidence": CONFIDENCE,
        "comparisons": found.comparisons,
        "target": None if found.target is None else found.target.value,
        "methods": [_method(found, standing) for standing in found.standings],
        "runs": [asdict(run) for run in found.results],
        "notes": found.notes,
    }
    return json.dumps(_finite(content), indent=2, default=str, allow_nan=False) + "\n"


def as_markdown(found: Findings) -> str:
    """Format the tables in GitHub's Markdown."""

    def table(sheet: Sheet) -> str:
        rule = ["---", *["---:"] * (len(sheet.columns) - 1)]
        rows = [sheet.columns, *sheet.rows]
        lines = [[cell.translate(_MARKDOWN) for cell in row] for row in rows]
        lines.insert(1, rule)
        parts = [f"**{sheet.title.translate(_MARKDOWN)}**"]
        parts += ["\n".join(f"| {' | '.join(line)} |" for line in lines)]
        return "\n\n".join([*parts, *(note.translate(_MARKDOWN) for note in sheet.notes)])

    return "\n\n".join(map(table, sheets(found))) + "\n"


def as_latex(found: Findings) -> str:
    """Format the tables for LaTeX with booktabs."""

    def escaped(text: str) -> str:
        parts = re.split(r"((?<![\w.])[+-]\d+(?:\.\d+)?)", text)  # numbers with a sign
        return "".join(
            f"${part}$" if place % 2 else part.translate(_LATEX) for place, part in enumerate(parts)
        )

    def table(sheet: Sheet) -> str:
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{escaped(sheet.title)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(sheet.columns) - 1)}}}", r"\toprule"]
        rows = [" & ".join(map(escaped, row)) + r" \\" for row in [sheet.columns, *sheet.rows]]
        lines += [rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\footnotesize {escaped(note)}" for note in sheet.notes]
        return "\n".join([*lines, r"\end{table}"])

    head = "% \\usepackage{booktabs} in the preamble\n"
    return head + "\n\n".join(map(table, sheets(found))) + "\n"


def draw(found: Findings, folder: Path) -> list[str]:
    """Draw the metric's curves and the experiment's figures into a folder.

    For a method with a grid, only the setting that represents it is drawn, under the method's
    label.

    Returns:
        One sentence per reason for figures that cannot be drawn.
    """
    paths = {
        found.paths[run.label, run.seed]: standing.method
        for standing in found.standings
        for run in standing.runs
    }
    runs = [LoggedRun(label, path.resolve(), read_scalars(path)) for path, label in paths.items()]
    runs = [run for run in runs if run.scalars]
    if not runs:
        return ["no figure: none of the runs that are reported has logged anything"]
    metric, names = found.metric, {result.metric for result in found.results}
    if len(names) == 1 and names != {metric.name}:
        metric = replace(metric, name=names.pop(), title=f"{metric.label}, by a proxy")
    figures = {name: runs for name in found.figures}
    if any(standing.settings > 1 and "lr=" in standing.label for standing in found.standings):
        figures["sweep"] = [
            LoggedRun(run.label, found.paths[run.label, run.seed].resolve(), scalars)
            for run in completed(found.results)
            if (scalars := read_scalars(found.paths[run.label, run.seed]))
        ]
    lacking: dict[str, list[str]] = {}
    try:
        metric_curves({"": runs}, metric).savefig(folder / "curves.png", dpi=150)
    except EventsError as error:
        lacking[str(error)] = ["curves.png"]
    for name, drawn in figures.items():
        try:
            write_figures(drawn, {"": drawn}, folder, [name], ("png",), metric, None)
        except EventsError as error:
            lacking.setdefault(str(error), []).append(name)
    return [f"no {', no '.join(names)}: {reason}" for reason, names in lacking.items()]


def _method(found: Findings, standing: Standing) -> dict[str, Any]:
    first = (standing.runs or standing.all_runs)[0]
    paper, difference = found.published.get(standing.method), None
    if standing.method in found.differences:
        difference = asdict(found.differences[standing.method]) | {
            "verdict": found.differences[standing.method].verdict(found.metric.better)
        }
    return {
        "method": standing.method,
        "label": standing.label,
        "optimizer": first.optimizer,
        "options": first.options,
        "settings": standing.settings,
        "at_edge": list(standing.edges),
        "tuned_on": standing.tuned_on,
        "values": {
            str(run.seed): reported_value(run, found.metric) for run in completed(standing.runs)
        },
        "difference": difference,
        "to_target": None if found.target is None else asdict(found.way_to_target(standing)),
        "paper": None if paper is None else asdict(paper),
    }


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
