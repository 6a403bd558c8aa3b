"""Results as rows and as a table, from event files whose content is known."""

import csv
import io
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from aida_lightning.compare.experiment import Experiment, Paper, Target
from aida_lightning.compare.findings import findings_of, side_by_side
from aida_lightning.compare.methods import Method, Published
from aida_lightning.compare.outputs import as_csv
from aida_lightning.compare.report import print_sheets
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


def printed(results, of, width=150) -> str:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        print_sheets(findings_of(of, results, Path("runs")), console)
    return capture.get()


def rows(results, of) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(findings_of(of, results, Path("runs"))))))


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


def test_small_numbers_are_shown_with_four_significant_digits_in_one_column():
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
        "Aida", "91.00 ± 1.41", "80.00 ± 0.00", "1", "0:01:01", "1.0 kB", "2 of 3",
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


def test_no_number_of_the_paper_stands_beside_the_sample_or_a_proxy():
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
        (row,) = rows(runs, of)
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
def test_the_papers_number_stands_beside_its_own_data_and_metric_alone(key, value, compares):
    method = Method("aida", label="Aida", paper=Published(91.57))
    of = replace(experiment(method, paper=Paper("Table I", 3)), changes={key: value})
    text = printed([result()], of)
    assert ("91.57" in text) is ("Paper: Table I." in text) is compares
    assert ("The data or the metric are not the paper's" in text) is not compares
    assert (f"Changed: {key}={value}" in text) is ("root" not in key)
    assert (rows([result()], of)[0]["paper_mean"] == "91.57") is compares


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


def test_the_rows_are_readable():
    of = experiment(
        Method("aida", label="Aida", paper=Published(91.57, 0.13)), paper=Paper("Table I", 200)
    )
    first, second = rows([result(), result(best=None)], of)
    assert first["options"] == '{"k": 1}'
    assert first["wall_time_s"] == "61.23"
    assert (first["best_val_accuracy"], first["last_val_accuracy"]) == ("0.9", "0.8")
    assert (first["paper_mean"], first["paper_std"]) == ("91.57", "0.13")
    assert (first["epochs"], first["paper_epochs"]) == ("3", "200")
    assert second["best_val_accuracy"] == ""


def seeds(label, *values, **rest) -> list[RunResult]:
    return [result(label, i, best=value, last=value, **rest) for i, value in enumerate(values)]


THREE = [Method("adam", label="Adam"), Method("aida", label="Aida"), Method("sgd", label="SGD")]


def difference_rows(text) -> dict[str, list[str]]:
    part = text[text.index("Difference from") :].partition("Until")[0]
    return {name: cells(part, name)[1:] for name in ("Adam", "Aida", "SGD") if f"│ {name}" in part}


@pytest.mark.parametrize("better", ["max", "min"])
def test_each_method_is_compared_with_the_baseline_over_the_seeds_they_share(better):
    of = experiment(*THREE, metric=Metric(better=better))
    results = seeds("Adam", 0.8, 0.7, 0.9, 0.75)
    results += seeds("Aida", 0.85, 0.755, 0.945)  # 5, 5.5 and 4.5 points above
    results += [*seeds("SGD", 0.81, 0.69, 0.95), result("SGD", 3, best=0.1, status="diverged")]
    text = printed(results, of)
    assert "Difference from Adam in percentage points" in text
    verdict = "better" if better == "max" else "worse"
    # t(1 - 0.05 / 4, 2) = 6.2053 and t * 0.5 / sqrt(3) = 1.79
    assert difference_rows(text) == {
        "Aida": ["+5.00", "[+3.21, +6.79]", "3", verdict],
        "SGD": ["+1.67", "[-9.28, +12.61]", "3", "not distinguishable"],
    }
    assert "The 2 intervals hold together with 95 % (Bonferroni)." in text
    left_out = "Seeds that one of the two did not complete are left out, which may favour it: "
    assert f"{left_out}Aida, SGD." in " ".join(text.split())


