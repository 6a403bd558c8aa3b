"""The options of `aida-lightning`, and the keys of an experiment's file that they stand for."""

from argparse import SUPPRESS, Action
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from jsonargparse import ArgumentParser

from aida_lightning import __version__
from aida_lightning._errors import BriefArgumentParser
from aida_lightning.figures import FigureName

Format = Literal["png", "svg", "pdf"]

# Those of LightningCLI, which takes over before anything is parsed.
LIGHTNING = {
    "fit": "Train a LightningModule with an optimizer by its name (LightningCLI).",
    "validate": "Evaluate a LightningModule on its validation data.",
    "test": "Evaluate a LightningModule on its test data.",
    "predict": "Run a LightningModule on its prediction data.",
}


def command_parser() -> ArgumentParser:
    """Return the parser of `aida-lightning`."""
    parser = BriefArgumentParser(
        prog="aida-lightning",
        description="Compare optimizers, draw figures of their adaptive stepsizes, and train any "
        "LightningModule with the Aida family.",
        version=__version__,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand(
        "compare",
        _compare_parser(),
        help="Train one model with several optimizers and report the results, in an experiment "
        "of the paper or in your own.",
    )
    commands.add_subcommand(
        "report",
        _report_parser(),
        help="Make the table, files and figures of finished comparisons again, side by side.",
    )
    commands.add_subcommand(
        "figures",
        _figures_parser(),
        help="Draw the paper's figures of any runs side by side, from their event files.",
    )
    commands.add_subcommand(
        "summary",
        _summary_parser(),
        help="Print the adaptive stepsizes of each layer as they were logged last.",
    )
    commands.add_subcommand(
        "advise",
        _advise_parser(),
        help="Advise on which layers' second moments can be averaged, from a monitored run.",
    )
    for name, help in LIGHTNING.items():
        commands.add_subcommand(name, BriefArgumentParser(), help=help)  # to be listed
    return parser


def _compare_parser() -> ArgumentParser:
    """Return a parser that gives as `changes` the options that stand for a key of the file."""
    parser = BriefArgumentParser(
        description=(
            "Train one model from the same initialization with several optimizers, and write a "
            "table, results.csv and figures. Where the paper has numbers, they stand beside the "
            "results. The same command goes on where it was stopped, and trains no run twice. The "
            "default experiment needs no download and takes a minute or two."
        ),
        usage="aida-lightning compare [experiment] [options]",
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
        help="An experiment that --list shows, or the path of a YAML file.",
    )
    parser.add_argument("--list", action="store_true", help="List the experiments and exit.")
    add(
        "--optimizers",
        nargs="+",
        type=str,
        metavar="NAME",
        help="Optimizers to compare: labels of the experiment's own or globs of them (`'Aida*'`), "
        "or others with options, as in `aida:k=1 adam+:lr=3e-4,label=mine`. Slashes separate the "
        "values of a sweep, `sgd:lr=0.1/1`. A class's path is a name too, `my_module.MyOptimizer`. "
        "By default all of the experiment's.",
    )
    help = "Seeds, with each of which every optimizer trains once."
    change("--seeds", "seeds", int, help, nargs="+")
    help = "Seeds that choose the setting of each grid, and that are not reported."
    change("--tune_seeds", "tune_seeds", int, help, nargs="+")
    help = "Label of the method that the others are compared with. By default it is the first."
    change("--baseline", "baseline", str, help, "NAME")
    help = "Value of the metric, as logged, to which the steps, epochs and seconds are reported."
    change("--target", "target.value", float, help, "X")
    change("--epochs", "trainer.max_epochs", int, "Number of epochs per run.")
    for part, help in (
        ("train", "Fraction (0.1) or number (10) of the batches that an epoch trains on."),
        ("val", "Fraction or number of the batches that a validation runs on."),
    ):
        name = f"limit_{part}_batches"
        change(f"--{name}", f"trainer.{name}", int | float, help, "X")
    add(
        "--data",
        type=str,
        help="Data in the place of the experiment's: `sample` for a small built-in sample, which "
        "needs no download, or `digits`, `cifar10` or `cifar100`, with options as in "
        "`cifar10:root=data,download=true`.",
    )
    change("--root", "data.init_args.root", str, "Folder that holds the data.", "DIR")
    help = "Number of examples per batch, in each process."
    change("--batch_size", "data.init_args.batch_size", int, help)
    help = "Network of an image experiment: vgg11, vgg11_x0_25 or resnet34."
    change("--model", "model.init_args.model", str, help, "NAME")
    help = "Weight decay of the optimizers that are given none of their own."
    change("--weight_decay", "optimizer_options.weight_decay", float, help, "X")
    add(
        "--lr_scheduler",
        type=str,
        metavar="NAME",
        help="LR scheduler of torch, with options as in `MultiStepLR:milestones=[150]`.",
    )
    help = "Accelerator to train on: cpu, gpu, … or auto."
    change("--accelerator", "trainer.accelerator", str, help, "NAME")
    help = "Number of devices per run; on a CPU, of processes."
    change("--devices", "trainer.devices", str, help)
    help = "Strategy for several devices, which has to spawn its processes."
    change("--strategy", "trainer.strategy", str, help, "NAME")
    help = "Log the stepsizes at every N-th step."
    change("--monitor_every_n_steps", "trainer.log_every_n_steps", int, help)
    add(
        "--set",
        action="extend",
        nargs="+",
        type=str,
        metavar="KEY=VALUE",
        help="Values for any keys of the experiment's file, as in `trainer.precision=16-mixed`.",
    )
    help = "Folder to write to. By default it is one in aida_runs/, named by the experiment."
    add("--output", type=str, metavar="DIR", help=help)
    add("--jobs", type=int, metavar="N", help="Number of runs that train at once, by submitit.")
    add(
        "--launcher",
        type=Literal["local", "slurm"],
        help="What trains the runs: this machine, or a SLURM cluster with one job per run.",
    )
    add(
        "--launcher_options",
        action="extend",
        nargs="+",
        type=str,
        metavar="KEY=VALUE",
        help="Options for SLURM, named as in submitit: `timeout_min=240 gpus_per_node=1 "
        "mem_gb=16 slurm_partition=gpu slurm_array_parallelism=8`.",
    )
    parser.add_argument(
        "--status", action="store_true", help="Print how far each run is, and train nothing."
    )
    parser.add_argument(
        "--rerun",
        action="store_true",
        help="Train the runs again whose classes were edited since. The old ones are moved aside.",
    )
    parser.add_argument(
        "--keep_checkpoints",
        action="store_true",
        help="Keep the last checkpoint of each finished run.",
    )
    return parser


def _report_parser() -> ArgumentParser:
    parser = BriefArgumentParser(
        description=(
            "Make the table, results.csv, .json, .md and .tex, and the figures of finished "
            "comparisons again, several side by side, without training. The comparisons must have "
            "one metric and the same data."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder", nargs="+", type=str, help="Folders that `compare` wrote, or globs of them."
    )
    add = partial(parser.add_argument, default=SUPPRESS)
    add(
        "--output",
        type=str,
        metavar="DIR",
        help="Folder to write to, new or of a report of the same comparisons. By default it is one "
        "in aida_reports/.",
    )
    add(
        "--baseline",
        type=str,
        metavar="NAME",
        help="Label of the method that the others are compared with. By default it is the first.",
    )
    help = "Value of the metric, as logged, to which the steps, epochs and seconds are reported."
    add("--target", type=float, metavar="X", help=help)
    return parser


def _figures_parser() -> ArgumentParser:
    parser = BriefArgumentParser(
        description=(
            "Draw figures of the paper from the event files of any runs, side by side. Figures 1, "
            "2, 4, 6 and the heatmap show what the StepsizeMonitor logged, Figure 5 what a "
            "ProjectionRecorder logged, Figures 3, 7 and 8 the scalar that --metric names, and "
            "sweep that scalar against the learning rate in the runs' labels."
        ),
        allow_abbrev=False,
    )
    add = _add_runs(parser)
    _add_layers(add)
    parser.add_argument(
        "--figures",
        nargs="+",
        type=FigureName,
        default=["fig1", "fig2", "fig6"],
        metavar="NAME",
        help="Figures to draw.",
    )
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        metavar="X",
        help="Weight of TensorBoard's smoothing, from 0 to below 1.",
    )
    parser.add_argument("--log_x", action="store_true", help="Make the x axis logarithmic.")
    help = "Whether the y axis is logarithmic. By default it is where the values are far apart."
    add("--log_y", type=bool | None, help=help)
    parser.add_argument(
        "--metric",
        type=str,
        default="val_accuracy",
        metavar="NAME",
        help="Scalar that Figures 3, 7, 8 and sweep show.",
    )
    parser.add_argument(
        "--formats", nargs="+", type=Format, default=["png"], help="File formats to write."
    )
    help = "Folder to write to. By default it is the first of the given folders."
    add("--output", type=str, metavar="DIR", help=help)
    return parser


def _summary_parser() -> ArgumentParser:
    parser = BriefArgumentParser(
        description=(
            "Print a table per optimizer with a row per layer: the statistics of its adaptive "
            "stepsizes and of its updates, as the StepsizeMonitor logged them last."
        ),
        allow_abbrev=False,
    )
    _add_layers(_add_runs(parser))
    return parser


def _advise_parser() -> ArgumentParser:
    parser = BriefArgumentParser(
        description=(
            "Print, per layer, whether one number can take the place of the second moment's "
            "elements in the whole layer, in each row, or not at all, what that saves, and the "
            "options to train so. The runs must have logged the statistics snr and snr_rows: "
            "StepsizeMonitor('*', statistics=['snr', 'snr_rows'])."
        ),
        allow_abbrev=False,
    )
    _add_runs(parser)
    parser.add_argument(
        "--threshold",
        type=float,
        default=1.0,
        metavar="X",
        help="Smallest ratio, as the median over the logged steps, at which to average.",
    )
    return parser


def _add_runs(parser: ArgumentParser) -> Callable[..., Action]:
    """Add what chooses runs, and return what adds options without default."""
    parser.add_argument(
        "logdir", nargs="+", type=str, help="Folders that hold runs at any depth, or globs of them."
    )
    add = partial(parser.add_argument, default=SUPPRESS)
    help = "Labels of the runs to show, or globs of them. By default all are shown."
    add("--optimizers", nargs="+", type=str, metavar="LABEL", help=help)
    return add


def _add_layers(add: Callable[..., Action]) -> None:
    help = (
        "Layers to show, by the names or the numbers that figures and tables print, by the "
        "parameters' names, or by globs of names; a part of a layer is such as '*_weight[q]'."
    )
    add("--layers", nargs="+", type=str, metavar="LAYER", help=help)
