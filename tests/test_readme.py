"""The README's code runs, and its commands are what CI runs."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*")
def test_the_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_two_commands_do_all_the_set_up():
    commands = re.findall(r"^pip install .*", README, flags=re.MULTILINE)
    assert commands == [
        'pip install ".[examples]" && aida-lightning compare',
        'pip install ".[test]" && pytest',
    ]


def test_every_picture_is_there():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (Path(__file__).parents[1] / path).is_file(), path
