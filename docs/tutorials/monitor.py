"""Log a network's adaptive stepsizes while it trains, and read them back from the event files.

Run: python docs/tutorials/monitor.py
     tensorboard --logdir lightning_logs/tutorial      # Custom Scalars tab
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from aida_lightning import OptimizerMixin, StepsizeMonitor
from aida_lightning.figures.table import summarize
from aida_lightning.logs.curves import read_scalars


class Regression(OptimizerMixin, LightningModule):
    """Learn the sine of a sum."""

    optimizer = "aida"

    def __init__(self) -> None:
        super().__init__()
        self.optimizer_options = {"lr": 1e-2}
        self.network = nn.Sequential(
            nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
        )

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """Compute the loss of a batch."""
        x, y = batch
        return nn.functional.mse_loss(self.network(x), y)


def main() -> None:
    """Train for 5 epochs of 16 steps and look at every second one."""
    seed_everything(0)
    x = torch.randn(512, 8)
    data = DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=32, shuffle=True)
    monitor = StepsizeMonitor(
        layers=["network.*.weight"],
        every_n_steps=2,
        # What the table below has columns for.
        statistics=[
            "mean",
            "std",
            "std_over_mean",
            "min",
            "max",
            "ceiling_share",
            "effective_mean",
        ],
    )
    logger = TensorBoardLogger("lightning_logs", name="tutorial")
    trainer = Trainer(
        max_epochs=5,
        accelerator="cpu",
        devices=1,
        logger=logger,
        callbacks=[monitor],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Regression(), data)

    # As `aida-lightning summary` prints it: the last values of each layer.
    for table in summarize([logger.log_dir]):
        Console(width=120).print(table)

    # A tag's curve, for a chart of your own.
    curve = read_scalars(logger.log_dir)["stepsize_mean/network.0.weight"]
    print(f"{len(curve.steps)} points of the first layer, steps {curve.steps[0]}…{curve.steps[-1]}")


if __name__ == "__main__":
    main()
