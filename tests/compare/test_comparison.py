"""A comparison from the command line to its table, pictures and rows, on a few batches."""

import csv
import errno
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from compare import tiny
from compare.tiny import write_experiment
from PIL import Image

from aida_lightning.commands import main
from aida_lightning.compare import comparison as comparing
from aida_lightning.compare import folder as folders
from aida_lightning.compare.comparison import compare
from aida_lightning.compare.loading import load_experiment
from aida_lightning.compare.methods import UsageError
from aida_lightning.logs.curves import read_scalars
from aida_lightning.logs.runs import read_monitored_runs


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Two seeds of Aida and of another optimizer, and AdaBelief's grid with one."""
    folder = tmp_path_factory.mktemp("comparison")
    path = write_experiment(folder)
    arguments = ["--seeds", "0", "1", "--weight_decay=0.1", "--output", str(folder / "out")]
    arguments += ["--optimizers", "aida*", "adam+:lr=3e-4,label=small_steps", "adabelief"]
    assert main(["compare", path, *arguments]) == 0
    return folder / "out"


def test_every_run_has_a_row_with_what_its_event_files_say(comparison):
    found = rows(comparison)
    labels = ["Aida K=2", "small steps", "AdaBelief eps=1e-08", "AdaBelief eps=1e-16"]
    assert [row["label"] for row in found] == 2 * labels
    assert [row["seed"] for row in found] == 4 * ["0"] + 4 * ["1"]
    assert json.loads(found[0]["options"]) == {"lr": 0.01, "weight_decay": 0.1, "k": 2}
    assert json.loads(found[1]["options"]) == {"lr": 3e-4, "weight_decay": 0.1}
    assert [row["method"] for row in found[2:4]] == ["AdaBelief", "AdaBelief"]
    for row in found:
        run = comparison / row["label"].replace(" ", "_") / f"seed_{row['seed']}"
        accuracy = read_scalars(run)["val_accuracy"].values
        assert len(accuracy) == 2
        assert float(row["best_val_accuracy"]) == accuracy.max()
        assert float(row["last_val_accuracy"]) == accuracy[-1]
        assert (row["epochs"], row["status"]) == ("2", "completed")
        assert float(row["wall_time_s"]) > 0


def test_the_state_is_two_tensors_and_a_step_for_each_parameter(comparison):
    parameters = list(tiny.TinyClassifier().parameters())
    tensors = 2 * 4 * sum(parameter.numel() for parameter in parameters)
    sizes = [int(row["optimizer_state_bytes"]) for row in rows(comparison)]
    assert sizes == 8 * [tensors + 4 * len(parameters)]


def test_the_monitor_read_every_layer_at_every_step(comparison):
    runs = read_monitored_runs([comparison])
    assert [len(run.layers) for run in runs] == 8 * [2]
    steps = [curve.steps.tolist() for run in runs for curve in run.std.values()]
    assert steps == 16 * [[*range(8)]]


def test_the_experiments_figures_are_written(comparison):
    for name in ("fig3", "fig5", "fig6"):
        with Image.open(comparison / f"{name}.png") as image:
            pixels = np.asarray(image)
        assert min(pixels.shape[:2]) >= 500
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


def test_figures_are_drawn_again_from_the_event_files(comparison, tmp_path, capsys):
    arguments = ["--figures", "fig3", "fig6", "--optimizers", "aida*", "--layers", "1"]
    arguments += ["--formats", "svg", "--smooth", "0.5", "--output", str(tmp_path)]
    assert main(["figures", str(comparison / "*"), *arguments]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f"{n}.svg") for n in ("fig3", "fig6")]
    assert "layer 1: first" in (tmp_path / "fig6.svg").read_text()


