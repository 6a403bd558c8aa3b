"""The Trainer of AidaCLI is that of the distribution whose classes are named."""

import json
import sys
from pathlib import Path

import pytest
import pytorch_lightning
import yaml
from jsonargparse import Namespace
from lightning.pytorch.demos.boring_classes import BoringDataModule
from pytorch_lightning.demos.boring_classes import BoringModel

from aida_lightning._arguments import named_classes
from aida_lightning._lightning import MisconfigurationException, find_in, packages
from aida_lightning.cli import AidaCLI

MODEL = "pytorch_lightning.demos.boring_classes.BoringModel"
OURS = "aida_lightning.example_modules.ImageClassifier"
pytestmark = [
    # Lightning's own calls of newer jsonargparse.
    pytest.mark.filterwarnings("ignore:(?s).*one Jsonargparse:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:(?s).*was deprecated in v:DeprecationWarning"),
]


class OnlyHere(BoringModel):
    pass


@pytest.fixture(autouse=True)
def files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    Path("model.yaml").write_text(yaml.safe_dump({"class_path": MODEL}))
    Path("all.yaml").write_text(yaml.safe_dump({"model": MODEL, "trainer": {"max_epochs": 1}}))
    Path("fit.yaml").write_text(yaml.safe_dump({"fit": {"model": {"class_path": MODEL}}}))


@pytest.mark.parametrize(
    "args",
    [
        ["fit", "--model", MODEL],
        [f"--model={MODEL}", "--trainer.max_epochs", "1"],
        ["--model.class_path", MODEL],
        [f"--model={json.dumps({'class_path': MODEL})}"],
        ["--model", "model.yaml"],
        ["--config", "all.yaml"],
        ["-c", "all.yaml", "--trainer.max_epochs=3"],
        ["--config=fit.yaml", "fit"],
        [f"--config={{model: {MODEL}}}"],
        {"model": {"class_path": MODEL}},
        {"fit": {"model": MODEL}},
        Namespace(model=Namespace(class_path=MODEL)),
    ],
)
def test_a_model_is_found_wherever_it_may_be_named(args):
    assert named_classes(args) == [("model", BoringModel)]


def test_a_model_may_go_by_its_bare_name():
    assert named_classes(["--model=OnlyHere"]) == [("model", OnlyHere)]
    assert named_classes(["--model=NoSuchModel"]) == []


def test_the_model_comes_first_and_of_two_the_later_holds():
    callback = "pytorch_lightning.callbacks.EarlyStopping"
    args = [f"--trainer.callbacks+={callback}", f"--model={OURS}", f"--model={MODEL}"]
    found = named_classes([*args, "--trainer.default_root_dir=no.such", "--ckpt_path=no.file"])
    names = [(key, cls.__name__) for key, cls in found]
    assert names == [
        ("model", "BoringModel"),
        ("trainer.callbacks", "EarlyStopping"),
    ]


def test_the_trainer_is_that_of_what_is_named_or_given():
    def made(*args, model=None, **kwargs):
        options = {"run": False, "save_config_callback": None, "seed_everything_default": 0}
        return type(AidaCLI(model, args=[*args], **options, **kwargs).trainer)

    stops = ["--trainer.callbacks+=pytorch_lightning.callbacks.EarlyStopping"]
    stops += ["--trainer.callbacks.monitor=val_loss"]
    assert made("--config=all.yaml") is pytorch_lightning.Trainer
    assert made(model=OnlyHere) is pytorch_lightning.Trainer
    assert made(model=_makes_one) is pytorch_lightning.Trainer
    assert made(f"--model={OURS}", *stops) is pytorch_lightning.Trainer
    # That of the package which the program has imported first.
    assert made(f"--model={OURS}") is find_in(packages()[0], "pytorch.Trainer")
    theirs = {"trainer_class": pytorch_lightning.Trainer}
    assert made(f"--model={OURS}", **theirs) is pytorch_lightning.Trainer


def _makes_one() -> OnlyHere:
    return OnlyHere()


def test_classes_of_both_are_refused_in_a_sentence(capsys):
    theirs = BoringDataModule
    name = f"{theirs.__module__}.{theirs.__name__}"
    sentence = (
        f"{name} belongs to lightning.pytorch, but the Trainer belongs to pytorch_lightning; give"
    )
    with pytest.raises(MisconfigurationException, match=sentence):
        AidaCLI(OnlyHere, theirs)
    with pytest.raises(SystemExit):
        AidaCLI(OnlyHere, args=[f"--data={name}"], run=False)
    assert f"data: {sentence}" in capsys.readouterr().err
