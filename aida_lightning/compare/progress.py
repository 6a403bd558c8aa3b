"""The progress of a comparison's runs, read from their folders."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from aida_lightning.compare.folder import ERROR_LOG, is_at_work
from aida_lightning.compare.run import Run
from aida_lightning.logs.metric import Metric


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Args:
        label: label of the optimizer.
        seed: seed of the run.
        state: `waiting`, `running`, `finished`, `diverged`, `failed`, or `stopped` for a run that
            was stopped after some epochs.
        epochs: number of finished epochs.
        last: last value of the metric; None before the first.
        job: number of the run's job; empty if it has none.
    """

    label: str
    seed: int
    state: str
    epochs: int
    last: float | None
    job: str = ""


def progress_of(run: Run, job: Any = None) -> Progress:
    """Read the progress of a run.

    Args:
        run: run to look at.
        job: submitit job that trains or will train the run; None if there is none.
    """
    result = run.finished()
    if result is None:
        result = run.stopped("interrupted")
        state = _state(run.folder, job, result.epochs)
    else:
        state = "finished" if result.status == "completed" else result.status
    number = "" if job is None else str(job.job_id)
    return Progress(result.label, result.seed, state, result.epochs, result.last, number)


def progress_table(runs: Iterable[Progress], metric: Metric) -> Table:
    """Make a table with one row per run."""
    rows = [*runs]
    count = {state: sum(row.state == state for row in rows) for state in {r.state for r in rows}}
    caption = ", ".join(f"{number} {state}" for state, number in sorted(count.items()))
    table = Table(caption=caption, caption_justify="left")
    for name in ("Optimizer", "Seed", "State", "Epochs", f"Last {metric.label}"):
        table.add_column(name, justify="left" if name in ("Optimizer", "State") else "right")
    if has_jobs := any(row.job for row in rows):
        table.add_column("Job", justify="right")
    for row in rows:
        last = "–" if row.last is None else f"{row.last:.4g}"
        cells = [row.label, str(row.seed), row.state, str(row.epochs), last]
        table.add_row(*cells, *([row.job] if has_jobs else []))
    return table


def _state(folder: Path, job: Any, epochs: int) -> str:
    if is_at_work(folder):
        return "running"
    if job is not None and not job.done():
        return "running" if job.state.startswith(("RUNNING", "COMPLETING")) else "waiting"
    if (folder / ERROR_LOG).exists():
        return "failed"
    return "stopped" if epochs else "waiting"