def test_the_baseline_is_the_one_that_was_asked_for():
    of = replace(experiment(*THREE), baseline="sgd")
    text = printed(seeds("Adam", 0.8, 0.7) + seeds("Aida", 0.8, 0.71) + seeds("SGD", 0.5, 0.6), of)
    assert "Difference from SGD" in text
    assert "Left out" not in text
    assert "Budgets" not in text
    assert list(difference_rows(text)) == ["Adam", "Aida"]


def test_one_seed_tells_nothing_of_the_difference_and_nothing_over_seeds():
    of = replace(experiment(*THREE[:2]), target=Target(0.7))
    text = printed(seeds("Adam", 0.8) + seeds("Aida", 0.9), of)
    assert "Validation accuracy in %, one seed" in text
    assert difference_rows(text) == {
        "Aida": ["+10.00", "–", "1", "nothing can be said: one seed"],
    }
    for word in ("over the", "Bonferroni", "±", "seeds", "median"):
        assert word not in text.lower().replace("│ seeds", "").replace("┃ seeds", ""), word


def test_nothing_is_said_of_intervals_where_there_are_none():
    results = [run for name in ("Adam", "Aida", "SGD") for run in seeds(name, 0.8, 0.8)]
    text = printed(results, experiment(*THREE))
    assert text.count("equal differences on all seeds") == 2
    assert "intervals" not in text


def test_small_differences_keep_two_digits_of_their_interval():
    of = experiment(*THREE[:2], metric=Metric("val_loss", better="min"))
    results = seeds("Adam", 2.0, 2.1, 2.2, metric="val_loss")
    results += seeds("Aida", 2.0001, 2.1002, 2.2003, metric="val_loss")
    assert difference_rows(printed(results, of))["Aida"][0] == "+0.00020"
    results = seeds("Adam", 2.0, 2.1, 2.2, metric="val_loss")
    results += seeds("Aida", 2.5001, 2.6002, 2.7003, metric="val_loss")
    row = ["+0.50020", "[+0.49995, +0.50045]", "3", "worse"]
    assert difference_rows(printed(results, of))["Aida"] == row


def test_a_proxy_is_not_compared_with_the_metric_itself():
    of = experiment(*THREE[:2], metric=FID)
    results = seeds("Adam", 60.0, 61.0, metric="fid") + seeds("Aida", 2.0, 3.0, metric="fid_proxy")
    assert difference_rows(printed(results, of))["Aida"][-1] == (
        "nothing can be said: no seed in common"
    )


SWEEP = Method("adam", label="Adam", grid={"lr": [0.001, 0.01, 0.1]})


def swept(seed, *values) -> list[RunResult]:
    rates = zip(SWEEP.grid["lr"], values, strict=True)
    return [
        result(f"Adam lr={lr}", seed, value, method="Adam", options={"lr": lr})
        for lr, value in rates
    ]


def test_budgets_and_planted_edges_are_told_in_the_table_and_in_the_rows():
    of = experiment(Method("aida", label="Aida"), SWEEP)
    results = [*seeds("Aida", 0.9), *swept(0, 0.7, 0.8, 0.85)]
    text = printed(results, of)
    assert cells(text, "Adam, best of 3: lr=0.1")[3] == "3"
    assert cells(text, "Aida")[3] == "1"
    assert "Budgets differ: from 1 to 3 settings were tried per method." in text
    assert "Adam: lr=0.1 is the greatest of its grid, so that the best may lie beyond." in text
    assert "Setting of Adam: chosen on seed 0, reported as well, which favours the method" in text
    found = rows(results, of)
    assert [row["settings"] for row in found] == ["1", "3", "3", "3"]
    assert {row["at_edge"] for row in found if row["method"] == "Adam"} == {"lr"}
    assert [row["reported"] for row in found] == ["True", "False", "False", "True"]


