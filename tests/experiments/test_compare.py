"""A comparison from the command line to its table, pictures and rows, on a few batches."""

import csv
import json
import signal
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from aida_lightning.example_modules import ImageClassifier
from aida_lightning.experiments import training
from aida_lightning.experiments.cli import main
from aida_lightning.experiments.compare import compare
from aida_lightning.experiments.events import read_monitored_runs, read_scalars

FIGURES = ["fig1.png", "fig2.png", "fig6.png"]
# Small enough for seconds; a run of 2 epochs of 2 steps.
SHORT = {
    "batch_size": 4,
    "epochs": 2,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "monitor_every_n_steps": 1,
    "accelerator": "cpu",
}
SHORT_ARGUMENTS = [f"--{name}={value}" for name, value in SHORT.items()]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "out"
    arguments = ["compare", "--optimizers", "aida:k=1", "adam+:lr=3e-4,label=small_steps"]
    code = main([*arguments, "--weight_decay=0.1", *SHORT_ARGUMENTS, "--output", str(folder)])
    assert code == 0
    return folder


def test_every_run_has_a_row_with_what_its_event_files_say(comparison):
    first, second = rows(comparison)
    assert [first["label"], second["label"]] == ["Aida K=1", "small steps"]
    assert json.loads(first["options"]) == {"k": 1, "weight_decay": 0.1}
    assert json.loads(second["options"]) == {"lr": 3e-4, "weight_decay": 0.1}
    for row, name in ((first, "Aida_K=1"), (second, "small_steps")):
        accuracy = read_scalars(comparison / name / "seed_0")["val_accuracy"].values
        assert len(accuracy) == 2
        assert float(row["best_val_accuracy"]) == accuracy.max()
        assert float(row["last_val_accuracy"]) == accuracy[-1]
        assert (row["seed"], row["epochs"], row["status"]) == ("0", "2", "completed")
        assert float(row["wall_time_s"]) > 0


def test_the_state_is_two_tensors_and_a_step_for_each_parameter(comparison):
    parameters = list(ImageClassifier(model="vgg11").parameters())
    tensors = 2 * 4 * sum(parameter.numel() for parameter in parameters)
    steps = 4 * len(parameters)
    for row in rows(comparison):
        assert int(row["optimizer_state_bytes"]) == tensors + steps


def test_the_monitor_read_every_layer_at_every_step(comparison):
    for run in read_monitored_runs([comparison]):
        assert len(run.layers) == 11
        assert all(len(curve.steps) == 4 for curve in run.std.values())


def test_the_pictures_are_written_and_drawn_again_from_the_event_files(comparison, tmp_path):
    assert main(["figures", str(comparison), "--output", str(tmp_path)]) == 0
    for name in FIGURES:
        with Image.open(comparison / name) as image, Image.open(tmp_path / name) as again:
            pixels = np.asarray(image)
            assert min(pixels.shape[:2]) >= 500
            assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20
            np.testing.assert_array_equal(pixels, np.asarray(again))


def test_its_configuration_repeats_a_comparison(comparison, tmp_path, monkeypatch):
    repeated = []
    monkeypatch.setattr(
        training, "train_run", lambda *arguments: repeated.append(arguments) or pytest.skip()
    )
    config = comparison / "config.yaml"
    assert yaml.safe_load(config.read_text())["optimizers"][0] == {
        "name": "aida",
        "label": "Aida K=1",
        "k": 1,
        "weight_decay": 0.1,
    }
    with pytest.raises(pytest.skip.Exception):
        main(["compare", "--config", str(config), "--output", str(tmp_path / "again")])
    assert (tmp_path / "again" / "config.yaml").read_text() == config.read_text()


