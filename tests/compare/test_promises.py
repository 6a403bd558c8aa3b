"""What a comparison says stays true whatever happens to its files, its code and its terminal."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from compare.tiny import EXPERIMENT, TinyClassifier, write_experiment
from torch.utils.tensorboard import SummaryWriter

from aida_lightning.commands import main
from aida_lightning.compare import run as running
from aida_lightning.compare.callbacks import LastCheckpointIO
from aida_lightning.compare.comparison import compare
from aida_lightning.compare.loading import load_experiment
from aida_lightning.compare.methods import UsageError, folder_label
from aida_lightning.compare.results import measure_run
from aida_lightning.logs.curves import read_scalars
from aida_lightning.logs.events import DamagedEventsWarning
from aida_lightning.logs.metric import Metric
from aida_lightning.logs.runs import find_runs

RUN = "Aida_K=2/seed_0"


def run(path, output, **options):
    return compare(load_experiment(path), ["Aida K=2"], output, **options)


def test_a_function_in_a_file_is_refused_before_it_is_called(tmp_path, capsys):
    command = f"touch {tmp_path / 'called'}"
    data = {"class_path": "os.system", "init_args": {"command": command}}
    assert main(["compare", write_experiment(tmp_path, data=data)]) == 2
    assert "data: os.system must be a subclass of LightningDataModule" in capsys.readouterr().err
    change = ["--set", "data=" + str(data).replace("'", '"')]
    assert main(["compare", write_experiment(tmp_path), *change]) == 2
    assert not (tmp_path / "called").exists()


class Unreadable(TinyClassifier):
    """Its hyperparameters hold a path, which no checkpoint gives back with weights_only."""

    def __init__(self, optimizer: str = "aida", optimizer_options: dict | None = None):
        super().__init__(6, optimizer, optimizer_options)
        self.hparams["folder"] = Path("data")


def test_a_module_whose_checkpoint_could_not_be_read_is_refused_beforehand(tmp_path):
    path = write_experiment(tmp_path, model={"class_path": "compare.test_promises.Unreadable"})
    with pytest.raises(UsageError, match=r"hyperparameter 'folder' of Unreadable is a P.*Path"):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_whose_checkpoint_cannot_be_read_says_so_and_keeps_its_numbers(tmp_path, monkeypatch):
    def damaged(folder):
        raise running.DamagedFileError(folder / "last.ckpt", "UnpicklingError: a reason")

    monkeypatch.setattr(running, "resume_point", damaged)
    (result,) = run(write_experiment(tmp_path, figures=None), tmp_path / "out")
    assert result.status == "failed"
    assert "last.ckpt cannot be read (UnpicklingError: a reason)" in result.message
    assert result.best is not None


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An experiment with a module of the user's own, and the file that it is in."""
    module = tmp_path / "own_module.py"
    module.write_text("from compare.tiny import TinyClassifier\nclass Own(TinyClassifier): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield write_experiment(tmp_path, model={"class_path": "own_module.Own"}, figures=None), module
    sys.modules.pop("own_module", None)


def test_edited_code_is_refused_or_trained_again_with_the_old_run_kept(own, tmp_path, capsys):
    path, module = own
    run(path, tmp_path / "out")
    run(path, tmp_path / "out")
    assert "not run again" in capsys.readouterr().out
    module.write_text(module.read_text() + "# another thought\n")
    with pytest.raises(
        UsageError, match=r"edited since then, which is kept: own_module\..*--rerun"
    ):
        run(path, tmp_path / "out")
    (result,) = run(path, tmp_path / "out", rerun=True)
    assert result.status == "completed"
    assert "not run again" not in capsys.readouterr().out
    (aside,) = (tmp_path / "out" / ".replaced").iterdir()
    assert (aside / "result.json").is_file()
    assert len(find_runs([tmp_path / "out"])) == 1  # what is set aside is not shown
    run(path, tmp_path / "out")
    assert "not run again" in capsys.readouterr().out


def test_runs_from_before_their_sources_were_noted_go_on(own, tmp_path, capsys):
    path, _ = own
    run(path, tmp_path / "out")
    note = tmp_path / "out" / RUN / "run.yaml"
    settings = yaml.safe_load(note.read_text())
    assert {"own_module", "compare.tiny"} <= settings.pop("sources").keys()
    note.write_text(yaml.safe_dump(settings, sort_keys=False))
    run(path, tmp_path / "out")
    assert "not run again" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "model: {", "- 3"])
