"""Results as rows and as a table, from event files whose content is known."""

import csv
import math
import time
from dataclasses import replace

import pytest
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from aida_lightning.compare.experiment import Experiment, Paper, Target
from aida_lightning.compare.methods import Method, Published
from aida_lightning.compare.report import results_table, write_csv
from aida_lightning.compare.results import RunResult, measure_run
from aida_lightning.logs.metric import Metric

ACCURACY = Metric()
UNMEASURED = {
    "metric": "val_accuracy",
    "best": None,
    "last": None,
    "floor": None,
    "optimizer_state_bytes": None,
    "status": "failed",
    "message": "",
    "better": "max",
}
FID = Metric("fid", "FID", better="min", report="last", over_seeds="best", percent=False)


def experiment(*methods, metric=ACCURACY, paper=None, **changes) -> Experiment:
    methods = list(methods) or [Method("aida", label="Aida")]
    return Experiment("", None, None, None, methods, metric=metric, paper=paper, changes=changes)


def result(label="Aida", seed=0, best=0.9, last=0.8, status="completed", **rest) -> RunResult:
    values = {
        "method": label,
        "optimizer": "aida",
        "options": {"k": 1},
        "metric": "val_accuracy",
        "floor": None,
        "wall_time_s": 61.2345,
        "optimizer_state_bytes": 1024,
        "epochs": 3,
    } | rest
    return RunResult(label=label, seed=seed, best=best, last=last, status=status, **values)


def printed(results, of) -> str:
    console = Console(width=150)
    with console.capture() as capture:
        console.print(results_table(results, of))
    return capture.get()


def cells(text, name) -> list[str]:
    row = next(line for line in text.splitlines() if f"│ {name}" in line)
    return [cell.strip() for cell in row.strip("│ ").split("│")]


