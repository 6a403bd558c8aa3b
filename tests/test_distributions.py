"""Our classes under lightning.pytorch and under pytorch_lightning, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("distributions.py")
each_package = pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])


@each_package
def test_either_trainer_takes_our_classes_whichever_was_imported_first(tmp_path, package):
    holds("first", package, tmp_path)


@each_package
def test_one_lightning_is_enough(tmp_path, package):
    holds("alone", package, tmp_path)


def holds(check, package, folder):
    run = subprocess.run(
        [sys.executable, str(PROGRAM), check, package, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.endswith("HELD\n")
