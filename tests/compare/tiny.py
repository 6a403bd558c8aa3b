"""A classifier that trains in a blink, and the experiment that it is compared in."""

import os
from pathlib import Path

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from aida_lightning import OptimizerMixin, stepsize


class TinyClassifier(OptimizerMixin, LightningModule):
    """Two layers with dropout, of which the random numbers are torch's own."""

    def __init__(
        self,
        width: int = 6,
        optimizer: str = "aida",
        optimizer_options: dict | None = None,
        lr_scheduler: str | None = None,
        lr_scheduler_options: dict | None = None,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.optimizer, self.optimizer_options = optimizer, optimizer_options
        self.lr_scheduler, self.lr_scheduler_options = lr_scheduler, lr_scheduler_options
        self.first, self.dropout = nn.Linear(4, width), nn.Dropout(0.5)
        self.head = nn.Linear(width, 3)
        self.train_accuracy, self.val_accuracy = MulticlassAccuracy(3), MulticlassAccuracy(3)

    def forward(self, inputs):
        return self.head(self.dropout(self.first(inputs).tanh()))

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        logits = self(inputs)
        loss = cross_entropy(logits, labels)
        self.train_accuracy(logits, labels)
        self.log("train_loss", loss)
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.val_accuracy(self(batch[0]), batch[1])
        self.log("val_accuracy", self.val_accuracy)


class Linear(nn.Sequential):
    """A network for CIFAR-10's images."""

    def __init__(self):
        super().__init__(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10))


class TinyData(LightningDataModule):
    """Sixty points in four batches, shuffled by torch's own random numbers."""

    def __init__(self, batch_size: int = 15, root: str = "data"):
        super().__init__()
        self.batch_size = batch_size
        inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        self.points = TensorDataset(inputs, inputs[:, :3].argmax(1))

    def train_dataloader(self):
        return DataLoader(self.points, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.points, self.batch_size)


class Slow(torch.optim.SGD):
    """An optimizer of the user's own, with an option that has no default, and an adapter."""

    def __init__(self, params, pace: float, lr: float = 0.1):
        super().__init__(params, lr=lr * pace)
        self.defaults["pace"] = pace

    def step(self, closure=None):
        loss = super().step(closure)
        for param in self.param_groups[0]["params"]:
            self.state[param]["step"] = torch.tensor(1.0)
        return loss


@stepsize.register
def _(optimizer: Slow, group, state):
    return torch.tensor(optimizer.defaults["pace"])


class Kill(Callback):
    """Ends the process at once, as a power cut does, when an environment variable says so."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == int(os.environ.get("TINY_KILLED_AT", "-1")):
            os._exit(9)


EXPERIMENT = {
    "description": "A tiny one",
    "model": {
        "class_path": "compare.tiny.TinyClassifier",
        "init_args": {
            "lr_scheduler": "StepLR",
            "lr_scheduler_options": {"step_size": 1, "gamma": 0.5},
        },
    },
    "data": {"class_path": "compare.tiny.TinyData"},
    "trainer": {"max_epochs": 2, "log_every_n_steps": 1, "accelerator": "cpu"},
    "callbacks": [
        {
            "class_path": "aida_lightning.callbacks.StepsizeMonitor",
            "init_args": {"health": False},
        },
        {
            "class_path": "aida_lightning.callbacks.ProjectionRecorder",
            "init_args": {"layer": "first.weight"},
        },
        {"class_path": "compare.tiny.Kill"},
    ],
    "optimizer_options": {"lr": 0.01},
    "optimizers": [
        {"name": "aida", "label": "Aida K=2", "options": {"k": 2}, "paper": {"mean": 50.0}},
        {"name": "adabelief", "grid": {"eps": [1e-8, 1e-16]}, "paper": {"mean": 40, "std": 0.5}},
    ],
    "figures": ["fig3", "fig5", "fig6"],
    "paper": {"source": "Table 0", "epochs": 2},
    "sample": {"data.init_args.batch_size": 30},
}


def write_experiment(folder: Path, **changes) -> str:
    """Write the experiment with top-level keys changed, or left out where they are None."""
    content = {k: v for k, v in {**EXPERIMENT, **changes}.items() if v is not None}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(path)
