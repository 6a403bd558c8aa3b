"""What a comparison found: a row a run in `results.csv`, a row an optimizer on the terminal."""

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table

from aida_lightning.experiments.events import read_scalars

Status = Literal["completed", "interrupted", "diverged", "failed"]

# What a run logs beside the monitor's tags; the metrics' names are the example modules'.
ACCURACY_TAG = "val_accuracy"
LOSS_TAGS = ("train_loss", "train_loss_step", "train_loss_epoch", "val_loss")
STATE_BYTES_TAG = "optimizer_state_bytes"

_COLUMNS = [
    "label",
    "optimizer",
    "options",
    "seed",
    "best_val_accuracy",
    "last_val_accuracy",
    "wall_time_s",
    "optimizer_state_bytes",
    "epochs",
    "status",
]


@dataclass(frozen=True)
class RunResult:
    """One trained run.

    Args:
        label: The optimizer's label.
        optimizer: The optimizer's name.
        options: The optimizer's options.
        seed: The seed of initialisation and data order.
        best_val_accuracy: The best validation accuracy, from 0 to 1; None if there was none.
        last_val_accuracy: The last one.
        wall_time_s: Seconds from the start of the fit to its end.
        optimizer_state_bytes: The size of all tensors in the optimizer's state.
        epochs: How many epochs were trained and validated.
        status: How the run ended.
        message: Why, if it did not complete.
    """

    label: str
    optimizer: str
    options: dict[str, Any]
    seed: int
    best_val_accuracy: float | None
    last_val_accuracy: float | None
    wall_time_s: float
    optimizer_state_bytes: int | None
    epochs: int
    status: Status
    message: str = ""


@dataclass(frozen=True)
class Measurements:
    """What the event files of one run say about it; the fields are those of `RunResult`."""

    best_val_accuracy: float | None = None
    last_val_accuracy: float | None = None
    optimizer_state_bytes: int | None = None
    epochs: int = 0
    diverged: bool = False


def measure(folder: Path) -> Measurements:
    """Reads a run's results from its event files, whichever process wrote them."""
    scalars = read_scalars(folder)
    accuracy = scalars[ACCURACY_TAG].values if ACCURACY_TAG in scalars else np.empty(0)
    finite = accuracy[np.isfinite(accuracy)]
    return Measurements(
        best_val_accuracy=float(finite.max()) if len(finite) else None,
        last_val_accuracy=float(accuracy[-1]) if len(accuracy) else None,
        optimizer_state_bytes=(
            int(scalars[STATE_BYTES_TAG].values[-1]) if STATE_BYTES_TAG in scalars else None
        ),
        epochs=len(accuracy),
        diverged=any(
            not np.isfinite(scalars[tag].values[-1]) for tag in LOSS_TAGS if tag in scalars
        ),
    )


def write_csv(results: Sequence[RunResult], path: Path) -> None:
    """Writes one row a run; a reader never sees half a file."""
    unfinished = path.with_suffix(".csv.tmp")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        for result in results:
            row = {name: getattr(result, name) for name in _COLUMNS}
            row["options"] = json.dumps(result.options, default=str)
            row["wall_time_s"] = f"{result.wall_time_s:.2f}"
            writer.writerow(row)
    unfinished.replace(path)


def results_table(results: Sequence[RunResult]) -> Table:
    """Draws up one row an optimizer: means and standard deviations over its completed seeds."""
    table = Table(title="Validation accuracy in %, mean ± std over the completed seeds")
    table.add_column("Optimizer")
    for name in ("Best", "Last", "Time a run", "State"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Runs")
    for label in dict.fromkeys(result.label for result in results):
        runs = [result for result in results if result.label == label]
        # Where no run completed, what is known of the others says more than nothing.
        rows = [run for run in runs if run.status == "completed"] or runs
        sizes = [run.optimizer_state_bytes for run in runs if run.optimizer_state_bytes is not None]
        table.add_row(
            label,
            _percent([run.best_val_accuracy for run in rows]),
            _percent([run.last_val_accuracy for run in rows]),
            format_seconds(statistics.mean(run.wall_time_s for run in rows)),
            format_bytes(max(sizes)) if sizes else "–",
            _outcomes(runs),
        )
    return table


def format_bytes(count: int) -> str:
    """Writes a number of bytes for people.

    Example:
        >>> format_bytes(78_007_376)
        '74.4 MiB'
    """
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def format_seconds(seconds: float) -> str:
    """Writes a time for people.

    Example:
        >>> format_seconds(83.2)
        '1 min 23 s'
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _percent(fractions: Sequence[float | None]) -> str:
    known = [100 * fraction for fraction in fractions if fraction is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"


def _outcomes(runs: Sequence[RunResult]) -> str:
    parts = []
    for status in ("completed", "interrupted", "diverged", "failed"):
        if seeds := [str(run.seed) for run in runs if run.status == status]:
            detail = "" if status == "completed" else f" (seed {', '.join(seeds)})"
            parts.append(f"{len(seeds)} {status}{detail}")
    return ", ".join(parts)
