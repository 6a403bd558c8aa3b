"""The command `aida-lightning`."""

import sys
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from aida_lightning import __version__
from aida_lightning.experiments.choices import UsageError
from aida_lightning.experiments.compare import DEFAULT_OPTIMIZERS, compare
from aida_lightning.experiments.events import EventsError

# What a shell reports for a program that Ctrl-C ended.
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments after the program's name; by default those of this process.

    Returns:
        The exit code: 0, or 1 if a run failed or diverged, 2 if a request was refused, 130 after
        Ctrl-C.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    command = arguments.command
    try:
        return _COMMANDS[command](arguments[command])
    except (UsageError, EventsError) as error:
        print(f"aida-lightning {command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED


def _parser() -> ArgumentParser:
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
        help="Train the same model under several optimizers and report.",
    )
    commands.add_subcommand(
        "figures",
        _figures_parser(),
        help="Draw the figures of the adaptive stepsizes again, from event files alone.",
    )
    return parser


def _compare_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=(
            "Trains one model from one start under several optimizers, prints a table, and writes "
            "event files, results.csv, config.yaml and figures under one folder. Names take "
            "options as in name:option=value,option=value."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    parser.add_argument(
        "--optimizers",
        nargs="+",
        type=str | dict[str, Any],
        default=[*DEFAULT_OPTIMIZERS],
        help="Optimizers by name, each with its options, as in `aida:k=1 adam+:lr=3e-4,label=mine`;"
        " in YAML also {name: aida, k: 1}.",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0],
        help="Seeds of initialisation and data order; every optimizer trains once with each.",
    )
    parser.add_function_arguments(compare, as_group=False, skip={"optimizers", "seeds"})
    return parser


def _figures_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=(
            "Draws fig1.png, fig2.png and fig6.png from the event files of any runs that had the "
            "StepsizeMonitor."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "logdir", nargs="+", type=str, help="Folders that hold the runs, at any depth."
    )
    parser.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="The folder to write to; by default the first that was given.",
    )
    return parser


def _compare(options: Namespace) -> int:
    given = options.as_dict()
    given.pop("config")
    statuses = {result.status for result in compare(**given)}
    if "interrupted" in statuses:
        return INTERRUPTED
    return int(statuses != {"completed"})


def _figures(options: Namespace) -> int:
    from aida_lightning.experiments.figures import draw_figures

    for path in draw_figures(options.logdir, options.output or options.logdir[0]):
        print(path)
    return 0


_COMMANDS = {"compare": _compare, "figures": _figures}