def test_a_setting_and_a_method_of_two_comparisons_that_are_called_alike_are_kept_apart():
    swept = [replace(run, method="Adam") for run in seeds("Adam lr=0.1", 0.9, 0.8)]
    single = seeds("Adam lr=0.1", 0.5, 0.4)
    one = findings_of(experiment(Method("adam", label="Adam")), swept, Path("one"))
    two = findings_of(experiment(Method("adam", label="Adam lr=0.1")), single, Path("two"))
    found = side_by_side({"one": one, "two": two})
    assert {standing.method for standing in found.standings} == {"Adam", "Adam lr=0.1 (two)"}
    assert {key[0]: path.parts[0] for key, path in found.paths.items()} == {
        "Adam lr=0.1": "one",
        "Adam lr=0.1 (two)": "two",
    }


def test_the_seeds_that_chose_are_not_in_the_numbers():
    of = replace(experiment(Method("aida", label="Aida"), SWEEP), seeds=[0], tune_seeds=[9])
    results = [*swept(9, 0.7, 0.99, 0.85), *seeds("Aida", 0.9), swept(0, 0.7, 0.8, 0.85)[1]]
    text = printed(results, of)
    assert cells(text, "Adam, best of 3: lr=0.01")[1] == "80.00"
    assert "Adam: chosen on seed 9, not reported." in text
    assert "the best may lie beyond" not in text
    found = rows(results, of)
    assert [row["seed"] for row in found if row["reported"] == "True"] == ["0", "0"]


def test_the_way_to_a_target_counts_the_runs_that_never_reached_it():
    of = replace(experiment(*THREE), target=Target(0.9))

    def to(*steps):
        return [
            {"target": 0.9, "steps_to_target": n, "epochs_to_target": n and n / 100,
             "seconds_to_target": n and n / 10} for n in steps
        ]  # fmt: skip

    ways = {"Adam": to(1000, None, 3000, None, 2000), "Aida": to(10, 20, 40, 30)}
    ways["SGD"] = to(100, None, None)
    results = [result(name, i, **way) for name in ways for i, way in enumerate(ways[name])]
    text = printed(results, of)
    part = text[text.index("Until the validation accuracy was at least 90 %") :]
    assert cells(part, "Adam")[1:] == ["3 of 5", "3,000", "30", "300.0"]
    assert cells(part, "Aida")[1:] == ["4 of 4", "25", "0.25", "2.5"]
    assert cells(part, "SGD")[1:] == ["1 of 3", "–", "–", "–"]


def test_a_run_that_was_not_measured_with_the_target_is_not_counted():
    of = replace(experiment(), target=Target(0.9))
    results = [result(seed=0, target=0.8, steps_to_target=5), result(seed=1, target=0.9)]
    text = printed(results, of)
    assert cells(text[text.index("Until") :], "Aida")[1:] == ["0 of 1", "–", "–", "–"]


def test_labels_are_folded_and_never_cut_where_there_is_little_room():
    label = "Adam weight decay=0.00001 amsgrad=True eps=1e-08 and a long word " + 40 * "x"
    of = experiment(Method("adam", label=label), Method("aida", label="Aida"))
    results = seeds(label, 0.8, 0.7, method=label) + seeds("Aida", 0.8, 0.71)
    text = printed(results, of, width=60)
    assert max(len(line) for line in text.splitlines() if "│" in line) <= 60
    assert "…" not in text
    first_column = [line.split("│")[1].strip() for line in text.splitlines() if "│" in line]
    folded = "".join(first_column).replace(" ", "")
    assert folded.count(label.replace(" ", "")) == 1  # it is the baseline, so in one table alone
    letters = "".join(line.strip("│ \n") for line in text.splitlines())
    for number in ("75.00", "75.50", "+0.50"):
        assert number in letters


def test_a_pipe_gets_tables_as_wide_as_they_are():
    label = "Adam with a label that is longer than a pipe of eighty columns has room for it"
    of = experiment(Method("adam", label=label))
    console = Console(file=io.StringIO(), width=80)
    print_sheets(findings_of(of, seeds(label, 0.8), Path("runs")), console)
    assert label in console.file.getvalue()
