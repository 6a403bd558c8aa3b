"""A comparison that ends at a chosen moment as kill -9 ends it, in a process of its own.

Moments are the starts and the ends of all that Lightning's profiler tells of (each hook of each
callback, of the module and of the strategy), and the file operations of a run.
"""

import os
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from lightning.pytorch.profilers import Profiler
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard import SummaryWriter  # noqa: F401 - to be imported once

from aida_lightning.compare.comparison import compare
from aida_lightning.compare.loading import load_experiment

OPERATIONS = [
    (EventFileWriter, "add_event"),
    (EventFileWriter, "flush"),
    (os, "fsync"),
    (os, "link"),
    (os, "replace"),
    (os, "unlink"),
    (torch, "save"),
    (Path, "write_text"),
]
# By what was met: called at each moment with its name.
_meet: Callable[[str], None] = lambda name: None  # noqa: E731


class Moments(Profiler):
    """Meets a moment at each start and each end of an action."""

    def start(self, action_name):
        _meet(f"start of {action_name}")

    def stop(self, action_name):
        _meet(f"end of {action_name}")


def _run(path, output, fatal, log):
    global _meet
    names = []

    def meet(name):
        names.append(name)
        if len(names) == fatal:
            os._exit(9)

    def met(owner, name):
        operation = getattr(owner, name)

        def operate(*arguments, **options):
            meet(f"before {name}")
            result = operation(*arguments, **options)
            meet(f"after {name}")
            return result

        setattr(owner, name, operate)

    _meet = meet
    for owner, name in OPERATIONS:
        met(owner, name)
    torch.set_num_threads(1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.chdir(Path(output).parent)  # a relative folder, as by default
    compare(load_experiment(path), ["Aida K=2"], Path(output).name, keep_checkpoints=True)
    if log:
        Path(log).write_text("\n".join(names), encoding="utf-8")
    os._exit(0)


def run(path, output, fatal=None, log=None):
    """Compare in a new process, and return its exit code: 9 if it met the fatal moment."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["compare.kills"])
    # Python 3.11's server does not take over sys.path, and would leave the import to each process.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    process = context.Process(target=_run, args=(path, str(output), fatal, log and str(log)))
    process.start()
    process.join(120)
    return process.exitcode
