"""What is installed, and what importing it costs."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name

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


# From the bottom to the top: a part imports from itself and from those before it.
PARTS = [
    "_lightning",
    "_private",
    "_errors",
    "optim._kernels",
    "optim",
    "_layers",
    "groups",
    "registry",
    "mixin",
    "checkpoint_io",
    "diagnostics",
    "logs",
    "figures",
    "measuring",
    "callbacks",
    "datamodules",
    "example_modules",
    "compare",
    "experiments",
    "_arguments",
    "_names",
    "cli",
    "_parsers",
    "commands",
]


def part_of(module):
    """Give the part that a module is in; of two the one inside of the other."""
    return max((p for p in PARTS if f"{module}.".startswith(f"{p}.")), key=len, default=None)


def imported_by(path):
    """Yield the modules of this package that a file imports, those of its functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aida_lightning."):
            module = node.module.removeprefix("aida_lightning.")
            for name in node.names:
                yield f"{module}.{name.name}"


def test_no_part_imports_from_a_part_above_it():
    seen, upwards = set(), []
    for folder, installed in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            inside = installed.removeprefix("aida_lightning").lstrip("/")
            place = Path(inside) / path.relative_to(ROOT / folder).with_suffix("")
            importer = part_of(".".join(place.parts))
            if importer is None:
                continue
            for module in imported_by(path):
                imported = part_of(module)
                seen.add((importer, imported))
                if imported is None or PARTS.index(imported) > PARTS.index(importer):
                    upwards.append(f"{path}: {module}")
    assert upwards == []
    assert ("callbacks", "logs") in seen  # what is asserted above was looked at


def test_one_module_alone_knows_that_there_are_two_lightnings():
    packages = re.compile(r"(lightning|pytorch_lightning|lightning_fabric)(\.|$)")
    naming = set()
    for folder, installed in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [getattr(alias, "name", None) for alias in getattr(node, "names", [])]
                names += [getattr(node, "module", None), getattr(node, "value", None)]
                if any(isinstance(name, str) and packages.match(name) for name in names):
                    naming.add(f"{installed}/{path.relative_to(ROOT / folder).as_posix()}")
    assert naming == {"aida_lightning/_lightning.py"}


@pytest.mark.parametrize("module", ["aida_lightning.callbacks", "aida_lightning.cli"])
def test_the_plugin_does_not_pay_for_the_papers_reproduction(module):
    others = ["datamodules", "example_modules", "compare", "experiments"]
    heavy = ["matplotlib", "torchvision", "sklearn", "spacy", "filelock"]
    code = (
        "import sys, lightning.pytorch.cli; lightnings = {*sys.modules}\n"
        f"import {module}; print(*({{*sys.modules}} - lightnings))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert module in loaded
    assert [name for name in others if f"aida_lightning.{name}" in loaded] == []
    assert [name for name in heavy if name in loaded] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("projections.ProjectionRecorder", "callbacks.ProjectionRecorder"),
        ("compare.compare", "compare.comparison.compare"),
        ("experiment.Experiment", "compare.experiment.Experiment"),
        ("experiment.Metric", "logs.metric.Metric"),
        ("loading.load_experiment", "compare.loading.load_experiment"),
        ("methods.Method", "compare.methods.Method"),
    ],
)
def test_the_documented_paths_of_before_still_lead_to_their_objects(old, new):
    module, _, name = f"aida_lightning.experiments.{old}".rpartition(".")
    # As jsonargparse imports a class path, which needs the modules above it first.
    found = getattr(importlib.import_module(module), name)
    assert found is resolve_name(f"aida_lightning.{new}")


def test_the_walks_through_the_house_lead_through_rooms_that_there_are():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    walks = page.partition("Three walks:")[2].partition("\n## ")[0]
    stays = re.findall(r"`((?:[a-z_]+\.)+\w+)`", walks)
    assert len(stays) > 15
    for stay in stays:
        if not stay.endswith((".py", ".cpp")):
            resolve_name(f"aida_lightning.{stay}")
    table = page.partition("| part |")[2].partition("\n\n")[0]
    named = {name.rstrip("/") for name in re.findall(r"`([\w/]+)`", table)}
    missing = [part for part in PARTS if part.replace(".", "/") not in named]
    assert missing == ["experiments"]
