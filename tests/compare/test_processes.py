"""The processes of one run say no more than one process does."""

import os
import re
import subprocess
import sys
from pathlib import Path

from compare.tiny import write_experiment


def test_processes_that_a_run_spawns_are_as_quiet_as_the_first(tmp_path):
    command = [sys.executable, "-m", "aida_lightning", "compare", write_experiment(tmp_path)]
    command += ["--optimizers", "aida", "--devices", "2", "--accelerator", "cpu"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "CUDA_HOME": str(tmp_path)},  # as where there is a toolkit and no GPU
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Lightning's lines, its warnings, and torch's; c10d may tell of the machine's network.
    lines = "GLOBAL_RANK|registered|exists|LeafSpec|interval|No CUDA|stopped"
    assert re.findall(lines, done.stderr) == []
