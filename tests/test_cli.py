"""LightningCLI itself is the oracle for what names stand for, and for what it gets wrong."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import (
    LightningArgumentParser,
    LightningCLI,
    LRSchedulerTypeTuple,
    SaveConfigCallback,
)
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, StepLR
from toy import Net

from aida_lightning import Aida, LAida, OptimizerMixin, StepsizeMonitor
from aida_lightning.callbacks import UseOptimizer
from aida_lightning.cli import AidaCLI, NamesArgumentParser
from aida_lightning.cli import run_lightning_cli as main

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
    # Lightning's own calls of newer jsonargparse.
    pytest.mark.filterwarnings("ignore:(?s).*one Jsonargparse:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:(?s).*was deprecated in v:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:--optimizer overrides:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*will be overridden by `LightningCLI:UserWarning"),
]
TRAINER = [
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_epochs=1",
    "--trainer.logger=false", "--trainer.enable_checkpointing=false",
    "--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false",
    "--trainer.limit_train_batches=4", "--trainer.limit_val_batches=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def command_line(monkeypatch, tmp_path):
    """LightningCLI warns if the process has arguments of its own."""
    monkeypatch.setattr(sys, "argv", ["aida-lightning"])
    monkeypatch.chdir(tmp_path)


def parser(cls=NamesArgumentParser, **kwargs):
    made = cls(exit_on_error=False, **kwargs)
    made.add_argument("--config", action="config")
    made.add_optimizer_args()
    made.add_lr_scheduler_args(LRSchedulerTypeTuple)  # as LightningCLI does
    return made


def parsed(*args, **kwargs):
    return parser(**kwargs).parse_args([*args]).as_dict()


def cli(model, *args, cls=AidaCLI, **kwargs):
    options = {"run": False, "save_config_callback": None, "seed_everything_default": 7, **kwargs}
    return cls(model, args=[*(["fit"] if options["run"] else []), *TRAINER, *args], **options)


@pytest.mark.parametrize(
    ("typed", "path"),
    [
        ("aida", "aida_lightning.Aida"), ("Aida", "aida_lightning.Aida"),
        ("adam+", "aida_lightning.AdamPlus"), ("AdaBelief-L", "aida_lightning.AdaBeliefL"),
        ("sgd", "torch.optim.SGD"), ("Adam", "torch.optim.Adam"), ("ADAMW", "torch.optim.AdamW"),
    ],
)  # fmt: skip
def test_a_name_in_any_case_stands_for_its_class(typed, path):
    given = parsed("--optimizer", typed, "--optimizer.lr=0.5")
    theirs = parser(LightningArgumentParser)
    spelt = theirs.parse_args(["--optimizer", path, "--optimizer.lr=0.5"]).as_dict()
    assert given["optimizer"] == spelt["optimizer"]
    assert given["optimizer"]["class_path"] == path


@pytest.mark.parametrize(
    "given",
    [
        ["--optimizer=aida", "--optimizer.kk=1"],
        ["--optimizer=aida", "--optimizer.init_args.kk=1"],
        ["--config=own.yaml"],
        ["--config=aida.yaml", "--optimizer.kk=1"],
        ["--optimizer=aida_lightning.Aida", "--optimizer.kk=1"],
    ],
)
def test_an_option_that_does_not_exist_gives_those_that_do(given):
    Path("own.yaml").write_text("optimizer: {class_path: aida, init_args: {kk: 1}}")
    Path("aida.yaml").write_text("optimizer: aida")
    with pytest.raises(ArgumentError, match=r"no option 'kk'; its options are: lr, betas, .* k, "):
        parsed(*given)


def test_other_classes_are_taken_as_lightningcli_takes_them():
    for typed in ("RMSprop", "torch.optim.RMSprop"):
        assert parsed("--optimizer", typed)["optimizer"]["class_path"] == "torch.optim.RMSprop"
    assert parsed()["optimizer"] is None


def test_names_are_taken_wherever_an_optimizer_is_given(tmp_path):
    expected = {"class_path": "aida_lightning.LAida", "k": 3}

    def short(config):
        return {
            "class_path": config["optimizer"]["class_path"],
            "k": config["optimizer"]["init_args"]["k"],
        }

    k = {"init_args": {"k": 3}}
    assert short(parsed("--optimizer=l-aida", "--optimizer.k=3")) == expected
    assert short(parsed("--optimizer.class_path", "laida", "--optimizer.init_args.k=3")) == expected
    given = {"optimizer": {"class_path": "laida", **k}}
    assert short(parser().parse_object(given).as_dict()) == expected
    assert given["optimizer"]["class_path"] == "laida"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"optimizer": {"class_path": "LAIDA", **k}}))
    assert short(parsed("--config", str(file))) == expected
    file.write_text("optimizer: laida")
    assert short(parsed("--config", str(file), "--optimizer.k=3")) == expected
    other = parsed("--config", str(file), "--optimizer.k=3", "--optimizer=adam")
    assert other["optimizer"]["class_path"] == "torch.optim.Adam"
    assert "k" not in other["optimizer"]["init_args"]


@pytest.mark.parametrize("default", ["l-aida", {"class_path": "l-aida"}])
def test_a_name_may_be_the_default(default):
    made = parser()
    made.set_defaults({"optimizer": default})
    assert made.parse_args(["--optimizer.k=3"]).optimizer.class_path == "aida_lightning.LAida"


def test_null_is_no_name():
    assert parsed("--optimizer=aida", "--optimizer=null")["optimizer"] is None


class OwnCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args(nested_key="first", link_to="model.first")
        parser.add_lr_scheduler_args(nested_key="then", link_to="model.second")


@pytest.mark.parametrize("place", ["the subcommand's", "the command's", "defaults", "a dictionary"])
def test_names_are_taken_by_subcommands_of_a_cli_of_ones_own(place):
    config = {"first": "l-aida", "then": {"class_path": "steplr", "init_args": {"step_size": 2}}}
    config["trainer"] = {"accelerator": "cpu", "logger": False, "fast_dev_run": 1}
    whole = {"subcommand": "fit", "fit": config}
    Path("config.yaml").write_text(yaml.safe_dump({"fit": config}))
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    args = {
        "the subcommand's": ["fit", "--config=fit.yaml"],
        "the command's": ["--config=config.yaml", "fit"],
        "defaults": ["fit"],
        "a dictionary": whole,
    }[place]
    options = {"fit": {"default_config_files": ["fit.yaml"]}} if place == "defaults" else {}
    made = OwnCLI(
        TakesOptimizers,
        args=args,
        parser_class=NamesArgumentParser,
        parser_kwargs=options,
        seed_everything_default=7,
    )
    first, second = made.model.given
    assert first["class_path"] == "aida_lightning.LAida"
    assert second["class_path"] == "torch.optim.lr_scheduler.StepLR"
    assert whole["fit"]["first"] == "l-aida"


def test_what_else_is_called_like_an_optimizer_stays():
    class Named(Net):
        def __init__(self, optimizer: str = "", init_args: dict | None = None):
            super().__init__()
            self.given = optimizer, init_args

    Path("own.yaml").write_text("model: {optimizer: aida, init_args: {optimizer: sgd}}")
    model = cli(Named, "--config=own.yaml", "--optimizer=adam").model
    assert model.given == ("aida", {"optimizer": "sgd"})
    assert cli(Named, "--model.optimizer=aida").model.given[0] == "aida"
    assert isinstance(model.configure_optimizers(), Adam)


def test_sparse_embeddings_are_refused_when_the_optimizer_is_built():
    class Embeds(Net):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(5, 4, sparse=True)

    model = cli(Embeds, "--optimizer=aida").model
    with pytest.raises(ValueError, match=r"table\.weight"):
        model.configure_optimizers()


def test_the_environment_may_name_an_optimizer(monkeypatch):
    monkeypatch.setitem(os.environ, "PL_OPTIMIZER", "aida")
    config = parsed(default_env=True, env_prefix="PL")
    assert config["optimizer"]["class_path"] == "aida_lightning.Aida"


def test_schedulers_have_names_in_any_case():
    config = parsed("--lr_scheduler", "cosineannealinglr", "--lr_scheduler.T_max=5")
    assert config["lr_scheduler"]["class_path"] == "torch.optim.lr_scheduler.CosineAnnealingLR"
    assert config["lr_scheduler"]["init_args"]["T_max"] == 5
    plateau = parsed("--lr_scheduler=reducelronplateau", "--lr_scheduler.monitor=loss")
    assert plateau["lr_scheduler"]["class_path"].startswith("lightning.pytorch.cli.")


def test_a_name_may_be_in_json():
    given = parsed('--optimizer={"class_path": "aida", "init_args": {"k": 0}}')["optimizer"]
    assert given["class_path"] == "aida_lightning.Aida"
    assert given["init_args"]["k"] == 0


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--optimizer=aidaa"], "optimizer: Unknown optimizer 'aidaa', did you mean: aida"),
        (["--optimizer.class_path=aidaa"], "optimizer.class_path: Unknown optimizer 'aidaa', did"),
        (["--optimizer.help=aidaa"], "optimizer.help: Unknown optimizer 'aidaa', did you mean"),
        (["--config={optimizer: aidaa}"], "optimizer: Unknown optimizer 'aidaa', did you mean"),
        (
            ["--optimizer=aida", "--optimizer.momentum=0.9"],
            r"Aida has no option 'momentum'; its options are: lr",
        ),
        (["--optimizer=aida", "--optimizer.k=one"], "Expected a <class 'int'>"),
        (["--optimizer={aida"], "Given value: {aida"),
        (["--lr_scheduler=StepLR"], "step_size"),
        (["--lr_scheduler=multisteplr"], "milestones"),
        (["--optimizer=torch.optim.SGDD"], "has no attribute 'SGDD'"),
        (["--lr_scheduler=Step"], "lr_scheduler: Unknown LR scheduler 'Step', did you mean: St"),
    ],
)
def test_what_is_not_known_is_refused(args, match):
    with pytest.raises(ArgumentError, match=match):
        parsed(*args)


def test_help_lists_the_names_and_the_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        parsed("--optimizer.help", "aida")
    of_aida = capsys.readouterr().out
    assert "--optimizer.k K" in of_aida
    assert "number of mutual projections" in of_aida
    assert "--optimizer.params" not in of_aida
    with pytest.raises(SystemExit, match="0"):
        parsed("--help")
    of_all = " ".join(capsys.readouterr().out.split())
    assert "Optimizer: --optimizer.help" in of_all
    assert "VALUE One of adabelief, adabeliefl, adam, " in of_all
    assert "yogi, in any case, or the path or name of another class" in of_all
    assert "VALUE One of ChainedScheduler, ConstantLR, CosineAnnealingLR, " in of_all
    assert "torch.optim.Adadelta" not in of_all


def test_the_help_has_a_heading_for_each_part_of_a_run(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert {"Model:", "Data module:", "Optimizer:", "LR scheduler:"} <= {*lines}
    assert not any(line.startswith("<class") for line in lines)


class BuiltLate(Net):
    """Makes its layers when the Trainer asks for them."""

    def __init__(self):
        super().__init__()
        self.placeholder = nn.Parameter(torch.zeros(1))
        self.features = self.head = None

    def configure_model(self):
        if self.head is None:
            del self.placeholder
            self.features, self.head = nn.Linear(4, 3), nn.Linear(3, 1)

    def on_train_start(self):
        self.start = self.head.weight.detach().clone()


def test_layers_that_are_made_late_are_trained_as_lightningcli_does_not():
    args = ["--optimizer", "aida_lightning.Aida", "--optimizer.lr=0.1"]
    theirs, ours = (cli(BuiltLate, *args, cls=cls) for cls in (LightningCLI, AidaCLI))
    for made in (theirs, ours):
        made.trainer.fit(made.model)
    assert torch.equal(theirs.model.head.weight, theirs.model.start)
    assert not torch.equal(ours.model.head.weight, ours.model.start)
    (optimizer,) = ours.trainer.optimizers
    assert optimizer.param_groups[0]["params"] == [*ours.model.parameters()]


def test_a_run_equals_that_of_an_optimizer_built_by_hand():
    class ByHand(Net):
        def configure_optimizers(self):
            optimizer = Aida(self.parameters(), lr=0.01, k=1)
            return [optimizer], [StepLR(optimizer, 1, gamma=0.5)]

    args = [
        "--optimizer=aida", "--optimizer.lr=0.01", "--optimizer.k=1", "--lr_scheduler=steplr",
        "--lr_scheduler.step_size=1", "--lr_scheduler.gamma=0.5", "--trainer.max_epochs=3",
    ]  # fmt: skip
    ours = cli(Net, *args)
    ours.trainer.fit(ours.model)
    by_hand = cli(ByHand, "--trainer.max_epochs=3")
    by_hand.trainer.fit(by_hand.model)
    assert ours.trainer.optimizers[0].param_groups[0]["lr"] == 0.01 / 8
    for a, b in zip(ours.model.parameters(), by_hand.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_plateau_scheduler_gets_its_metric():
    made = cli(
        Net, "--optimizer=sgd", "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=loss"
    )
    made.trainer.fit(made.model)
    (config,) = made.trainer.lr_scheduler_configs
    assert config.monitor == "loss"
    assert config.scheduler.optimizer is made.trainer.optimizers[0]


def test_each_fit_has_an_optimizer_of_its_own_and_so_has_each_copy():
    made = cli(BoringModel, "--optimizer=aida")
    made.trainer.fit(made.model)
    (first,) = made.trainer.optimizers
    made.trainer.fit(made.model)
    assert made.trainer.optimizers[0] is not first
    made.model.trainer = None
    copy = pickle.loads(pickle.dumps(made.model))
    optimizer = copy.configure_optimizers()
    assert isinstance(optimizer, Aida)
    assert optimizer.param_groups[0]["params"] == [*copy.parameters()]


class Declared(OptimizerMixin, Net):
    optimizer = "laida"


@pytest.mark.filterwarnings("error:--optimizer overrides:UserWarning")
def test_the_optimizer_of_the_command_line_wins():
    assert isinstance(cli(Declared, "--optimizer=adam").model.configure_optimizers(), Adam)
    assert isinstance(cli(Declared).model.configure_optimizers(), LAida)
    with pytest.warns(UserWarning, match=r"--optimizer overrides Net.configure_optimizers"):
        cli(Net, "--optimizer=adam")
    assert isinstance(cli(Net).model.configure_optimizers(), Aida)


class Scheduled(Declared):
    optimizer_options = {"weight_decay": 0.1}  # noqa: RUF012
    lr_scheduler = "ConstantLR"


def test_what_a_mixin_declares_beside_the_name_is_not_dropped_in_silence():
    with pytest.warns(UserWarning, match="overrides Scheduled.optimizer_options and lr_scheduler"):
        cli(Scheduled, "--optimizer=adam")


class TwoOptimizerCLI(AidaCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args(nested_key="first", link_to="model.first")
        parser.add_optimizer_args(SGD, nested_key="second", link_to="model.second")


class TakesOptimizers(Net):
    def __init__(self, first: dict | None = None, second: dict | None = None):
        super().__init__()
        self.given = first, second


def test_optimizers_that_are_linked_to_the_model_have_names_too():
    made = cli(TakesOptimizers, "--first=aida", "--second.lr=0.5", cls=TwoOptimizerCLI)
    first, second = made.model.given
    assert first["class_path"] == "aida_lightning.Aida"
    assert second["init_args"]["lr"] == 0.5


class SeveralCLI(AidaCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args(nested_key="first")
        parser.add_optimizer_args(nested_key="second")


def test_one_of_several_optimizers_may_be_given_and_not_two():
    made = cli(Net, "--second=laida", cls=SeveralCLI)
    assert isinstance(made.model.configure_optimizers(), LAida)
    with pytest.raises(MisconfigurationException, match="at most one optimizer"):
        cli(Net, "--first=aida", "--second=laida", cls=SeveralCLI)


class FixedCLI(AidaCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args(Aida)


class FixedSchedulerCLI(AidaCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_lr_scheduler_args(ExponentialLR)


def test_a_class_may_be_fixed():
    args = ["--lr_scheduler.gamma=0.5"]
    own = cli(Net, *args, cls=FixedSchedulerCLI).model.configure_optimizers()
    assert isinstance(own, Aida)
    (optimizer,), (scheduler,) = cli(
        Net, "--optimizer=sgd", *args, cls=FixedSchedulerCLI
    ).model.configure_optimizers()
    assert isinstance(optimizer, SGD)
    assert scheduler.gamma == 0.5
    optimizer = cli(Net, "--optimizer.k=5", cls=FixedCLI).model.configure_optimizers()
    assert isinstance(optimizer, Aida)
    assert optimizer.defaults["k"] == 5


class Unbuilt(Declared):
    def __init__(self):
        raise AssertionError("The model is built.")


def test_options_that_cannot_be_are_refused_before_the_model_is_built(capsys):
    for args, message in (
        (["--optimizer=aida", "--optimizer.lr=-1"], "--optimizer Aida: Invalid learning rate: -1"),
        (["--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"], "needs --optimizer"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli(Unbuilt, *args)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--optimizer=foo"], r"optimizer: Unknown optimizer 'foo', did you mean: \w+, \w+, .*"),
        (["--optimizer=aida", "--optimizer.kk=1"], "Aida has no option 'kk'; .*: lr, .* k, .*"),
        (["--trainer.maxepochs=2"], ".* --trainer.maxepochs=2; did you mean: --trainer.max_ep.*"),
        (["--trainer.callbacks+=StepsizeMoniter"], "(?s:.*)Did you mean: StepsizeMonitor\\?"),
        (["--config=nowhere.yaml"], "--config: File does not exist: .*"),
    ],
)  # fmt: skip
def test_an_error_comes_first_and_then_one_line_on_the_help(args, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli(Net, *args, run=True, parser_kwargs={"prog": "train.py"})
    assert re.fullmatch(
        rf"train.py fit: error: {message}\n`train.py fit --help` lists the options.\n",
        capsys.readouterr().err,
    )


def test_callbacks_have_bare_names():
    made = cli(
        Net,
        "--trainer.callbacks+=StepsizeMonitor",
        "--trainer.callbacks.every_n_steps=3",
        "--trainer.callbacks+=UseOptimizer",
        "--trainer.callbacks.optimizer=laida",
        "--trainer.callbacks.dict_kwargs.lr=0.5",
    )
    by_class = {type(callback): callback for callback in made.trainer.callbacks}
    assert by_class[StepsizeMonitor].every_n_steps == 3
    assert by_class[UseOptimizer].options == {"lr": 0.5}


class Weights(Callback):
    """Write a checksum of the weights that a run ends with."""

    def on_fit_end(self, trainer, module):
        sums = [p.double().sum().item() for p in module.parameters()]
        with open("weights.txt", "a") as file:
            file.write(f"{type(trainer.optimizers[0]).__name__} {sums}\n")


def test_the_command_trains_the_examples_and_its_printed_config_repeats_the_run(capsys):
    args = [
        "fit", "--model=ImageClassifier", "--data=DigitsDataModule", "--data.batch_size=4",
        *TRAINER[:-2], "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1",
        f"--trainer.callbacks+={__name__}.Weights",
        "--optimizer=laida", "--optimizer.k=1", "--lr_scheduler=ExponentialLR",
        "--lr_scheduler.gamma=0.5",
    ]  # fmt: skip
    sys.modules.setdefault(__name__, sys.modules[Weights.__module__])
    assert main(args) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main([*args, "--print_config"])
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["optimizer"]["class_path"] == "aida_lightning.LAida"
    with open("printed.yaml", "w") as file:
        file.write(printed)
    assert main(["fit", "--config=printed.yaml", "--trainer.default_root_dir=again"]) == 0
    with open("weights.txt") as file:
        first, second = file.read().splitlines()
    assert first.startswith("LAida [")
    assert first == second


@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_the_command_evaluates_the_examples(subcommand, capsys):
    batches = {"validate": "val", "test": "test"}[subcommand]
    args = [
        subcommand, "--model=ImageClassifier", "--data=DigitsDataModule", "--data.batch_size=4",
        "--trainer.accelerator=cpu", f"--trainer.limit_{batches}_batches=1",
    ]  # fmt: skip
    assert main([*args, "--trainer.logger=false"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_predict_runs_on_the_example_modules():
    assert not main(
        [
            "predict",
            "--model=ImageClassifier",
            "--data=DigitsDataModule",
            "--data.batch_size=4",
            "--trainer.accelerator=cpu",
            "--trainer.limit_predict_batches=1",
            "--trainer.logger=false",
        ]
    )


MODEL = """
from lightning.pytorch.demos.boring_classes import BoringModel


