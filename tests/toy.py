"""A LightningModule of two layers, and how the tests train it and read its event files."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from aida_lightning import build_optimizer
from aida_lightning.compare.callbacks import LetGlooFinish


class Net(LightningModule):
    """Two layers, trained on 12 batches an epoch."""

    def __init__(self, name="aida", **options):
        super().__init__()
        self.name, self.options = name, options
        self.features = nn.Linear(4, 3)
        self.head = nn.Linear(3, 1)

    def loss(self, batch):
        return self.head(self.features(batch[0]).tanh()).square().mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return build_optimizer(self.name, self, **self.options)

    def train_dataloader(self):
        inputs = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs), batch_size=1)


class TwoOptimizers(Net):
    """Manual optimization: the head at every batch, the features at every third one."""

    def __init__(self, names, every=3, **options):
        super().__init__(**options)
        self.automatic_optimization = False
        self.names, self.every = names, every

    def configure_optimizers(self):
        layers = (self.head, self.features)
        return [
            build_optimizer(name, layer, **self.options)
            for name, layer in zip(self.names, layers, strict=True)
        ]

    def training_step(self, batch, batch_idx):
        head, features = self.optimizers()
        head.zero_grad(), features.zero_grad()
        self.manual_backward(self.loss(batch))
        head.step()
        if batch_idx % self.every == self.every - 1:
            features.step()


def fit(folder, module, monitor, *callbacks, loggers=None, ckpt_path=None, **options):
    torch.manual_seed(0)
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[LetGlooFinish(), *(c for c in (monitor, *callbacks) if c)],
        logger=[TensorBoardLogger(folder, name="", version="run")] if loggers is None else loggers,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{
            "accelerator": "cpu",
            "devices": 1,
            "enable_checkpointing": False,
            "max_epochs": 1,
            "log_every_n_steps": 5,
            **options,
        },
    )
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def age_events(folder):
    """Rename the event files to be of a second before, for TensorBoard reads them in that order."""
    for path in (folder / "run").glob("events.out.tfevents.*"):
        *head, second, host = path.name.split(".", 4)
        path.rename(path.with_name(".".join([*head, str(int(second) - 1), host])))


def read(folder):
    events = EventAccumulator(str(folder / "run"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