def test_a_damaged_config_is_written_anew_where_the_runs_know_their_settings(tmp_path, content):
    path = write_experiment(tmp_path, figures=None)
    run(path, tmp_path / "out")
    config = tmp_path / "out" / "config.yaml"
    whole = config.read_text()
    config.write_text(content)
    (result,) = run(path, tmp_path / "out")
    assert result.status == "completed"
    assert config.read_text() == whole
    assert (tmp_path / "out" / "config.yaml.damaged").read_text() == content
    config.write_text(content)
    other = write_experiment(tmp_path, figures=None, optimizer_options={"lr": 0.5})
    with pytest.raises(UsageError, match="holds a run with other settings"):
        run(other, tmp_path / "out")


def test_a_full_disk_is_named_with_how_to_go_on(tmp_path, monkeypatch, capsys):
    write = Path.write_text

    def full(path, *arguments, **options):
        if "results" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **options)

    path = write_experiment(tmp_path, figures=None)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        command = ["compare", path, "--optimizers", "Aida K=2", "--output", str(tmp_path / "out")]
        assert main(command) == 1
    error = capsys.readouterr().err
    assert "results.csv cannot be written: [Errno 28] No space left on device" in error
    assert "run the same command again" in error
    assert main(command) == 0
    assert "not run again" in capsys.readouterr().out


@pytest.fixture
def interrupted(monkeypatch):
    """A function that compares, and is stopped at the start of an epoch."""
    start = TinyClassifier.on_train_epoch_start

    def compared(path, output, epoch):
        def stop(self):
            if self.current_epoch == epoch:
                raise RuntimeError("stopped")
            start(self)

        with monkeypatch.context() as patch:
            patch.setattr(TinyClassifier, "on_train_epoch_start", stop)
            (result,) = run(path, output)
        assert result.status == "failed"

    return compared


def assert_alike(folder, other):
    ours, theirs = (read_scalars(f / RUN) for f in (folder, other))
    assert ours.keys() == theirs.keys()
    for tag, curve in theirs.items():
        assert ours[tag].steps.tolist() == curve.steps.tolist(), tag
        np.testing.assert_array_equal(ours[tag].values, curve.values)


def test_the_clock_set_back_changes_no_number(tmp_path, monkeypatch, interrupted):
    trainer = {**EXPERIMENT["trainer"], "max_epochs": 4}
    path = write_experiment(tmp_path, figures=None, trainer=trainer)
    run(path, tmp_path / "unbroken")
    interrupted(path, tmp_path / "broken", epoch=2)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 86_400)
    (result,) = run(path, tmp_path / "broken")
    assert (result.status, result.epochs) == ("completed", 4)
    assert_alike(tmp_path / "broken", tmp_path / "unbroken")


@pytest.mark.parametrize("option", [{"max_steps": 14}, {"reload_dataloaders_every_n_epochs": 1}])
def test_a_run_that_lightning_would_not_go_on_with_rightly_starts_anew(
    tmp_path, interrupted, option
):
    trainer = {**EXPERIMENT["trainer"], "max_epochs": 4, **option}
    path = write_experiment(tmp_path, figures=None, trainer=trainer)
    run(path, tmp_path / "unbroken")
    interrupted(path, tmp_path / "broken", epoch=2)
    (result,) = run(path, tmp_path / "broken")
    assert (result.status, result.epochs) == ("completed", 4)
    assert_alike(tmp_path / "broken", tmp_path / "unbroken")