def test_best_and_last_come_from_the_event_files(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in enumerate([0.5, 0.75, 0.25, 0.625]):
            writer.add_scalar("val_accuracy", value, step)
            writer.add_scalar("train_loss", 1.0, step)
    measured = measure_run(tmp_path, ACCURACY)
    assert measured == UNMEASURED | {"best": 0.75, "last": 0.625, "status": "completed"}
    smallest = measure_run(tmp_path, Metric("val_accuracy", better="min"))
    assert (smallest["best"], smallest["last"]) == (0.25, 0.625)


EPOCHS = {3: 0, 7: 1, 11: 2}  # as Lightning numbers them beside metrics of epochs of four steps


@pytest.mark.parametrize(
    ("better", "value", "steps"),
    [("max", 0.7, 8), ("max", 0.9, None), ("min", 0.7, 4), ("min", 0.3, 12)],
)
def test_the_way_to_a_target_comes_from_the_event_files(tmp_path, better, value, steps):
    with SummaryWriter(str(tmp_path)) as writer:
        began = time.time()
        for (step, epoch), accuracy in zip(EPOCHS.items(), [0.5, 0.7, 0.25], strict=True):
            for tag, number in (("val_accuracy", accuracy), ("epoch", epoch)):
                writer.add_scalar(tag, number, step, walltime=began + 60 * (epoch + 1))
    measured = measure_run(tmp_path, Metric(better=better), Target(value))
    assert measured["target"] == value
    assert measured["steps_to_target"] == steps
    if steps is None:
        assert measured["epochs_to_target"] is measured["seconds_to_target"] is None
    else:
        assert measured["epochs_to_target"] == steps / 4
        assert measured["seconds_to_target"] == pytest.approx(steps * 15, abs=2)


def test_a_proxy_reaches_no_target_of_the_metric(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("fid_proxy", 1.0, 9)
    assert measure_run(tmp_path, FID, Target(50.0))["steps_to_target"] is None


@pytest.mark.parametrize(("name", "shown"), [("val_accuracy", "50.00"), ("val_loss", "0.5000")])
def test_accuracies_are_in_percent_unless_the_experiment_says_so(name, shown):
    of = experiment(metric=Metric(name, name))
    assert cells(printed([result(best=0.5, metric=name)], of), "Aida")[1] == shown
    assert ("in %" in printed([], of)) is (name == "val_accuracy")


def test_small_numbers_are_shown_with_four_significant_digits_in_one_column(tmp_path):
    of = experiment(metric=Metric("val_loss", "val_loss", better="min", report="last"))
    values = [5e-5, 6e-5]
    seeds = [result(seed=i, best=v, last=v, metric="val_loss") for i, v in enumerate(values)]
    assert cells(printed(seeds, of), "Aida")[2] == "0.00005500 ± 0.00000707"
    other = result(label="SGD", method="SGD", best=1.25, last=1.25, metric="val_loss")
    table = printed([*seeds, other], of)
    assert cells(table, "Aida")[2] == "0.000055 ± 0.000007"
    assert cells(table, "SGD")[2] == "1.250000"


def test_a_proxy_is_read_under_its_own_name_with_its_floor(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("fid_proxy", 12.0, 9)
        writer.add_scalar("fid_proxy_floor", 1.5, 9)
    measured = measure_run(tmp_path, FID)
    assert [measured[name] for name in ("metric", "best", "last", "floor")] == [
        "fid_proxy",
        12.0,
        12.0,
        1.5,
    ]


@pytest.mark.parametrize("tag", ["train_loss", "val_loss_epoch", "critic_loss"])
def test_a_loss_that_is_not_finite_at_the_end_is_a_diverged_run(tmp_path, tag):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar(tag, 1.0, 0)
        writer.add_scalar(tag, math.nan, 1)
    measured = measure_run(tmp_path, ACCURACY)
    assert (measured["status"], measured["message"]) == ("diverged", "the loss is not finite")


def test_a_run_without_events_has_no_results(tmp_path):
    message = "'val_accuracy' was not logged, nor was any other"
    assert measure_run(tmp_path, ACCURACY) == UNMEASURED | {"message": message}


def test_the_table_gives_mean_and_std_over_the_completed_seeds_in_percent():
    runs = [result(seed=0, best=0.9), result(seed=1, best=0.92), result(seed=2, status="diverged")]
    text = printed(runs, experiment())
    assert cells(text, "Aida") == [
        "Aida", "91.00 ± 1.41", "80.00 ± 0.00", "0:01:01", "1.0 kB", "2 of 3",
    ]  # fmt: skip
    assert "Aida, seed 2: diverged." in text
    assert "Paper" not in text


@pytest.mark.parametrize("over_seeds", ["mean", "best"])
@pytest.mark.parametrize("last", [[math.inf, math.inf], [0.5, math.nan], [math.nan, 0.5]])
def test_a_value_that_is_not_finite_has_no_spread_and_stops_no_table(last, over_seeds):
    of = experiment(
        Method("aida", label="Aida", paper=Published(91.57)),
        metric=Metric(report="last", over_seeds=over_seeds),
    )
    runs = [result(seed=seed, last=value) for seed, value in enumerate(last)]
    shown = "inf" if math.inf in last else "nan"
    assert cells(printed(runs, of), "Aida")[2:5] == [shown, "91.57", "–"]


def test_the_table_shows_what_is_known_of_an_optimizer_without_completed_runs():
    runs = [result(status="interrupted"), result("Adam", best=None, last=None)]
    text = printed(runs, experiment())
    assert cells(text, "Aida")[1] == "90.00"
    assert cells(text, "Adam")[1] == "–"


def test_the_papers_number_and_the_difference_stand_beside_ours():
    methods = [
        Method("aida", label="Aida", paper=Published(91.57, 0.13)),
        Method("sgd", label="SGD"),
    ]
    of = experiment(*methods, paper=Paper("Table I", 3))
    text = printed([result(best=0.9), result(seed=1, best=0.92), result("SGD")], of)
    assert cells(text, "Aida")[3:5] == ["91.57 ± 0.13", "-0.57"]
    assert cells(text, "SGD")[3:5] == ["–", "–"]
    assert "Paper: Table I." in text
    assert "Epochs" not in text


def test_a_run_cut_short_or_changed_is_marked():
    of = experiment(
        Method("aida", label="Aida", paper=Published(91.57)),
        paper=Paper("Table I", 200),
        **{"trainer.max_epochs": "3", "trainer.limit_train_batches": "0.1", "optimizers": "[…]"},
    )
    text = printed([result()], of)
    assert "Epochs: 3, where the paper's runs have 200." in text
    assert "Changed: trainer.limit_train_batches=0.1, optimizers=[…]" in text


def test_no_number_of_the_paper_stands_beside_the_sample_or_a_proxy(tmp_path):
    methods = [Method("aida", label="Aida", paper=Published(55.7))]
    sample = experiment(*methods, paper=Paper("Table I", 3), data="sample")
    proxy = experiment(*methods, metric=FID, paper=Paper("Table III", 3))
    for runs, of in (
        ([result()], sample),
        ([result(best=2.0, last=2.0, metric="fid_proxy", floor=0.5)], proxy),
    ):
        text = printed(runs, of)
        assert "55.7" not in text
        assert "Difference" not in text
        write_csv(runs, of, tmp_path / "results.csv")
        with (tmp_path / "results.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert row["paper_mean"] == ""
    assert "Fid_proxy (a proxy is not the paper's FID)" in text
    assert "Floor, real against real (fid_proxy): 0.5" in text


@pytest.mark.parametrize(
    ("key", "value", "compares"),
    [
        ("data", "DigitsDataModule", False),
        ("data.class_path", "DigitsDataModule", False),
        ("data.sample", "true", False),
        ("data.batch_size", "64", True),
        ("data.root", "elsewhere", True),
        ("metric.name", "val_accuracy_5", False),
        ("metric.percent", "false", False),
        ("metric.title", "validation accuracy", True),
    ],
)
def test_the_papers_number_stands_beside_its_own_data_and_metric_alone(
    tmp_path, key, value, compares
):
    method = Method("aida", label="Aida", paper=Published(91.57))
    of = replace(experiment(method, paper=Paper("Table I", 3)), changes={key: value})
    text = printed([result()], of)
    assert ("91.57" in text) is ("Paper: Table I." in text) is compares
    assert ("Other data or another metric than the paper's" in text) is not compares
    assert (f"Changed: {key}={value}" in text) is ("root" not in key)
    write_csv([result()], of, tmp_path / "results.csv")
    assert ("91.57" in (tmp_path / "results.csv").read_text()) is compares


def test_the_best_point_of_a_grid_stands_for_its_method():
    grid = [
        result(f"Adam eps={eps}", seed, last=last, best=1.0, method="Adam", metric="fid")
        for eps, values in {"1e-08": [70.0, 68.5], "1e-04": [69.0, 69.5]}.items()
        for seed, last in enumerate(values)
    ]
    methods = [Method("adam", label="Adam", paper=Published(66.71))]
    text = printed(grid, experiment(*methods, metric=FID, paper=Paper("Table III", 3)))
    assert "best of the completed seeds" in text
    assert cells(text, "Adam")[0] == "Adam, best of 2: eps=1e-08"
    assert cells(text, "Adam")[2:5] == ["68.50", "66.71", "+1.79"]
    assert cells(text, "Adam")[-1] == "4 of 4"


def test_the_rows_are_readable_and_no_half_file_is_left(tmp_path):
    of = experiment(
        Method("aida", label="Aida", paper=Published(91.57, 0.13)), paper=Paper("Table I", 200)
    )
    write_csv([result(), result(best=None)], of, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["options"] == '{"k": 1}'
    assert first["wall_time_s"] == "61.23"
    assert (first["best_val_accuracy"], first["last_val_accuracy"]) == ("0.9", "0.8")
    assert (first["paper_mean"], first["paper_std"]) == ("91.57", "0.13")
    assert (first["epochs"], first["paper_epochs"]) == ("3", "200")
    assert second["best_val_accuracy"] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