def test_nothing_is_overwritten(tmp_path, capsys):
    path = write_experiment(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    assert main(["compare", path, "--output", str(tmp_path / "out")]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["my: precious config", "- a", "{", "model: {}\ntrainer: {}\n"])
def test_a_config_that_no_comparison_wrote_is_not_overwritten(tmp_path, capsys, text):
    path, output = write_experiment(tmp_path), tmp_path / "out"
    output.mkdir()
    (output / "config.yaml").write_text(text)
    assert main(["compare", path, "--output", str(output)]) == 2
    assert "no config.yaml of a comparison; nothing is overwritten" in capsys.readouterr().err
    assert [file.name for file in output.iterdir()] == ["config.yaml"]
    assert (output / "config.yaml").read_text() == text


def test_another_experiment_is_refused_even_if_no_label_is_the_same(comparison, capsys):
    before = {path: path.read_bytes() for path in comparison.rglob("*") if path.is_file()}
    command = ["compare", "--optimizers", "sgd", "--epochs", "1", "--output", str(comparison)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "holds a comparison with other settings, which is kept: model.class_path is" in error
    after = {path: path.read_bytes() for path in comparison.rglob("*") if path.is_file()}
    assert after == before


def test_two_comparisons_at_once_do_not_share_a_folder(tmp_path, monkeypatch):
    loaded = load_experiment(write_experiment(tmp_path, figures=None))
    refused = []

    def compare_too(*_):
        with pytest.raises(UsageError, match=r"another comparison is running in .*out: wait"):
            compare(loaded, ["Aida K=2"], tmp_path / "out")
        refused.append(True)

    monkeypatch.setattr(tiny.Kill, "on_train_start", compare_too)
    (result,) = compare(loaded, ["Aida K=2"], tmp_path / "out")
    assert (result.status, refused) == ("completed", [True])
    compare(loaded, ["Aida K=2"], tmp_path / "out")  # the lock is gone


@pytest.mark.parametrize("name", ["exists", "iterdir", "mkdir", "write_text"])
def test_a_folder_without_access_is_refused(tmp_path, monkeypatch, capsys, name):
    def denied(path, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    path, output = write_experiment(tmp_path), tmp_path / "out"
    if name == "iterdir":
        output.mkdir()
    monkeypatch.setattr(Path, name, denied)
    assert main(["compare", path, "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert "error: output: " in error
    assert f"[Errno 13] Permission denied: '{output}" in error


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, capsys):
    def unsupported(lock):
        raise NotImplementedError("no flock")

    monkeypatch.setattr(folders.FileLock, "acquire", unsupported)
    command = ["compare", write_experiment(tmp_path), "--output", str(tmp_path / "out")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'out'} cannot be locked, because its file system" in error


def test_all_optimizers_start_from_the_same_weights_and_see_the_same_batches(tmp_path, monkeypatch):
    seen = []

    def on_train_start(self, trainer, pl_module):
        seen.append([torch.cat([p.detach().flatten() for p in pl_module.parameters()])])
        torch.rand(len(seen))  # whatever a run draws in an epoch, the next starts afresh

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 0:
            seen[-1] += [batch[0], torch.rand(1)]

    monkeypatch.setattr(tiny.Kill, "on_train_start", on_train_start)
    monkeypatch.setattr(tiny.Kill, "on_train_batch_start", on_train_batch_start)
    loaded = load_experiment(write_experiment(tmp_path, figures=None), {"seeds": [3, 4]})
    compare(loaded, ["aida", "adam+"], tmp_path / "out")
    assert len(seen) == 4
    for one, other in (seen[:2], seen[2:]):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(seen[0][0], seen[2][0])
    assert not torch.equal(seen[0][1], seen[2][1])


def press_ctrl_c(self, trainer, *_):
    """In the second step of the second run."""
    if trainer.logger.name == "SGD" and trainer.global_step == 2:
        raise KeyboardInterrupt


def test_ctrl_c_keeps_the_runs_so_far_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    path, output = write_experiment(tmp_path, figures=["fig6"]), tmp_path / "out"
    command = ["compare", path, "--optimizers", "aida*", "sgd", "adam+", "--output", str(output)]
    # A shell that starts the tests in the background has them ignore it.
    handled = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(tiny.Kill, "on_train_batch_end", press_ctrl_c)
        assert main(command) == 130
    assert [row["status"] for row in rows(output)] == ["completed", "interrupted"]
    assert rows(output)[1]["optimizer_state_bytes"] != ""
    assert (output / "fig6.png").exists()
    printed = capsys.readouterr().out
    assert "Interrupted in run 2 of 3" in printed
    assert "SGD, seed 0: interrupted." in printed
    with pytest.raises(KeyboardInterrupt):  # Ctrl-C has its meaning back
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, handled)
    assert main(command) == 0
    assert [row["status"] for row in rows(output)] == 3 * ["completed"]
    assert "[1/3] Aida K=2, seed 0: finished before" in capsys.readouterr().out


@pytest.fixture
def broken(monkeypatch):
    """Have training fail with a learning rate of 0.5."""
    step = tiny.TinyClassifier.training_step

    def training_step(self, *arguments):
        if self.trainer.optimizers[0].param_groups[0]["lr"] == 0.5:
            raise RuntimeError("out of memory")
        return step(self, *arguments)

    monkeypatch.setattr(tiny.TinyClassifier, "training_step", training_step)


def test_a_run_that_fails_or_diverges_does_not_stop_the_others(tmp_path, broken, capsys):
    path, output = write_experiment(tmp_path, figures=None), tmp_path / "out"
    optimizers = ["aida:lr=0.5,label=broken", "sgd:lr=1e38,momentum=0,label=far", "aida"]
    assert main(["compare", path, "--optimizers", *optimizers, "--output", str(output)]) == 1
    assert [row["status"] for row in rows(output)] == ["failed", "diverged", "completed"]
    assert rows(output)[0]["best_val_accuracy"] == ""
    assert "out of memory" in (output / "broken/seed_0/error.log").read_text()
    assert "RuntimeError: out of memory" in capsys.readouterr().out


def test_the_status_shows_what_came_after_a_setting_that_failed(tmp_path, broken, capsys):
    command = ["compare", write_experiment(tmp_path, figures=None), "--tune_seeds", "9"]
    command += ["--optimizers", "sgd:lr=0.5/0.1,label=SGD", "--output", str(tmp_path / "out")]
    assert main(command) == 1
    assert "best of 2: lr=0.1" in capsys.readouterr().out
    assert main([*command, "--status"]) == 0
    assert "1 failed, 2 finished" in capsys.readouterr().out


CHECKPOINTS = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
STOPPING = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "train_loss"},
}


def test_checkpoints_and_early_stopping_of_the_users_own_stand_beside_ours(tmp_path):
    path = write_experiment(tmp_path, figures=None, callbacks=[CHECKPOINTS, STOPPING])
    (result,) = compare(load_experiment(path), ["Aida K=2"], tmp_path / "out")
    assert (result.status, result.epochs) == ("completed", 2)
    (checkpoint,) = (tmp_path / "out").rglob("*.ckpt")  # the user's, of the last epoch
    assert checkpoint.name == "epoch=1-step=8.ckpt"


def test_callbacks_that_a_trainer_does_not_take_together_are_refused(tmp_path, capsys):
    path = write_experiment(tmp_path, callbacks=[CHECKPOINTS, CHECKPOINTS])
    assert main(["compare", path, "--output", str(tmp_path / "out")]) == 2
    assert "error: callbacks: Found more than one" in capsys.readouterr().err


def test_a_figure_with_nothing_to_draw_is_named(tmp_path, capsys):
    loaded = load_experiment(write_experiment(tmp_path), {"callbacks": [], "figures": ["fig6"]})
    compare(loaded, ["Aida K=2"], tmp_path / "out")
    assert "There is no fig6: none of the 1 run(s)" in " ".join(capsys.readouterr().out.split())


def test_one_sentence_says_why_several_figures_are_not_there_and_no_line_is_folded(
    tmp_path, capsys
):
    changes = {"callbacks": [], "figures": ["fig1", "fig6", "fig2"]}
    changes |= {f"optimizer_options.{name}": 0.5 for name in ("eps", "weight_decay")}
    compare(load_experiment(write_experiment(tmp_path), changes), ["Aida K=2"], tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    (reason,) = [line for line in lines if line.startswith("There is")]
    assert reason.startswith("There is no fig1, no fig6, no fig2: none of the 1 run(s)")
    assert reason.endswith("at every log_every_n_steps-th step")
    (changed,) = [line for line in lines if line.startswith("Changed: ")]
    assert changed.endswith("optimizer_options.eps=0.5, optimizer_options.weight_decay=0.5")


TWO_PROCESSES = ["--devices", "2", "--accelerator", "cpu"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizers", "adia"], "adia"),
        (["--optimizers", "aida:q=1"], "'q'"),
        (["--optimizers", "aida", "aida"], "two have the label 'Aida'"),
        (["--optimizers", "x*"], "matches none of Aida K=1"),
        (["--model", "vgg12"], "vgg12"),
        (["--data", "mnist"], "none of digits, cifar10"),
        (["--data", "digits:colour=3"], "'colour'"),
        (["--data", "cifar10:root=/nowhere"], "/nowhere"),
        (["--batch_size", "0"], "batch_size"),
        (["--lr_scheduler", "NoLR"], "NoLR"),
        (["--lr_scheduler", "StepLR:size=3"], "size"),
        (["--accelerator", "abacus"], "abacus"),
        (["--strategy", "ddp", *TWO_PROCESSES], "use 'ddp_spawn'"),
        (
            ["--strategy", "ddp_find_unused_parameters_true", *TWO_PROCESSES],
            "use 'ddp_spawn_find_unused_parameters_true'",
        ),
        (["--epochs", "0"], "epochs"),
        (["--epochs", "x"], "--epochs: Expected a <class 'int'>. Got value: x"),
        (["--seeds", "1", "1"], "seeds"),
        (["--tune_seeds", "-1"], "tune_seeds: different integers from 0 to 4294967295"),
        (["--seeds", "0", "--tune_seeds", "0"], "tune_seeds: seeds that choose a setting are not"),
        (["--baseline", "adm"], "baseline: one method's label is needed, but 'adm' is none of"),
        (["--target", "90"], "target.value: val_accuracy is logged as a fraction"),
        (["--seeds", "5000000000"], "seeds: different integers from 0 to 4294967295"),
        (["--limit_train_batches", "1.5"], "limit_train_batches"),
        (["--monitor_every_n_steps", "-1"], "log_every_n_steps"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["--set", "model.init_args.model"], "KEY=VALUE"),
        (["--set", "model.init_args.modle=vgg11"], "'modle'"),
        (["--colour", "red"], "--colour"),
    ],
    ids=" ".join,
)
def test_a_bad_option_is_refused_before_anything_trains(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(comparing, "train_run", lambda *_: pytest.fail("it trains"))
    output = tmp_path / "out"
    try:
        code = main(["compare", *arguments, "--output", str(output)])
    except SystemExit as error:  # the parser's own refusals
        code = error.code
    printed = capsys.readouterr()
    assert code == 2
    assert message in " ".join(printed.err.split())
    assert "Traceback" not in printed.err
    assert not output.exists()


@pytest.mark.parametrize("option", ["wights", "weights", "features"])
def test_a_bad_option_of_the_fid_is_refused_before_anything_trains(tmp_path, capsys, option):
    pytest.importorskip("torch_fidelity")
    (tmp_path / "file").write_bytes(b"nonsense")
    arguments = ["--data", "sample", "--set", f"model.init_args.fid.{option}={tmp_path / 'file'}"]
    output = tmp_path / "out"
    assert main(["compare", "table3_wgan_gp", *arguments, "--output", str(output)]) == 2
    assert {"wights": "fid has no option wights"}.get(option, str(tmp_path / "file")) in (
        capsys.readouterr().err
    )
    assert not output.exists()


def test_a_comparison_is_not_started_once_a_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    path = write_experiment(tmp_path)
    assert main(["compare", path, "--output", str(tmp_path / "out")]) == 2
    assert "torchrun" in capsys.readouterr().err


def test_a_metric_that_is_not_logged_is_named_with_those_that_are(tmp_path, capsys):
    path = write_experiment(tmp_path, figures=None, metric={"name": "val_acc", "title": "it"})
    options = ["--optimizers", "aida:label=[b]", "--epochs", "1", "--set", "description=[/x]"]
    options += ["--output", str(tmp_path / "out")]
    assert main(["compare", path, *options]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "failed: 'val_acc' was not logged; there are" in printed
    assert "val_accuracy" in printed
    assert "│ [b]" in printed  # no markup of ours
    assert "description=[/x]" in printed


@pytest.mark.parametrize("option", ["limit_train_batches=0", "fast_dev_run=true"])
def test_a_run_that_trains_nothing_fails_and_is_not_finished(tmp_path, capsys, option):
    path, output = write_experiment(tmp_path, figures=None), tmp_path / "out"
    command = ["compare", path, "--optimizers", "aida", "--output", str(output)]
    for _ in range(2):
        assert main([*command, "--set", f"trainer.{option}"]) == 1
        printed = " ".join(capsys.readouterr().out.split())
        assert "failed: no epoch was trained: " in printed
        assert "finished before" not in printed


def test_a_run_that_logs_nothing_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tiny.TinyClassifier, "log", lambda *_, **__: None)
    changes = {"callbacks": [], "model": {"class_path": "compare.tiny.TinyClassifier"}}
    path = write_experiment(tmp_path, figures=None, **changes)
    options = ["--optimizers", "sgd:momentum=0", "--output", str(tmp_path / "out")]
    assert main(["compare", path, *options]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "failed: 'val_accuracy' was not logged, nor was any other" in printed
