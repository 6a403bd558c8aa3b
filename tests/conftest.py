"""Tests of what meets Lightning run twice: under lightning.pytorch, and under pytorch_lightning.

Renaming is how the second is made of the source of the first, and so it is here, for the tests.
"""

import re
import sys
from pathlib import Path

import pytest

TESTS = (
    "callbacks/test_*.py",
    "test_cli.py",
    "test_lightning.py",
    "test_checkpoint_io.py",
    "logs/test_tensorboard.py",
    "compare/test_resume.py",
)
HELPERS = ("toy.py", "compare/tiny.py")
RENAMED = (
    (r"lightning\.pytorch", "pytorch_lightning"),
    (r"lightning\.fabric", "lightning_fabric"),
    (r"from toy import", "from renamed_toy import"),
    (r"compare\.tiny", "renamed_tiny"),
)


class UnderPytorchLightning(pytest.Module):
    """A test module of which a renamed copy is run."""

    def _getobj(self):
        tests = self.config.rootpath / "tests"
        folder = self.config.cache.mkdir("renamed")
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # from where processes that are spawned import, too
        copy = folder / self.path.relative_to(tests)
        for helper in HELPERS:
            _rename(tests / helper, folder / f"renamed_{Path(helper).name}")
        _rename(self.path, copy)
        return pytest.Module.from_parent(self, path=copy).obj


def pytest_collect_file(file_path, parent):
    if any(file_path.match(f"tests/{pattern}") for pattern in TESTS):
        name = f"{file_path.name}[pytorch_lightning]"
        nodeid = f"{file_path.relative_to(parent.config.rootpath).as_posix()}[pytorch_lightning]"
        return UnderPytorchLightning.from_parent(parent, path=file_path, name=name, nodeid=nodeid)
    return None


def _rename(path, copy):
    text = path.read_text(encoding="utf-8")
    for old, new in RENAMED:
        text = re.sub(old, new, text)
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(text, encoding="utf-8")
