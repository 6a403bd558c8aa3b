"""Optimizers by class path, of torch and of the user's own, and swept in one line."""

import csv
import json

import yaml
from compare.tiny import write_experiment

from aida_lightning.commands import main
from aida_lightning.logs.curves import read_scalars

OPTIMIZERS = ["compare.tiny.Slow:pace=2.0,lr=0.1/0.2", "torch.optim.RMSprop:lr=1e-3"]


def test_a_class_path_is_compared_swept_watched_and_written_down(tmp_path, capsys):
    path, output = write_experiment(tmp_path, figures=None), tmp_path / "out"
    assert main(["compare", path, "--optimizers", *OPTIMIZERS, "--output", str(output)]) == 0
    assert "RMSprop lr=0.001" in capsys.readouterr().out
    config = yaml.safe_load((output / "config.yaml").read_text())
    kept = [(m["name"], m["options"], m["grid"]) for m in config["optimizers"]]
    assert kept == [
        ("compare.tiny.Slow", {"pace": 2.0}, {"lr": [0.1, 0.2]}),
        ("torch.optim.RMSprop", {"lr": 1e-3}, {}),
    ]
    with (output / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert [(row["optimizer"], json.loads(row["options"])) for row in rows] == [
        ("compare.tiny.Slow", {"pace": 2.0, "lr": 0.1}),
        ("compare.tiny.Slow", {"pace": 2.0, "lr": 0.2}),
        ("torch.optim.RMSprop", {"lr": 1e-3}),
    ]
    assert [row["method"] for row in rows] == ["Slow pace=2.0", "Slow pace=2.0", "RMSprop lr=0.001"]
    # By the adapter that the user registered, and by ours.
    for run, stepsize in (("Slow_pace=2.0_lr=0.1", 2.0), ("RMSprop_lr=0.001", None)):
        means = read_scalars(output / run / "seed_0")["stepsize_mean/first.weight"].values
        assert len(means) == 8
        assert stepsize is None or set(means) == {stepsize}
    assert (output / "sweep.png").stat().st_size > 10_000
    # What was written down is the same comparison: nothing is left to do.
    assert main(["compare", str(output / "config.yaml"), "--output", str(output)]) == 0
    assert capsys.readouterr().out.count("finished before, not run again") == 3


def test_figures_draw_a_sweep_from_the_event_files(tmp_path, capsys):
    path, output = write_experiment(tmp_path, figures=None), tmp_path / "out"
    assert main(["compare", path, "--optimizers", "sgd:lr=0.1/1", "--output", str(output)]) == 0
    capsys.readouterr()
    command = ["figures", str(output), "--figures", "sweep", "--output", str(tmp_path)]
    assert main([*command, "--formats", "svg"]) == 0
    assert "SGD, best at" in (tmp_path / "sweep.svg").read_text()


def test_a_run_of_a_class_that_was_edited_is_not_resumed(tmp_path, monkeypatch, capsys):
    module = tmp_path / "their_optimizer.py"
    module.write_text("import torch\n\nclass Mine(torch.optim.SGD):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path, output = write_experiment(tmp_path, figures=None), tmp_path / "out"
    command = ["compare", path, "--optimizers", "their_optimizer.Mine:lr=0.1"]
    assert main([*command, "--output", str(output)]) == 0
    module.write_text(module.read_text() + "\n# another\n")
    assert main([*command, "--output", str(output)]) == 2
    assert "whose classes were edited since then, which is kept: their_optimizer" in (
        capsys.readouterr().err
    )
