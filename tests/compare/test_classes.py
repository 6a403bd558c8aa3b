"""Classes are what they have to be, and edits of a user's own are told from their sources."""

import sys

import pytest

from aida_lightning.compare.classes import check_classes, class_paths, package_named, source_digests
from aida_lightning.compare.methods import UsageError

CONFIG = {
    "model": {"class_path": "own_models.nets.Net", "init_args": {"width": 3}},
    "data": {"class_path": "aida_lightning.datamodules.DigitsDataModule"},
    "callbacks": [{"class_path": "torch.nn.ReLU"}, {"class_path": "own_single.Callback"}],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    package = tmp_path / "own_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(
        "import json\nimport own_helper\nfrom own_models import parts\nfrom .more import x\n"
        "class Net: pass\n"
    )
    (package / "parts.py").write_text("import torch\n")
    (package / "more.py").write_text("x = 1\n")
    (tmp_path / "own_helper.py").write_text("y = 2\n")
    (tmp_path / "own_single.py").write_text("class Callback: pass\n")
    (tmp_path / "unrelated.py").write_text("z = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_class_paths_are_found_at_any_depth():
    assert [*class_paths(CONFIG)] == [
        "own_models.nets.Net",
        "aida_lightning.datamodules.DigitsDataModule",
        "torch.nn.ReLU",
        "own_single.Callback",
    ]


def test_the_users_own_modules_are_noted_with_those_that_they_import(folder):
    assert source_digests(CONFIG).keys() == {
        "own_models",
        "own_models.nets",
        "own_models.parts",
        "own_models.more",
        "own_helper",
        "own_single",
    }


@pytest.mark.parametrize("edited", ["own_models/nets.py", "own_models/more.py", "own_helper.py"])
def test_an_edit_changes_the_digest_of_its_module_alone(folder, edited):
    before = source_digests(CONFIG)
    with (folder / edited).open("a") as file:
        file.write("# edited\n")
    after = source_digests(CONFIG)
    changed = [name for name in before if before[name] != after[name]]
    assert changed == [edited.removesuffix(".py").replace("/", ".")]
    with (folder / "unrelated.py").open("a") as file:
        file.write("# edited\n")
    assert source_digests(CONFIG) == after


def test_a_class_that_cannot_be_imported_has_no_source():
    assert source_digests({"class_path": "no_such_module.Class"}) == {}
    assert source_digests({"class_path": "Bare"}) == {}


@pytest.mark.parametrize(
    "config",
    [
        {"data": {"class_path": "os.system", "init_args": {"command": "exit 1"}}},
        {"data": "os.system"},
        {"model": {"class_path": "aida_lightning.datamodules.DigitsDataModule"}},
        {"trainer": {"class_path": "subprocess.Popen"}},
        {"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}, "os.remove"]},
    ],
)
def test_what_is_no_class_of_its_kind_is_refused(config):
    with pytest.raises(UsageError, match=r"^here: \w+: \S+ must be a subclass of "):
        check_classes("here", config, "lightning.pytorch")


def test_classes_of_their_kind_bare_names_and_unknown_ones_are_left_to_the_parser():
    check_classes(
        "here",
        {
            "model": {"class_path": "aida_lightning.example_modules.ImageClassifier"},
            "data": "DigitsDataModule",
            "trainer": {"max_epochs": 3},
            "callbacks": [{"class_path": "no_such.Callback"}],
        },
        "lightning.pytorch",
    )
    check_classes("here", {}, "lightning.pytorch")


def test_classes_of_the_other_lightning_are_refused_and_ours_are_of_both():
    theirs = "pytorch_lightning.callbacks.Timer"
    config = {
        "model": {"class_path": "aida_lightning.example_modules.ImageClassifier"},
        "callbacks": [
            {"class_path": "aida_lightning.callbacks.StepsizeMonitor"},
            {"class_path": theirs},
        ],
    }
    assert package_named(config) == "pytorch_lightning"
    check_classes("here", config, "pytorch_lightning")
    message = f"here: callbacks: {theirs} is a Callback of pytorch_lightning, but the .* lightning"
    with pytest.raises(UsageError, match=message):
        check_classes("here", config, "lightning.pytorch")


def test_a_neighbour_that_does_not_parse_is_noted_and_read_no_further(folder):
    (folder / "own_helper.py").write_text("print 'of another time'\n")
    single = folder / "own_single.py"
    single.write_text(
        "try:\n    import own_helper\nexcept SyntaxError:\n    pass\n" + single.read_text()
    )
    assert source_digests({"class_path": "own_single.Callback"}).keys() == {
        "own_single",
        "own_helper",
    }
