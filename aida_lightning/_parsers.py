"""The options of `aida-lightning`, and the keys of an experiment's file that they stand for."""

from argparse import SUPPRESS, Action
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from jsonargparse import ArgumentParser

from aida_lightning import __version__
from aida_lightning.figures import FigureName

Format = Literal["png", "svg", "pdf"]

# Those of LightningCLI, which takes over before anything is parsed.
LIGHTNING = {
    "fit": "Train a LightningModule, with the optimizers by name (LightningCLI).",
    "validate": "Evaluate one on its validation data.",
    "test": "Evaluate one on its test data.",
    "predict": "Let one predict.",
}


def command_parser() -> ArgumentParser:
    """Return the parser of `aida-lightning`."""
    parser = ArgumentParser(
        prog="aida-lightning",
        description="Layerwise-adaptive optimizers compared, and the paper's figures.",
        version=__version__,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand(
        "compare",
        _compare_parser(),
        help="Train the same model under several optimizers and report: an experiment of the "
        "paper, or your own.",
    )
    commands.add_subcommand(
        "figures",
        _figures_parser(),
        help="Draw the paper's figures of any runs side by side, from event files alone.",
    )
    commands.add_subcommand(
        "summary",
        _summary_parser(),
        help="Print each layer's adaptive stepsizes as they were logged last.",
    )
    for name, help in LIGHTNING.items():
        commands.add_subcommand(name, ArgumentParser(), help=help)  # to be listed
    return parser


def _compare_parser() -> ArgumentParser:
    """Return a parser that gives as `changes` the options that stand for a key of the file."""
    parser = ArgumentParser(
        description=(
            "Trains one model from one start under several optimizers, and ends with a table, the "
            "paper's numbers beside it, results.csv and figures. Run again, it goes on where it "
            "was stopped, and trains nothing twice. Without a name it needs no download and "
            "minutes."
        ),
        allow_abbrev=False,
    )
    add = partial(parser.add_argument, default=SUPPRESS)  # no "default: null" in the help

    def change(option: str, key: str, type: Any, help: str, metavar: str = "N", **kw: Any) -> None:
        add(option, dest=f"changes.{key}", type=type, help=help, metavar=metavar, **kw)

    parser.add_argument(
        "experiment",
        nargs="?",
        default="digits_vgg11",
        type=str,
        help="A name of --list, or a file.",
    )
    parser.add_argument("--list", action="store_true", help="List the experiments.")
    add(
        "--optimizers",
        nargs="+",
        type=str,
        metavar="NAME",
        help="Of the experiment's, by label or glob (`'Aida*'`), or others with options, as in "
        "`aida:k=1 adam+:lr=3e-4,label=mine`.",
    )
    change("--seeds", "seeds", int, "Each optimizer trains once with each.", nargs="+")
    change("--epochs", "trainer.max_epochs", int, "Epochs per run.")
    for part, help in (
        ("train", "Share of the data (0.1), or number of batches (10), that an epoch trains on."),
        ("val", "The same for validation."),
    ):
        name = f"limit_{part}_batches"
        change(f"--{name}", f"trainer.{name}", int | float, help, "X")
    add(
        "--data",
        type=str,
        help="`sample` for a built-in one, without download; or digits, or as in "
        "`cifar10:root=data,download=true`.",
    )
    change("--root", "data.init_args.root", str, "Folder of the experiment's data.", "DIR")
    change("--batch_size", "data.init_args.batch_size", int, "Examples per batch and process.")
    help = "Network of an image experiment: vgg11 or resnet34."
    change("--model", "model.init_args.model", str, help, "NAME")
    help = "Of optimizers that have none of their own."
    change("--weight_decay", "optimizer_options.weight_decay", float, help, "X")
    add(
        "--lr_scheduler",
        type=str,
        metavar="NAME",
        help="One of torch's, as in `MultiStepLR:milestones=[150]`.",
    )
    change("--accelerator", "trainer.accelerator", str, "cpu, gpu, … or auto.", "NAME")
    change("--devices", "trainer.devices", str, "How many; on a CPU processes.")
    change("--strategy", "trainer.strategy", str, "Of several devices: one that spawns.", "NAME")
    help = "Steps between two readings of the stepsizes."
    change("--monitor_every_n_steps", "trainer.log_every_n_steps", int, help)
    add(
        "--set",
        action="extend",
        nargs="+",
        type=str,
        metavar="KEY=VALUE",
        help="Any key of the experiment's file: `model.init_args.num_layers=2`.",
    )
    add("--output", type=str, metavar="DIR", help="By default one in aida_runs/.")
    add("--jobs", type=int, metavar="N", help="How many runs train at once, by submitit.")
    add(
        "--launcher",
        type=Literal["local", "slurm"],
        help="What trains them: this machine, or a SLURM cluster, one job per run.",
    )
    add(
        "--launcher_options",
        action="extend",
        nargs="+",
        type=str,
        metavar="KEY=VALUE",
        help="What to ask SLURM for, as submitit names it: `timeout_min=240 gpus_per_node=1 "
        "mem_gb=16 slurm_partition=gpu slurm_array_parallelism=8`.",
    )
    parser.add_argument(
        "--status", action="store_true", help="Print how far each run is, and train nothing."
    )
    parser.add_argument(
        "--rerun",
        action="store_true",
        help="Train runs again whose classes were edited since; the old ones are kept aside.",
    )
    parser.add_argument(
        "--keep_checkpoints", action="store_true", help="Keep the last one of finished runs."
    )
    return parser


def _figures_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=(
            "Draws figures of the paper from the event files of any runs side by side: 1, 2, 4 and "
            "6 of those that had the StepsizeMonitor; 3, 7 and 8 show --metric; 5 needs a "
            "ProjectionRecorder."
        ),
        allow_abbrev=False,
    )
    add = _add_runs(parser)
    parser.add_argument(
        "--figures", nargs="+", type=FigureName, default=["fig1", "fig2", "fig6"], help="Which."
    )
    parser.add_argument(
        "--smooth", type=float, default=0.0, help="Weight of the past, as in TensorBoard: 0.6."
    )
    parser.add_argument("--log_x", action="store_true", help="A logarithmic x axis.")
    add("--log_y", type=bool | None, help="A logarithmic y axis or not; by default where it helps.")
    parser.add_argument(
        "--metric", type=str, default="val_accuracy", help="Scalar of figures 3, 7 and 8."
    )
    parser.add_argument(
        "--formats", nargs="+", type=Format, default=["png"], help="Kinds of files."
    )
    add("--output", type=str, help="Folder to write to; by default the first that was given.")
    return parser


def _summary_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=(
            "Prints a table per optimizer: mean, standard deviation, their ratio, extremes, share "
            "at the ceiling and effective learning rate of each layer's adaptive stepsizes, as far "
            "as the StepsizeMonitor logged them."
        ),
        allow_abbrev=False,
    )
    _add_runs(parser)
    return parser


def _add_runs(parser: ArgumentParser) -> Callable[..., Action]:
    """Add what chooses runs and layers, and return what adds options without default."""
    parser.add_argument(
        "logdir", nargs="+", type=str, help="Folders that hold runs, at any depth, or globs."
    )
    add = partial(parser.add_argument, default=SUPPRESS)
    add("--optimizers", nargs="+", type=str, help="Globs of labels to show.")
    add("--layers", nargs="+", type=str, help="Names, globs, or numbers from 1 at the input.")
    return add
