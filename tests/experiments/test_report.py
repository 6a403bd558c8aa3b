"""Results as rows and as a table."""

import csv

import numpy as np
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from aida_lightning.experiments.report import (
    Measurements,
    RunResult,
    format_bytes,
    format_seconds,
    measure,
    results_table,
    write_csv,
)


def result(label="Aida", seed=0, best=0.9, last=0.8, status="completed") -> RunResult:
    return RunResult(label, "aida", {"k": 1}, seed, best, last, 61.2345, 1024, 3, status)


def printed(results) -> str:
    console = Console(width=120, record=True, quiet=False)
    with console.capture() as capture:
        console.print(results_table(results))
    return capture.get()


def test_best_and_last_accuracy_come_from_the_event_files(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in enumerate([0.5, 0.75, 0.625]):
            writer.add_scalar("val_accuracy", value, step)
            writer.add_scalar("train_loss", 1.0, step)
    assert measure(tmp_path) == Measurements(0.75, 0.625, None, 3, diverged=False)


def test_a_loss_that_is_not_finite_at_the_end_is_a_diverged_run(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("train_loss", 1.0, 0)
        writer.add_scalar("train_loss", np.nan, 1)
    assert measure(tmp_path).diverged


def test_a_run_without_events_has_no_results(tmp_path):
    assert measure(tmp_path) == Measurements()


def test_the_table_gives_mean_and_std_over_the_completed_seeds_in_percent():
    runs = [result(seed=0, best=0.9), result(seed=1, best=0.92), result(seed=2, status="diverged")]
    text = printed(runs)
    assert "91.00 ± 1.41" in text
    assert "2 completed, 1 diverged (seed 2)" in text
    assert "1.0 KiB" in text
    assert "1 min 1 s" in text


def test_the_table_shows_what_is_known_of_an_optimizer_without_completed_runs():
    text = printed([result(status="interrupted"), result("Adam", best=None, last=None)])
    assert "90.00" in text
    assert "–" in text


def test_the_rows_are_readable_and_no_half_file_is_left(tmp_path):
    write_csv([result(), result(best=None)], tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["options"] == '{"k": 1}'
    assert first["wall_time_s"] == "61.23"
    assert second["best_val_accuracy"] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_bytes_and_seconds_are_written_for_people():
    assert [format_bytes(n) for n in (12, 2048, 3 << 30)] == ["12 B", "2.0 KiB", "3.0 GiB"]
    assert [format_seconds(s) for s in (2.34, 119.6, 7322)] == ["2.3 s", "2 min 0 s", "2 h 2 min"]
