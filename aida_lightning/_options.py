"""The options of the command line."""

from argparse import SUPPRESS
from functools import partial
from typing import Literal

from jsonargparse import ArgumentParser

from aida_lightning.figures import FigureName

Format = Literal["png", "svg", "pdf"]


def compare_parser() -> ArgumentParser:
    """Returns the parser of `aida-lightning compare`."""
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
    add("--seeds", nargs="+", type=int, metavar="N", help="Each optimizer trains once with each.")
    add("--epochs", type=int, metavar="N", help="Epochs a run.")
    add(
        "--limit_train_batches",
        type=int | float,
        metavar="X",
        help="Share of the data (0.1), or number of batches (10), that an epoch trains on.",
    )
    add("--limit_val_batches", type=int | float, metavar="X", help="The same for validation.")
    add(
        "--data",
        type=str,
        help="`sample` for a built-in one, without download; or digits, or as in "
        "`cifar10:root=data,download=true`.",
    )
    add("--root", type=str, help="Folder of the experiment's data.")
    add("--batch_size", type=int, metavar="N", help="Examples a batch and a process.")
    add("--model", type=str, help="Network of an image experiment: vgg11 or resnet34.")
    add(
        "--weight_decay", type=float, metavar="X", help="Of optimizers that have none of their own."
    )
    add(
        "--lr_scheduler",
        type=str,
        metavar="NAME",
        help="One of torch's, as in `MultiStepLR:milestones=[150]`.",
    )
    add("--accelerator", type=str, metavar="NAME", help="cpu, gpu, … or auto.")
    add("--devices", type=str, metavar="N", help="How many; on a CPU processes.")
    add("--strategy", type=str, metavar="NAME", help="Of several devices: one that spawns.")
    add(
        "--monitor_every_n_steps",
        type=int,
        metavar="N",
        help="Steps between two readings of the stepsizes.",
    )
    add(
        "--set",
        action="extend",
        nargs="+",
        type=str,
        metavar="KEY=VALUE",
        help="Any key of the experiment's file: `model.init_args.num_layers=2`.",
    )
    add("--output", type=str, metavar="DIR", help="By default one in aida_runs/.")
    parser.add_argument(
        "--keep_checkpoints", action="store_true", help="Keep the last one of finished runs."
    )
    return parser


def figures_parser() -> ArgumentParser:
    """Returns the parser of `aida-lightning figures`."""
    parser = ArgumentParser(
        description=(
            "Draws figures of the paper from the event files of any runs side by side: 1, 2, 4 and "
            "6 of those that had the StepsizeMonitor; 3, 7 and 8 show --metric; 5 needs a "
            "ProjectionRecorder."
        ),
        allow_abbrev=False,
    )
    add = partial(parser.add_argument, default=SUPPRESS)
    parser.add_argument(
        "logdir", nargs="+", type=str, help="Folders that hold runs, at any depth, or globs."
    )
    parser.add_argument(
        "--figures", nargs="+", type=FigureName, default=["fig1", "fig2", "fig6"], help="Which."
    )
    add("--optimizers", nargs="+", type=str, help="Globs of labels to show.")
    add("--layers", nargs="+", type=str, help="Names, globs, or numbers from 1 at the input.")
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


def summary_parser() -> ArgumentParser:
    """Returns the parser of `aida-lightning summary`."""
    parser = ArgumentParser(
        description=(
            "Prints a table an optimizer: mean, standard deviation, their ratio, extremes, share "
            "at the ceiling and effective learning rate of each layer's adaptive stepsizes, as far "
            "as the StepsizeMonitor logged them."
        ),
        allow_abbrev=False,
    )
    add = partial(parser.add_argument, default=SUPPRESS)
    parser.add_argument(
        "logdir", nargs="+", type=str, help="Folders that hold runs, at any depth, or globs."
    )
    add("--optimizers", nargs="+", type=str, help="Globs of labels to show.")
    add("--layers", nargs="+", type=str, help="Names, globs, or numbers from 1 at the input.")
    return parser
