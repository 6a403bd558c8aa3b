import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multiclass_accuracy

from aida_lightning.example_modules import ImageClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning's own use of torch's pytree.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]


def tiny_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 4))


def batches(shuffle: bool = False) -> DataLoader:
    """40 images in 4 classes, told apart by brightness; the last of the 3 batches is smaller."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    images = torch.randn(40, 3, 4, 4, generator=generator) * 0.1 + labels.view(-1, 1, 1, 1) - 1.5
    return DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=shuffle)


def trainer(folder: Path, **options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def classifier(**options) -> ImageClassifier:
    options = {"optimizer": "Adam", "optimizer_options": {"lr": 0.02}} | options
    return ImageClassifier(tiny_network(), num_classes=4, **options)


@pytest.mark.parametrize("name", ["vgg11", "resnet34"])
def test_a_network_is_built_by_name(name):
    model = ImageClassifier(name, num_classes=3)
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_layers_are_named_under_model():
    assert next(iter(dict(ImageClassifier().named_parameters()))) == "model.features.0.weight"


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(
        ValueError, match=r"'vgg12', it must be one of \['resnet34', 'vgg11', 'vgg11_x0_25'\]"
    ):
        ImageClassifier("vgg12")


def test_the_default_optimizer_is_aida():
    assert type(ImageClassifier(tiny_network()).configure_optimizers()).__name__ == "Aida"


def test_optimizer_and_schedule_are_those_named_with_their_options():
    configured = classifier(
        optimizer="SGD",
        optimizer_options={"lr": 0.1, "momentum": 0.9},
        lr_scheduler="MultiStepLR",
        lr_scheduler_options={"milestones": [150], "gamma": 0.1},
    ).configure_optimizers()
    assert type(configured["optimizer"]) is torch.optim.SGD
    assert configured["optimizer"].param_groups[0]["momentum"] == 0.9
    assert configured["lr_scheduler"]["scheduler"].milestones == {150: 1}


def test_an_unknown_optimizer_is_refused_once_it_is_asked_for():
    model = classifier(optimizer="no-such-optimizer")
    with pytest.raises(ValueError, match="no-such-optimizer"):
        model.configure_optimizers()


def test_the_callers_options_are_not_shared():
    options = {"lr": 0.1}
    model = classifier(optimizer_options=options)
    options["lr"] = 99
    assert model.optimizer_options == {"lr": 0.1}


def test_training_learns_and_logs_loss_and_accuracy(tmp_path):
    seed_everything(0, verbose=False)
    model = classifier()
    run = trainer(tmp_path, max_epochs=20)
    run.fit(model, batches(shuffle=True), batches())
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy"} <= set(run.logged_metrics)
    assert run.logged_metrics["val_accuracy"] > 0.9
    assert run.logged_metrics["val_loss"] < math.log(4)
    rows = (Path(run.logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train_loss")
    assert sum(bool(row.split(",")[column]) for row in rows[1:]) == run.global_step == 60


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_averages_over_images_not_over_batches(tmp_path, stage):
    torch.manual_seed(0)
    model = classifier()
    run = trainer(tmp_path)
    (logged,) = getattr(run, stage)(model, batches(), verbose=False)
    images, labels = batches().dataset.tensors
    with torch.no_grad():
        logits = model(images)
    prefix = {"validate": "val", "test": "test"}[stage]
    loss = nn.functional.cross_entropy(logits, labels)
    accuracy = multiclass_accuracy(logits, labels, num_classes=4, average="micro")
    assert logged == {
        f"{prefix}_loss": pytest.approx(loss.item()),
        f"{prefix}_accuracy": pytest.approx(accuracy.item()),
    }


def test_a_named_networks_checkpoint_loads_without_arguments(tmp_path, monkeypatch):
    monkeypatch.setitem(
        ImageClassifier.__init__.__globals__["NETWORKS"], "tiny", lambda classes: tiny_network()
    )
    model = ImageClassifier("tiny", num_classes=4, optimizer="SGD", optimizer_options={"lr": 0.1})
    assert model.hparams == {
        "model": "tiny",
        "num_classes": 4,
        "optimizer": "SGD",
        "optimizer_options": {"lr": 0.1},
        "lr_scheduler": None,
        "lr_scheduler_options": None,
    }
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, batches(), batches())
    run.save_checkpoint(tmp_path / "last.ckpt")
    again = ImageClassifier.load_from_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(again.model[1].weight, model.model[1].weight)
    assert again.optimizer_options == {"lr": 0.1}


def test_a_network_passed_itself_is_not_a_hyperparameter():
    assert "model" not in classifier().hparams
