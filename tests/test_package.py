"""What is installed, and what importing it costs."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import aida_lightning

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "aida_lightning": "aida_lightning",
    "callbacks": "aida_lightning/callbacks",
    "datamodules": "aida_lightning/datamodules",
    "example_modules": "aida_lightning/example_modules",
}


def test_the_version_is_that_of_the_metadata():
    assert aida_lightning.__version__ == version("aida-lightning")


def test_the_import_is_light():
    heavy = ["matplotlib", "torchvision", "jsonargparse", "lightning", "tensorboard", "sklearn"]
    code = f"import aida_lightning, sys; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_monitor_is_importable_from_the_top():
    assert aida_lightning.StepsizeMonitor.__name__ == "StepsizeMonitor"
    assert "StepsizeMonitor" in dir(aida_lightning)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = aida_lightning.nothing


def test_the_wheel_holds_what_the_tree_holds(tmp_path):
    # A copy, for setuptools leaves a build folder that later wheels would be packed from.
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".git", "build", ".*_cache")
    )
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(source)]
    subprocess.run(command, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    in_the_tree = set()
    for folder, installed in FOLDERS.items():
        for suffix in ("*.py", "*.cpp", "*.yaml", "py.typed"):
            for path in (ROOT / folder).rglob(suffix):
                in_the_tree.add(f"{installed}/{path.relative_to(ROOT / folder).as_posix()}")
    assert packed == in_the_tree
    assert {name.split("/")[0] for name in packed} == {"aida_lightning"}