def test_nothing_is_overwritten(comparison, capsys):
    before = (comparison / "results.csv").read_bytes()
    assert main(["compare", *SHORT_ARGUMENTS, "--output", str(comparison)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert (comparison / "results.csv").read_bytes() == before


def test_all_optimizers_start_from_the_same_weights_and_see_the_same_batches(tmp_path, monkeypatch):
    seen = []

    def fit(trainer, model, datamodule):
        datamodule.setup("fit")
        images, labels = next(iter(datamodule.train_dataloader()))
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        seen.append((weights, images, labels))
        torch.rand(len(seen))  # whatever a run draws, the next starts afresh

    monkeypatch.setattr(pl.Trainer, "fit", fit)
    compare(["aida", "adam+"], seeds=[3, 4], output=str(tmp_path / "out"), **SHORT)
    assert len(seen) == 4
    for one, other in (seen[:2], seen[2:]):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(seen[0][0], seen[2][0])


class Interrupting(training.StepsizeMonitor):
    """Presses Ctrl-C in the second step of the second run."""

    runs = 0

    def on_fit_start(self, trainer, pl_module):
        super().on_fit_start(trainer, pl_module)
        type(self).runs += 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.runs == 2 and trainer.global_step == 2:
            raise KeyboardInterrupt


def test_ctrl_c_keeps_the_runs_so_far(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "StepsizeMonitor", Interrupting)
    output = tmp_path / "out"
    arguments = ["--optimizers", "aida", "adabelief", "adam+", "--output", str(output)]
    assert main(["compare", *SHORT_ARGUMENTS, *arguments]) == 130
    assert [row["status"] for row in rows(output)] == ["completed", "interrupted"]
    assert rows(output)[1]["optimizer_state_bytes"] != ""
    assert all((output / name).exists() for name in FIGURES)
    assert len(read_monitored_runs([output])) == 2
    printed = capsys.readouterr().out
    assert "Interrupted in run 2 of 3" in printed
    assert "1 interrupted" in printed
    with pytest.raises(KeyboardInterrupt):  # Ctrl-C has its meaning back
        signal.raise_signal(signal.SIGINT)


def test_a_run_that_fails_or_diverges_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    step = ImageClassifier.training_step

    def training_step(self, *arguments):
        if self.trainer.optimizers[0].param_groups[0]["lr"] == 0.5:
            raise RuntimeError("out of memory")
        return step(self, *arguments)

    monkeypatch.setattr(ImageClassifier, "training_step", training_step)
    output = tmp_path / "out"
    optimizers = ["aida:lr=0.5,label=broken", "aida:lr=1e20,label=far", "aida"]
    arguments = ["--optimizers", *optimizers, "--output", str(output)]
    assert main(["compare", *SHORT_ARGUMENTS, *arguments]) == 1
    assert [row["status"] for row in rows(output)] == ["failed", "diverged", "completed"]
    assert rows(output)[0]["best_val_accuracy"] == ""
    assert "out of memory" in (output / "broken/seed_0/error.log").read_text()
    assert "RuntimeError: out of memory" in capsys.readouterr().out


def test_without_a_reading_there_are_results_but_no_figures(tmp_path, capsys):
    options = SHORT | {"epochs": 1, "limit_train_batches": 1, "monitor_every_n_steps": 50}
    (result,) = compare(["aida"], output=str(tmp_path / "out"), **options)
    assert result.status == "completed"
    assert "No figures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizers", "adia"], "adia"),
        (["--optimizers", "aida:q=1"], "'q'"),
        (["--optimizers", "aida", "aida"], "two are called 'Aida'"),
        (["--model", "vgg12"], "vgg12"),
        (["--data", "mnist"], "none of digits, cifar10"),
        (["--data", "digits:colour=3"], "'colour'"),
        (["--data", "cifar10:root=/nowhere"], "/nowhere"),
        (["--batch_size", "0"], "batch_size"),
        (["--lr_scheduler", "NoLR"], "NoLR"),
        (["--lr_scheduler", "StepLR:size=3"], "size"),
        (["--accelerator", "abacus"], "abacus"),
        (["--strategy", "ddp", "--devices", "2", "--accelerator", "cpu"], "ddp_spawn"),
        (["--epochs", "0"], "epochs"),
        (["--epochs", "x"], "epochs"),
        (["--seeds", "1", "1"], "seeds"),
        (["--limit_train_batches", "1.5"], "limit_train_batches"),
        (["--monitor_every_n_steps", "0"], "monitor_every_n_steps"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--colour", "red"], "colour"),
    ],
    ids=" ".join,
)
def test_a_bad_option_is_refused_before_anything_trains(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(training, "train_run", lambda *_: pytest.fail("it trains"))
    output = tmp_path / "out"
    try:
        code = main(["compare", *arguments, "--output", str(output)])
    except SystemExit as error:  # the parser's own refusals
        code = error.code
    printed = capsys.readouterr()
    assert code == 2
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not output.exists()


def test_a_comparison_is_not_started_once_a_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["compare", "--output", str(tmp_path / "out")]) == 2
    assert "torchrun" in capsys.readouterr().err
