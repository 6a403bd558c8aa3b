"""Finished comparisons are reported again, side by side, and nothing is trained."""

import csv
import json
import shutil
import sys

import pytest
from compare.tiny import write_experiment

from aida_lightning.commands import main
from aida_lightning.compare import comparison as comparing
from aida_lightning.compare import run as running


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two comparisons on the same data: one of Aida and a tuned AdaBelief, one of Aida."""
    folder = tmp_path_factory.mktemp("finished")
    options = {"figures": ["fig3"], "seeds": [0, 1], "tune_seeds": [9]}
    path = write_experiment(folder, **options)
    arguments = ["--baseline", "adabelief", "--target", "0.3"]
    assert main(["compare", path, *arguments, "--output", str(folder / "one")]) == 0
    options = ["--seeds", "0", "1", "--optimizers", "aida:k=2", "sgd:lr=0.1,momentum=0.0"]
    options += ["--set", "model.init_args.width=8"]
    (folder / "b").mkdir()
    path = write_experiment(folder / "b", figures=None, optimizer_options=None)
    assert main(["compare", path, *options, "--output", str(folder / "two")]) == 0
    return folder


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch, finished):
    monkeypatch.setattr(running, "_fit", lambda *_: pytest.fail("it trains"))


def rows(folder):
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_seeds_that_chose_are_rows_that_are_not_reported(finished):
    found = rows(finished / "one")
    tuning = [row for row in found if row["seed"] == "9"]
    assert [row["label"] for row in tuning] == ["AdaBelief eps=1e-08", "AdaBelief eps=1e-16"]
    assert {row["reported"] for row in tuning} == {"False"}
    reported = [row for row in found if row["reported"] == "True"]
    assert [row["seed"] for row in reported] == ["0", "0", "1", "1"]
    assert {row["settings"] for row in reported} == {"1", "2"}
    best = max(tuning, key=lambda row: float(row["best_val_accuracy"]))
    assert {row["label"] for row in reported} == {"Aida K=2", best["label"]}


def test_a_comparison_writes_all_files_beside_the_rows(finished):
    for name in ("results.json", "results.md", "results.tex", "curves.png", "fig3.png"):
        assert (finished / "one" / name).stat().st_size > 0


def test_one_comparison_is_reported_as_it_was(finished, tmp_path, capsys):
    before = contents(finished)
    assert main(["report", str(finished / "one"), "--output", str(tmp_path / "out")]) == 0
    assert contents(finished) == before
    for name in ("results.csv", "results.json", "results.md", "results.tex"):
        assert (tmp_path / "out" / name).read_text() == (finished / "one" / name).read_text(), name
    assert (tmp_path / "out" / "curves.png").exists()
    assert (tmp_path / "out" / "fig3.png").exists()
    printed = capsys.readouterr().out
    assert "Difference from AdaBelief" in printed
    assert "Until the validation accuracy was at least 30 %" in printed


def test_two_comparisons_stand_side_by_side_with_their_labels_kept_apart(
    finished, tmp_path, capsys
):
    folders = [str(finished / "one"), str(finished / "two")]
    options = ["--output", str(tmp_path / "out"), "--baseline", "sgd", "--target", "0.2"]
    assert main(["report", *folders, *options]) == 0
    methods = ["Aida K=2 (one)", "AdaBelief", "Aida K=2 (two)", "SGD lr=0.1 momentum=0.0"]
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [method["method"] for method in content["methods"]] == methods
    assert [method["difference"] is None for method in content["methods"]] == 3 * [False] + [True]
    assert content["comparisons"] == 3
    by_label = {(row["label"], row["seed"]): row for row in rows(tmp_path / "out")}
    for folder, label in (("one", "Aida K=2 (one)"), ("two", "Aida K=2 (two)")):
        original = next(row for row in rows(finished / folder) if row["label"] == "Aida K=2")
        ours = by_label[label, original["seed"]]
        assert ours["best_val_accuracy"] == original["best_val_accuracy"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "model.width is 6 in one, 8 in two" in printed
    assert "two: Changed: model.width=8" in printed


def test_what_does_not_fit_is_named(finished, tmp_path, capsys):
    folder = tmp_path / "three"
    shutil.copytree(finished / "two", folder)
    text = (folder / "config.yaml").read_text()
    text = text.replace("name: val_accuracy", "name: train_accuracy")
    text = text.replace("limit_val_batches: null", "limit_val_batches: 0.5")
    (folder / "config.yaml").write_text(text)
    folders = [str(finished / "one"), str(folder)]
    command = ["report", *folders, "--output", str(tmp_path / "out"), "--target", "0.3"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert 'metric.name is "val_accuracy" in one, "train_accuracy" in three' in error
    assert "trainer.limit_val_batches is null in one, 0.5 in three" in error
    assert "model.width" not in error
    assert not (tmp_path / "out").exists()


def test_targets_that_differ_are_named_unless_one_is_given(finished, tmp_path, capsys):
    command = ["report", str(finished / "one"), str(finished / "two")]
    command += ["--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert "target.value is 0.3 in one, null in two" in capsys.readouterr().err


def test_nothing_that_somebody_made_is_written_over(finished, tmp_path, capsys):
    output = tmp_path / "thesis"
    output.mkdir()
    (output / "results.tex").write_text("mine")
    assert main(["report", str(finished / "one"), "--output", str(output)]) == 2
    assert "holds something other than a report of these comparisons" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["results.tex"]
    assert (output / "results.tex").read_text() == "mine"
    before = contents(finished)
    assert main(["report", str(finished / "one"), "--output", str(finished / "one")]) == 2
    assert contents(finished) == before


def test_a_report_is_made_again_in_its_own_folder_and_no_other_comparisons(
    finished, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["report", str(finished / "one")]) == 0
    assert [path.name for path in (tmp_path / "aida_reports").iterdir()] == ["one"]
    command = ["report", str(finished / "two"), "--output", "aida_reports/one"]
    assert main(command) == 2


def test_a_run_that_did_not_end_is_told(finished, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(finished / "two", folder)
    (folder / "Aida_K=2" / "seed_1" / "result.json").unlink()
    (folder / "SGD_lr=0.1_momentum=0.0" / "seed_0" / "result.json").unlink()
    (folder / "SGD_lr=0.1_momentum=0.0" / "seed_0" / "error.log").write_text("it broke")
    assert main(["report", str(folder), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Aida K=2, seed 1: interrupted." in printed
    assert "SGD lr=0.1 momentum=0.0, seed 0: failed." in printed
    assert "nothing can be said: no seed in common" in printed


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_a_comparison_is_named(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / name), "--output", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / name} holds no comparison: there is no" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_classes_that_were_trained_are_not_needed(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished / "one", folder)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("compare.tiny.", "no_longer.there."))
    assert main(["report", str(folder), "--output", str(tmp_path / "out")]) == 0


def test_a_comparison_asks_for_scipy_before_it_trains(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparing, "train_run", lambda *_: pytest.fail("it trains"))
    monkeypatch.setitem(sys.modules, "scipy", None)
    path = write_experiment(tmp_path)
    assert main(["compare", path, "--output", str(tmp_path / "out")]) == 2
    assert 'need scipy, which is not installed: pip install "aida-lightning[examples]"' in (
        capsys.readouterr().err
    )
