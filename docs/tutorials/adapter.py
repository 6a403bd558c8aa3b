"""Teach the monitor an optimizer that it does not know, and check what it logs.

Run: python docs/tutorials/adapter.py
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from aida_lightning import StepsizeMonitor, stepsize
from aida_lightning.diagnostics import stepsize_ceiling


class FlooredRMSprop(Optimizer):
    """RMSprop whose average of squared gradients never falls below a floor."""

    def __init__(self, params: Any, lr: float = 1e-2, beta: float = 0.9, floor: float = 1e-2):
        super().__init__(params, {"lr": lr, "beta": beta, "floor": floor})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step: v ← β·v + (1-β)·g², x ← x - lr · g / sqrt(max(v, floor))."""
        loss = None
        if closure is not None:  # Lightning always gives one: it computes the gradients
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is None:
                    continue
                v = self.state[x].setdefault("square_avg", torch.zeros_like(x))
                v.lerp_(x.grad.square(), 1 - group["beta"])
                x.addcdiv_(x.grad, v.clamp(min=group["floor"]).sqrt(), value=-group["lr"])
        return loss


@stepsize.register
def _(optimizer: FlooredRMSprop, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    # The s of x ← x - lr · g · s. It stays on the device, and changes nothing.
    return state["square_avg"].clamp(min=group["floor"]).rsqrt()


@stepsize_ceiling.register
def _(optimizer: FlooredRMSprop, group: dict[str, Any]) -> float:
    # Without this the monitor has no `ceiling_share`, and does not warn of layers at the ceiling.
    return group["floor"] ** -0.5


class Regression(LightningModule):
    """A line through points."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 1)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """Compute the loss of a batch."""
        x, y = batch
        return nn.functional.mse_loss(self.line(x), y)

    def configure_optimizers(self) -> Optimizer:
        """Return what the monitor did not know before."""
        return FlooredRMSprop(self.parameters())


def main() -> None:
    """Train for 20 steps; compare the last number that was logged with the optimizer's state."""
    seed_everything(0)
    x = torch.randn(80, 4)
    data = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)
    logger = CSVLogger("lightning_logs", name="adapter")
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=logger,
        callbacks=[StepsizeMonitor(every_n_steps=5, statistics=["mean", "std", "ceiling_share"])],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    model = Regression()
    trainer.fit(model, data)

    (optimizer,) = trainer.optimizers
    (group,) = optimizer.param_groups
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        last = [*csv.DictReader(file)][-1]
    logged = float(last["stepsize_mean/line.weight"])
    computed = stepsize(optimizer, group, optimizer.state[model.line.weight]).mean().item()
    print(f"mean of the stepsizes at the last step: {logged:.6f} logged, {computed:.6f} computed")
    print(f"at the ceiling of {stepsize_ceiling(optimizer, group):g}: ", end="")
    print(f"{float(last['stepsize_ceiling_share/line.weight']):.0%} of the elements")
    assert abs(logged - computed) <= 1e-6 * computed


if __name__ == "__main__":
    main()
