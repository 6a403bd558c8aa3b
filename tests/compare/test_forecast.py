"""Before a comparison trains it tells what it is going to do, and soon for how long."""

import re

import pytest
from compare import tiny
from compare.tiny import write_experiment

from aida_lightning.commands import main
from aida_lightning.compare import forecast


@pytest.fixture
def clock(monkeypatch):
    """Let each batch take two seconds."""
    now = [0.0]

    def on_train_batch_end(self, *_):
        now[0] += 2.0

    monkeypatch.setattr(tiny.Kill, "on_train_batch_end", on_train_batch_end)
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: now[0])


def printed(capsys, path, output, *options):
    assert main(["compare", path, "--output", str(output), *options]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_time_of_all_runs_that_are_left_is_told_once(tmp_path, capsys, clock):
    path, output = write_experiment(tmp_path, figures=None), tmp_path / "out"
    options = ["--epochs", "10", "--optimizers", "sgd", "aida"]
    text = printed(capsys, path, output, *options)
    # 4 batches of 2 s in each of 10 epochs, of which 30 batches are done.
    told = re.findall(
        r"About (\S+) of training are left for (.+?), by the pace of the first 30", text
    )
    assert told == [("0:01:40", "2 runs")]
    assert text.index("Runs: 2, each of 10 epochs (seeds: 0); 2 to go") < text.index("[1/2]")
    assert text.index("[1/2]") < text.index("About") < text.index("[2/2]")
    assert "About" not in printed(capsys, path, output, *options)
    assert "to go" not in printed(capsys, path, output, *options)
    more = printed(capsys, path, output, *options, "--seeds", "0", "1")
    assert "Runs: 4, each of 10 epochs (seeds: 0, 1); 2 to go" in more
    assert "About 0:01:40 of training are left for 2 runs" in more


def test_a_resumed_run_is_counted_from_where_it_goes_on(tmp_path, capsys, clock, monkeypatch):
    path, output = write_experiment(tmp_path, figures=None), tmp_path / "out"
    command = ["compare", path, "--output", str(output), "--epochs", "10", "--optimizers", "sgd"]

    def press_ctrl_c(self, trainer, *_):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tiny.Kill, "on_train_epoch_start", press_ctrl_c, raising=False)
        assert main(command) == 130
    capsys.readouterr()
    assert main(command) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "About 0:00:12 of training are left for this run" in text  # 40 - 4 - 30 batches


def test_the_limit_of_steps_counts_with_accumulated_batches(tmp_path, capsys, clock):
    path = write_experiment(tmp_path, figures=None)
    limits = ["trainer.max_steps=20", "trainer.accumulate_grad_batches=2"]
    options = ["--epochs", "99", "--optimizers", "sgd", "--set", *limits]
    text = printed(capsys, path, tmp_path / "out", *options)
    assert "About 0:00:20 of training are left for this run" in text


def test_short_runs_are_not_forecast(tmp_path, capsys):
    path = write_experiment(tmp_path, figures=None)
    text = printed(capsys, path, tmp_path / "out", "--optimizers", "sgd")
    assert "Runs: 1, each of 2 epochs (seeds: 0); 1 to go" in text
    assert "About" not in text
