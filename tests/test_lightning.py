"""The optimizers under Lightning's Trainer."""

from types import MappingProxyType

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from toy import Net, fit

from aida_lightning import Aida, OptimizerMixin

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
KERNELS = [{"foreach": False}, {"foreach": True}, {"fused": True}]


class Gradients(Callback):
    """Record what the optimizer is given: the largest element and norm over the run."""

    def __init__(self):
        self.largest, self.norm = 0.0, 0.0

    def on_before_zero_grad(self, trainer, module, optimizer):
        if gradients := [p.grad for p in module.parameters() if p.grad is not None]:
            self.largest = max(self.largest, *(g.abs().max().item() for g in gradients))
            norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])).item()
            self.norm = max(self.norm, norm)


def train(folder, kernel, name="aida", **options):
    torch.manual_seed(1)
    module, gradients = Net(name, lr=0.01, **kernel), Gradients()
    fit(folder, module, None, gradients, max_epochs=2, **options)
    return [p.detach().clone() for p in module.parameters()], gradients


@pytest.mark.parametrize("name", ["aida", "laida", "adabeliefl"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_with_every_kernel(tmp_path, name, algorithm):
    _, free = train(tmp_path, KERNELS[0], name)
    clip = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm}
    runs = [train(tmp_path, kernel, name, **clip) for kernel in KERNELS]
    for params, gradients in runs:
        reached = gradients.norm if algorithm == "norm" else gradients.largest
        assert reached <= 0.01 * (1 + 1e-5)
        for a, b in zip(params, runs[0][0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert min(free.norm, free.largest) > 0.01


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_precision_trains_with_every_kernel(tmp_path, kernel, precision):
    params, _ = train(tmp_path, kernel, precision=precision)
    before = [p.detach() for p in _fresh().parameters()]
    for a, b in zip(params, before, strict=True):
        assert torch.isfinite(a).all()
        assert not torch.equal(a.float(), b)


def _fresh():
    torch.manual_seed(1)
    return Net()


class BuiltLate(OptimizerMixin, Net):
    """Has no parameters before the Trainer asks it to make them."""

    optimizer = "aida"
    optimizer_options = MappingProxyType({"k": 1})

    def __init__(self):
        super().__init__()
        self.features = self.head = None

    def configure_model(self):
        if self.head is None:
            self.features, self.head = nn.Linear(4, 3), nn.Linear(3, 1)


def test_a_module_that_is_built_in_configure_model_is_optimized_as_it_is_then(tmp_path):
    module = BuiltLate()
    trainer = fit(tmp_path, module, None)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, Aida)
    assert optimizer.defaults["k"] == 1
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for p in module.parameters()
    }
    assert optimizer.state[module.head.weight]["step"].item() == 12
