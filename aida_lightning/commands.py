"""The command line `aida-lightning`."""

import codecs
import glob
import io
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from aida_lightning._parsers import LIGHTNING, command_parser
from aida_lightning.compare.choices import parse_choice
from aida_lightning.compare.methods import UsageError
from aida_lightning.logs.events import EventsError

# The exit code that a shell reports for a program that Ctrl-C ended.
INTERRUPTED = 130

# Replacements for characters that a stream cannot encode, to avoid an error after training.
_PLAIN = "aida_lightning.plain"
_PLAIN_FORMS = {"±": "+/-", "…": "...", "–": "-", "—": "-", "×": "x"}

# The class of each data module, and the batch size that suits the networks.
_DATA_MODULES = {
    "digits": ("DigitsDataModule", 32),
    "cifar10": ("CIFAR10DataModule", 128),
    "cifar100": ("CIFAR100DataModule", 128),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments after the program's name; None takes those of this process.

    Returns:
        The exit code: 0 on success, 1 if a run failed or diverged, 2 if a request was refused, and
        130 after Ctrl-C.
    """
    # A console script has its own folder there, but the user's classes are in this folder.
    if not {"", os.getcwd()}.intersection(sys.path):
        sys.path.insert(0, os.getcwd())
    given = sys.argv[1:] if argv is None else argv
    if given and given[0] in LIGHTNING:
        from aida_lightning.cli import run_lightning_cli

        return run_lightning_cli(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_PLAIN)
    arguments = command_parser().parse_args(argv)
    command = arguments.command
    try:
        return _COMMANDS[command](arguments[command])
    except (UsageError, EventsError) as error:
        print(f"aida-lightning {command}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # such as a full disk
        print(f"aida-lightning {command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED


def _compare(options: Namespace) -> int:
    # The imports take seconds.
    from aida_lightning.compare.loading import list_experiments, load_experiment

    if options.list:
        experiments = list_experiments()
        width = max(map(len, experiments))
        for name, description in experiments.items():
            print(f"{name:{width}}  {description}")
        return 0
    from aida_lightning.compare.comparison import compare, progress

    loaded = load_experiment(
        options.experiment, _overrides(options), options.get("data") == "sample"
    )
    if options.status:
        from rich.console import Console

        from aida_lightning.compare.progress import progress_table
        from aida_lightning.figures.table import print_table

        runs = progress(loaded, options.get("optimizers"), options.get("output"))
        print_table(progress_table(runs, loaded.experiment.metric), Console(markup=False))
        return 0
    results = compare(
        loaded,
        options.get("optimizers"),
        options.get("output"),
        options.keep_checkpoints,
        options.rerun,
        options.get("jobs"),
        options.get("launcher"),
        _launcher_options(options),
    )
    statuses = {result.status for result in results}
    if "interrupted" in statuses:
        return INTERRUPTED
    return int(statuses != {"completed"})


def _overrides(options: Namespace) -> dict[str, Any]:
    """Return replacements for keys of the experiment's file; the later of two counts."""
    overrides: dict[str, Any] = {}
    if (data := options.get("data", "sample")) != "sample":
        name, arguments = parse_choice(data)
        if name not in _DATA_MODULES:
            known = ", ".join([*_DATA_MODULES, "sample"])
            raise UsageError(f"data: {name!r} is none of {known}")
        class_name, batch_size = _DATA_MODULES[name]
        overrides["data"] = f"aida_lightning.datamodules.{class_name}"
        arguments.setdefault("batch_size", batch_size)
        overrides |= {f"data.init_args.{key}": value for key, value in arguments.items()}
    if "changes" in options:
        overrides |= options.changes.items()
    if "lr_scheduler" in options:
        name, arguments = parse_choice(options.lr_scheduler)
        overrides["model.init_args.lr_scheduler"] = name
        overrides["model.init_args.lr_scheduler_options"] = arguments
    overrides |= (_key_value("set", text) for text in options.get("set", []))
    return overrides


def _report(options: Namespace) -> int:
    from rich.console import Console

    from aida_lightning.compare.finished import report
    from aida_lightning.compare.report import print_sheets

    asked = {key: options[key] for key in ("output", "baseline", "target") if key in options}
    found, output, problems = report(_expanded(options.folder), **asked)
    console = Console(markup=False)
    print_sheets(found, console)
    for problem in problems:
        console.print(f"There is {problem}")
    console.print(f"Results and figures: {output}", soft_wrap=True, highlight=False)
    return 0


def _launcher_options(options: Namespace) -> dict[str, Any]:
    """Return submitit's options; a value that is not JSON, such as 04:00:00, is text."""
    given = dict(_key_value("launcher_options", t) for t in options.get("launcher_options", []))
    for key, text in given.items():
        with suppress(ValueError):
            given[key] = json.loads(text)
    return given


def _key_value(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{option}: {text!r} is not of the form KEY=VALUE")
    return key, value


def _figures(options: Namespace) -> int:
    from aida_lightning.figures.draw import draw_figures
    from aida_lightning.figures.plotting import Look
    from aida_lightning.logs.metric import Metric

    if not 0 <= options.smooth < 1:
        raise UsageError(f"smooth: from 0 to below 1 is needed, but got {options.smooth}")
    logdirs = _expanded(options.logdir)
    look = Look(options.get("layers"), options.smooth, options.log_x, options.get("log_y"))
    for path in draw_figures(
        logdirs,
        options.get("output", logdirs[0]),
        options.figures,
        options.formats,
        options.get("optimizers"),
        Metric(options.metric),
        look,
    ):
        print(path)
    return 0


def _summary(options: Namespace) -> int:
    from rich.console import Console

    from aida_lightning.figures.table import print_table, summarize

    console = Console(markup=False)
    for table in summarize(
        _expanded(options.logdir), options.get("layers"), options.get("optimizers")
    ):
        print_table(table, console)
    return 0


def _advise(options: Namespace) -> int:
    from rich.console import Console

    from aida_lightning.figures.advice import advise, print_advice

    if options.threshold <= 0:
        raise UsageError(f"threshold: a number above 0 is needed, but got {options.threshold}")
    console = Console(markup=False)
    for advice in advise(_expanded(options.logdir), options.threshold, options.get("optimizers")):
        print_advice(advice, console)
    return 0


def _expanded(logdirs: list[str]) -> list[str]:
    """Expand globs that no shell expanded, except the names of existing folders."""
    found: list[str] = []
    for logdir in logdirs:
        matches = sorted(path for path in glob.glob(logdir, recursive=True) if Path(path).is_dir())
        found += [logdir] if Path(logdir).is_dir() or not matches else matches
    return list(dict.fromkeys(found))


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    return "".join(_PLAIN_FORMS.get(character, "?") for character in characters), error.end


codecs.register_error(_PLAIN, _in_plain)
_COMMANDS = {
    "compare": _compare,
    "report": _report,
    "figures": _figures,
    "summary": _summary,
    "advise": _advise,
}