@pytest.mark.filterwarnings("ignore:.* is damaged")
def test_a_recorded_result_is_not_measured_again_from_damaged_files(tmp_path):
    path = write_experiment(tmp_path, figures=None)
    (first,) = run(path, tmp_path / "out")
    (file,) = (tmp_path / "out" / RUN).glob("*tfevents*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (again,) = run(path, tmp_path / "out")
    assert again == first
    other = write_experiment(tmp_path, figures=None, metric={"name": "train_loss", "better": "min"})
    (result,) = run(other, tmp_path / "out")
    assert (result.status, result.best) == ("failed", None)
    assert "is damaged: " in result.message
    assert "The result by val_accuracy is kept" in result.message
    with pytest.warns(DamagedEventsWarning, match="is damaged"):
        main(["figures", str(tmp_path / "out"), "--figures", "fig1"])
    with pytest.warns(DamagedEventsWarning, match="is damaged"):
        main(["summary", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("tag", "values", "status"),
    [
        ("score", [0.5, 0.6], "completed"),
        ("score", [0.5, float("nan")], "diverged"),
        ("score", [float("nan"), 0.6], "diverged"),
        ("train_loss", [1.0, float("inf")], "diverged"),
        ("loss_is_not_finite", [1.0], "diverged"),
    ],
)
def test_any_nan_of_the_metric_or_of_the_loss_is_a_divergence(tmp_path, tag, values, status):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("score", 0.1, 0)
        for step, value in enumerate(values, 1):
            writer.add_scalar(tag, value, step)
    assert measure_run(tmp_path, Metric("score"))["status"] == status


class Objective(TinyClassifier):
    """Its loss is logged under no name, and is NaN from the second epoch on."""

    def __init__(self, optimizer: str = "aida", optimizer_options: dict | None = None):
        super().__init__(6, optimizer, optimizer_options)

    def training_step(self, batch, batch_idx):
        loss = self(batch[0]).square().mean()
        return loss * float("nan") if self.current_epoch else loss


def test_a_loss_that_nobody_logs_is_watched_too(tmp_path):
    trainer = {**EXPERIMENT["trainer"], "max_epochs": 5}
    model = {"class_path": "compare.test_promises.Objective"}
    path = write_experiment(tmp_path, figures=None, model=model, trainer=trainer, callbacks=[])
    (result,) = run(path, tmp_path / "out")
    assert (result.status, result.message) == ("diverged", "the loss is not finite")
    assert result.epochs == 2  # the others would have been in vain


def test_the_kernel_that_is_chosen_breaks_no_run_that_works_without(tmp_path):
    trainer = {**EXPERIMENT["trainer"], "precision": "bf16-mixed", "gradient_clip_val": 0.5}
    path = write_experiment(tmp_path, figures=None, trainer=trainer)
    results = compare(load_experiment(path), ["Aida K=2", "adam", "adamw"], tmp_path / "out")
    assert [result.status for result in results] == ["completed"] * 3


def test_no_run_has_the_compilation_of_its_kernel_in_its_time(tmp_path, monkeypatch):
    steps = []
    clock = SimpleNamespace(perf_counter=lambda: steps.append("clock") or time.perf_counter())
    monkeypatch.setattr(running, "_warm_up", lambda optimizer: steps.append("warm"))
    monkeypatch.setattr(running, "time", clock)
    run(write_experiment(tmp_path, figures=None), tmp_path / "out")
    assert steps.index("warm") < steps.index("clock")
    monkeypatch.undo()
    taken = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: taken.append(self.defaults["fused"]))
    running._warm_up(running.OptimizerChoice("adam", {"lr": 0.1}, "Adam", "Adam"))
    assert taken == [True]


@pytest.mark.parametrize("char", ["\x7f", "\x9b", "\u202e", "\u200f", "\u200b"])
def test_labels_hold_no_characters_that_cannot_be_seen(char):
    with pytest.raises(UsageError, match="invisible character"):
        folder_label(f"Ai{char}da")


def test_two_ways_to_write_an_accent_are_one_label(tmp_path):
    one, other = "Ad\u00e9le", "Ade\u0301le"
    assert folder_label(one) == folder_label(other)
    with pytest.raises(UsageError, match="two have the label"):
        compare(
            load_experiment(write_experiment(tmp_path)),
            [f"sgd:label={one}", f"adam:label={other}"],
            tmp_path / "out",
        )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_characters_gets_others(tmp_path, encoding):
    path = write_experiment(tmp_path, figures=None, seeds=[0, 1])
    command = "import sys; from aida_lightning.commands import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["compare", path, "--optimizers", "Aida K=2", "--output", str(tmp_path / "out")]
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": tests}
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode(encoding)
    assert ("+/-" if encoding == "ascii" else "±") in shown


def test_a_default_that_no_file_can_hold_is_left_to_its_class(tmp_path):
    average = {
        "class_path": "lightning.pytorch.callbacks.StochasticWeightAveraging",
        "init_args": {"swa_lrs": 0.01},
    }
    loaded = load_experiment(write_experiment(tmp_path, callbacks=[average]))
    assert "Unable to serialize" not in str(loaded.config)
    assert loaded.config["callbacks"][0]["init_args"]["swa_lrs"] == 0.01
    (callback,) = (build() for build in loaded.experiment.callbacks)
    assert callback._device == torch.device("cpu")


def test_a_checkpoint_that_is_held_is_that_of_its_moment(tmp_path):
    held = LastCheckpointIO(tmp_path)
    data = {"loads": [1]}
    rate = torch.tensor(0.1)
    state = {"state": {}, "param_groups": [{"lr": rate}]}
    checkpoint = {"state_dict": {}, "optimizer_states": [state], "TinyData": data}
    held.save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    data["loads"].append(2)
    rate.fill_(0.5)
    assert not (tmp_path / "last.ckpt").exists()
    held.write()
    written = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert written["TinyData"] == {"loads": [1]}
    assert written["optimizer_states"][0]["param_groups"][0]["lr"] == torch.tensor(0.1)
