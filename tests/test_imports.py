"""What is imported, and so waited for, before a command or a callback does anything."""

import subprocess
import sys

import pytest

HEAVY = ["torch", "lightning", "pytorch_lightning", "torchmetrics", "torchvision", "matplotlib"]
LATE = ["sklearn", "spacy", "filelock", "torch_fidelity", "rich", "tensorboardX"]


def imported(code, *names):
    """Return which of some modules a process has imported that has run the code."""
    code = f"import sys\n{code}\nprint(*({{*{names!r}}} & {{*sys.modules}}), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {*run.stderr.split()}


def command(*args):
    return (
        "from aida_lightning.commands import main\n"
        f"try: main({[*args]})\nexcept SystemExit as end: assert not end.code"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import aida_lightning; aida_lightning.__version__; dir(aida_lightning)",
        command("--help"),
        command("--version"),
        command("compare", "--help"),
        command("figures", "--help"),
        command("summary", "--help"),
    ],
)
def test_whoever_asks_for_no_optimizer_waits_not_even_for_torch(code):
    assert imported(code, *HEAVY, *LATE) == set()


@pytest.mark.parametrize("name", ["Aida", "build_optimizer", "OptimizerMixin", "stepsize"])
def test_the_optimizers_wait_for_torch_alone(name):
    code = f"from aida_lightning import {name}"
    assert imported(code, *HEAVY, *LATE, "tensorboard", "jsonargparse") == {"torch"}