class Own(BoringModel):
    pass
"""


@pytest.mark.parametrize(
    "command",
    [[Path(sys.executable).with_name("aida-lightning")], [sys.executable, "-m", "aida_lightning"]],
)
def test_the_command_finds_a_module_in_the_folder_it_is_run_in(tmp_path, command):
    (tmp_path / "own_model.py").write_text(MODEL)
    run = subprocess.run(
        [*command, "fit", "--model", "own_model.Own", "--optimizer", "aida", *TRAINER],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "args parameter" not in run.stderr  # Lightning's warning that they are given twice


SCRIPT = """
import os

import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.distributed.fsdp import fully_shard

from aida_lightning import Aida
from aida_lightning.cli import AidaCLI

STRATEGY = "lightning.pytorch.strategies.ModelParallelStrategy"


class Model(BoringModel):
    def configure_model(self):
        fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])

    def on_train_start(self):
        self.start = self.layer.weight.detach().clone()

    def on_train_end(self):
        (optimizer,) = self.trainer.optimizers
        assert type(optimizer) is Aida
        assert [*optimizer.state] == [*self.parameters()]
        assert all(hasattr(param, "placements") for param in optimizer.state)
        assert (self.layer.weight - self.start).full_tensor().abs().max() > 1e-3


def train(rank, port):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        GROUP_RANK="0", TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
    )
    AidaCLI(
        Model,
        args=[
            "fit", "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.max_epochs=1",
            '--trainer.strategy={"class_path": "%s"}' % STRATEGY,
            "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=0",
            "--trainer.logger=false", "--trainer.enable_checkpointing=false",
            "--trainer.enable_progress_bar=false", "--optimizer=aida",
            "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1",
        ],
        save_config_callback=None,
    )


