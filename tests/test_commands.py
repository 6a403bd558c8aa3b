"""The commands, and what their options become."""

import pytest

from aida_lightning import cli as lightning
from aida_lightning import commands
from aida_lightning.compare import comparison as comparing


@pytest.fixture
def compared(monkeypatch):
    """What the comparison is asked for."""
    calls = []
    monkeypatch.setattr(comparing, "compare", lambda *arguments: calls.append(arguments) or [])
    return calls


def test_every_option_reaches_the_experiment(compared):
    text = (
        "compare table1_vgg11 --optimizers aida* sgd --seeds 5 6 --epochs 3 --root elsewhere "
        "--limit_train_batches 0.1 --limit_val_batches 7 --batch_size 9 --weight_decay 0.5 "
        "--lr_scheduler StepLR:step_size=2,gamma=0.5 --accelerator cpu --devices 2 --output out "
        "--monitor_every_n_steps 11 --set model.init_args.num_classes=4 metric.report=last "
        "--keep_checkpoints --rerun --tune_seeds 7 8 --baseline sgd --target 0.9 --jobs 3 "
        "--launcher slurm --launcher_options timeout_min=240 slurm_time=04:00:00"
    )
    commands.main(text.split())
    ((loaded, optimizers, output, keep, rerun, jobs, launcher, asked),) = compared
    assert (optimizers, output, keep, rerun) == (["aida*", "sgd"], "out", True, True)
    assert (jobs, launcher) == (3, "slurm")
    assert asked == {"timeout_min": 240, "slurm_time": "04:00:00"}
    config = loaded.config
    trainer, data, model = (config[k]["init_args"] for k in ("trainer", "data", "model"))
    assert (trainer["max_epochs"], trainer["log_every_n_steps"]) == (3, 11)
    assert (trainer["limit_train_batches"], trainer["limit_val_batches"]) == (0.1, 7)
    assert (trainer["accelerator"], str(trainer["devices"])) == ("cpu", "2")
    assert trainer["strategy"] == "ddp_spawn"
    assert (data["root"], data["batch_size"]) == ("elsewhere", 9)
    assert (model["lr_scheduler"], model["num_classes"]) == ("StepLR", 4)
    assert model["lr_scheduler_options"] == {"step_size": 2, "gamma": 0.5}
    assert (config["seeds"], config["tune_seeds"]) == ([5, 6], [7, 8])
    assert (config["baseline"], config["target"]) == ("sgd", {"value": 0.9})
    assert config["optimizer_options"]["weight_decay"] == 0.5
    assert config["metric"]["report"] == "last"


@pytest.mark.parametrize(
    ("options", "name", "batch_size"),
    [
        ([], "DigitsDataModule", 32),
        (["--data", "cifar10:root=x"], "CIFAR10DataModule", 128),
        (["--data", "cifar100:root=x"], "CIFAR100DataModule", 128),
        (["--data", "cifar10", "--batch_size", "8"], "CIFAR10DataModule", 8),
    ],
)
def test_the_first_experiment_takes_other_data(compared, options, name, batch_size):
    commands.main(["compare", *options])
    data = compared[0][0].config["data"]
    assert data["class_path"].endswith(name)
    assert data["init_args"]["batch_size"] == batch_size


def test_set_may_be_given_again_and_the_last_value_of_a_key_holds(compared):
    text = "compare table1_vgg11 --set seeds=[1] metric.report=last --set seeds=[2] --epochs 3"
    commands.main([*text.split(), "--set", "trainer.max_epochs=4"])
    config = compared[0][0].config
    assert (config["seeds"], config["metric"]["report"]) == ([2], "last")
    assert config["trainer"]["init_args"]["max_epochs"] == 4


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_lightnings_commands_are_handed_over_whole(monkeypatch, capsys, command):
    run = lambda argv: 3 if argv == [command, "--a=1"] else 4  # noqa: E731
    monkeypatch.setattr(lightning, "run_lightning_cli", run)
    assert commands.main([command, "--a=1"]) == 3
    with pytest.raises(SystemExit):
        commands.main(["--help"])
    assert f"    {command} " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["compare", "figures", "summary"])
def test_the_help_is_short(capsys, command):
    with pytest.raises(SystemExit):
        commands.main([command, "--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 90
    assert "default: null" not in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("compare --epoch 3", "unrecognized arguments: --epoch; did you mean: --epochs?"),
        ("compare --epochs x", "--epochs:\n  Expected a <class 'int'>. Got value: x"),
        ("summary runs --layer 3", "unrecognized arguments: --layer 3; did you mean: --layers?"),
        ("figures", "the following arguments are required: logdir"),
    ],
)
def test_an_error_comes_first_and_then_one_line_on_the_help(capsys, args, message):
    with pytest.raises(SystemExit, match="2"):
        commands.main(args.split())
    program = f"aida-lightning {args.split()[0]}"
    assert capsys.readouterr().err == (
        f"{program}: error: {message}\n`{program} --help` lists the options.\n"
    )


def test_a_smoothing_weight_out_of_range_is_refused(tmp_path, capsys):
    assert commands.main(["figures", str(tmp_path), "--smooth", "1"]) == 2
    assert "smooth: from 0 to below 1" in capsys.readouterr().err
