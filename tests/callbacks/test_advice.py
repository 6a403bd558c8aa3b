"""From a run that the monitor measured to an optimizer with the state that was predicted."""

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from aida_lightning import StepsizeMonitor, build_optimizer
from aida_lightning.commands import main
from aida_lightning.figures.advice import advise

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
NAMES = ["adamw", "adamplus", "adabelief", "aida"]


class Regression(LightningModule):
    def __init__(self, optimizer="adamw"):
        super().__init__()
        self.name = optimizer
        self.first, self.second, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def training_step(self, batch):
        x, y = batch
        output = self.last(self.second(self.first(x).relu()).relu())
        return nn.functional.mse_loss(output, y)

    def configure_optimizers(self):
        return build_optimizer(self.name, self, lr=1e-2, eps=1e-16)


def state_bytes(optimizer):
    states = optimizer.state.values()
    return sum(v.nbytes for state in states for v in state.values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("name", NAMES)
def test_the_options_to_paste_build_an_optimizer_with_the_state_that_is_predicted(
    name, tmp_path, capsys
):
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    data = DataLoader(TensorDataset(x, x[:, :2].sum(1, keepdim=True).sin()), batch_size=16)
    monitor = StepsizeMonitor("*", every_n_steps=2, statistics=["snr", "snr_rows"])
    logger = TensorBoardLogger(tmp_path)
    module = Regression(name)
    Trainer(
        max_epochs=3, log_every_n_steps=1, accelerator="cpu", logger=logger, callbacks=[monitor],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, data)  # fmt: skip
    logger.experiment.close()
    (advice,) = advise([str(tmp_path)], threshold=0.5)
    assert 0 < advice.saved_bytes < advice.state_bytes == state_bytes(module.optimizers().optimizer)
    assert main(["advise", str(tmp_path), "--threshold", "0.5"]) == 0
    printed = capsys.readouterr().out
    as_yaml, as_python = printed[printed.index("\n\n", printed.index("as YAML")) :].split(
        "\nand as Python:\n"
    )
    options = yaml.safe_load(as_yaml)
    built = [
        build_optimizer(advice.method, module, **options),
        eval(as_python.strip(), {"build_optimizer": build_optimizer, "module": module}),
    ]
    for optimizer in built:
        for param in module.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
        assert state_bytes(optimizer) == advice.state_bytes - advice.saved_bytes