port = str(torch.distributed.TCPStore("127.0.0.1", 0, is_master=True).port)
torch.multiprocessing.start_processes(train, (port,), nprocs=2, start_method="fork")
print("TRAINED")
"""


@pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="this torch shards on GPUs alone"
)
def test_sharded_layers_are_trained(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "TRAINED" in run.stdout


GROUPS = '{"*.bias": {weight_decay: 0.0}, "features.*": {lr: 1e-4, betas: [0.8, 0.9]}}'


def groups_of(made):
    configured = made.model.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    names = {param: name for name, param in made.model.named_parameters()}
    return {
        g["name"]: (g["lr"], g["weight_decay"], [names[p] for p in g["params"]])
        for g in optimizer.param_groups
    }


@pytest.mark.parametrize("optimizer", ["aida", "adamw"])
def test_groups_stand_beside_the_optimizer_and_a_printed_config_repeats_them(optimizer, capsys):
    given = [f"--optimizer={optimizer}", "--optimizer.lr=0.01", "--optimizer.weight_decay=0.1"]
    made = cli(Net, *given, "--optimizer_groups", GROUPS)
    assert groups_of(made) == {
        "default": (0.01, 0.1, ["head.weight"]),
        "*.bias": (0.01, 0.0, ["features.bias", "head.bias"]),
        "features.*": (1e-4, 0.1, ["features.weight"]),
    }
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli(Net, *given, "--optimizer_groups", GROUPS, "--print_config")
    Path("config.yaml").write_text(capsys.readouterr().out)
    saved = yaml.safe_load(Path("config.yaml").read_text())["optimizer_groups"]
    assert [*saved] == ["*.bias", "features.*"]
    assert groups_of(AidaCLI(Net, args=["--config=config.yaml"], run=False)) == groups_of(made)


def test_a_saved_config_repeats_the_groups_of_a_run(tmp_path):
    cli(
        Net, "--optimizer=laida", "--optimizer_groups", GROUPS, "--trainer.logger=true",
        "--trainer.log_every_n_steps=1",
        f"--trainer.default_root_dir={tmp_path}", run=True, save_config_callback=SaveConfigCallback,
    )  # fmt: skip
    (config,) = tmp_path.rglob("config.yaml")
    made = AidaCLI(Net, args=["fit", f"--config={config}", "--trainer.logger=false"],
                   save_config_callback=None)  # fmt: skip
    assert [g["name"] for g in made.trainer.optimizers[0].param_groups] == [
        "default", "*.bias", "features.*"
    ]  # fmt: skip


def test_groups_may_be_a_preset_and_a_schedule_scales_them():
    args = ["--optimizer=adamw", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]
    made = cli(Net, *args, "--optimizer_groups=no_decay_1d", run=True)
    groups = made.trainer.optimizers[0].param_groups
    assert [(g["name"], g["weight_decay"]) for g in groups] == [
        ("default", 0.01), ("default/1d", 0.0)
    ]  # fmt: skip
    assert [g["lr"] for g in groups] == [1e-4, 1e-4]
    assert cli(Net, *args, "--optimizer_groups=null").config.optimizer_groups is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--optimizer_groups=no_decay_1d"], "--optimizer_groups needs --optimizer; a model that"),
        (
            ["--optimizer=aida", "--optimizer_groups=nodecay"],
            "--optimizer_groups: Invalid groups: 'nodecay', they must be 'no_decay_1d', 'layer_",
        ),
        (
            ["--optimizer=aida", '--optimizer_groups={"*.bias": {"wd": 0.0}}'],
            r"--optimizer_groups: '\*.bias': Aida has no option 'wd'; its options are: lr",
        ),
        (
            ["--optimizer=adamw", '--optimizer_groups={"*.bias": {"lr": -1.0}}'],
            r"--optimizer_groups: '\*.bias': Invalid learning rate: -1.0",
        ),
        (["--optimizer=aida", '--optimizer_groups={"*.bias": 0.0}'], "optimizer_groups"),
    ],
)
def test_wrong_groups_are_refused_before_the_model_is_built(given, message, capsys):
    class Unbuilt(Net):
        def __init__(self):
            raise AssertionError("the model was built")

    with pytest.raises(SystemExit):
        cli(Unbuilt, *given)
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_the_help_tells_of_groups(capsys):
    with pytest.raises(SystemExit):
        cli(Net, "--help", run=True)
    text = " ".join(capsys.readouterr().out.split())
    assert "--optimizer_groups OPTIMIZER_GROUPS" in text
    assert "where the first match wins" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [("rows", "rows"), ("3", 3), ("[1, 2]", (1, 2)), ("elements", "elements")],
)
def test_a_partition_is_given_as_a_word_a_number_or_sizes(given, expected):
    made = cli(Three, "--optimizer=laida", f"--optimizer.partition={given}")
    configured = made.model.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    assert optimizer.param_groups[0]["partition"] == expected


class Three(Net):
    """All layers have three rows."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Linear(4, 3), nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("given", "groups", "expected"),
    [
        ([], '{"features.*": {"partition": 3}}', [None, 3]),
        ([], '{"features.*": {"partition": [1, 2]}}', [None, (1, 2)]),
        (["--optimizer.partition=3"], '{"head.*": {"partition": null}}', [3, None]),
        (["--optimizer.partition=[1,2]"], '{"head.*": {"partition": null}}', [(1, 2), None]),
    ],
)
def test_partitions_are_taken_that_suit_the_layers_of_the_model(given, groups, expected):
    made = cli(Net, "--optimizer=ladam", *given, "--optimizer_groups", groups)
    partitions = [g["partition"] for g in made.model.configure_optimizers().param_groups]
    assert partitions == expected
