"""Training with the monitor on the CPU and on a GPU: precisions, gradient scaling, and waits."""

import math

import pytest
import torch
from devices import Transfers, counted_waits, each_device, fake_gpu, needs_gpu
from torch import nn
from toy import Net, fit, read

from aida_lightning import build_optimizer
from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.measuring._parts import with_parts
from aida_lightning.measuring._statistics import STATISTICS, choose_statistics, to_be_had
from aida_lightning.measuring._step import StepMeasures

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
KERNELS = {"foreach": {"foreach": True}, "fused": {"fused": True}}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


class Small(Net):
    """Has gradients that half precision can hold 65,536-fold, the scaler's first scale."""

    def loss(self, batch):
        return super().loss(batch) / 100


def train(folder, device, name="aida", monitor=None, precision="32-true", **options):
    torch.manual_seed(0)
    module = Small(name, **options)
    before = [param.detach().clone() for param in module.parameters()]
    fit(folder, module, monitor, accelerator=device, precision=precision)
    return module, before


def distance(first, second):
    pairs = zip(first, second, strict=True)
    return math.sqrt(sum((a - b).square().sum().item() for a, b in pairs))


@each_device
@each_kernel
@pytest.mark.parametrize("name", ["aida", "laida", "adaml"])
@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("16-mixed", marks=needs_gpu)])
def test_mixed_precision_goes_where_full_precision_does(tmp_path, device, kernel, name, precision):
    if (device, precision) == ("cpu", "16-mixed"):
        pytest.skip("Lightning has no gradient scaler there")
    full, before = train(tmp_path / "full", device, name, **kernel)
    monitor = StepsizeMonitor(every_n_steps=4)
    mixed, _ = train(tmp_path / "mixed", device, name, monitor, precision, **kernel)
    full, mixed = ([p.detach() for p in module.parameters()] for module in (full, mixed))
    assert 0 < distance(full, before)
    assert distance(mixed, full) < 0.15 * distance(full, before)
    logged = read(tmp_path / "mixed")
    steps = logged["stepsize_mean/features.weight"]
    assert len(steps) == 3
    assert all(math.isfinite(value) and value > 0 for value in steps.values())


class Overflows(Small):
    """Has an infinite loss in the fifth batch of twelve."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * (math.inf if batch_idx == 4 else 1.0)


@needs_gpu
@each_kernel
def test_a_step_that_the_scaler_skips_is_neither_taken_nor_counted(tmp_path, kernel):
    monitor = StepsizeMonitor(every_n_steps=1)
    torch.manual_seed(0)
    module = Overflows("aida", **kernel)
    trainer = fit(tmp_path, module, monitor, accelerator="cuda", precision="16-mixed")
    assert all(param.isfinite().all() for param in module.parameters())
    (optimizer,) = trainer.optimizers
    taken = {int(state["step"]) for state in optimizer.state.values()}
    assert taken == {11}
    assert len(read(tmp_path)["stepsize_mean/features.weight"]) == 11


@each_device
@pytest.mark.parametrize(
    ("name", "options"),
    [("aida", {"foreach": True}), ("aida", {"fused": True}), ("adam", {"fused": True})],
)
def test_the_monitor_waits_for_the_gpu_once_per_logged_step(tmp_path, device, name, options):
    counts = []
    for part, monitor in (("without", None), ("with", StepsizeMonitor(every_n_steps=4))):
        with counted_waits(device) as waits:
            train(tmp_path / part, device, name, monitor=monitor, **options)
        counts.append(len(waits))
    assert counts[1] - counts[0] == (3 if device == "cuda" else 0)


OURS = [("aida", {"foreach": True}), ("laida", {"foreach": True}), ("adaml", {"foreach": False})]
TORCHS = [("adam", {"fused": True}), ("adamw", {"foreach": True}), ("sgd", {"momentum": 0.9})]


@pytest.mark.parametrize(("name", "options"), [*OURS, *TORCHS])
def test_no_measure_would_wait_for_a_gpu(name, options, monkeypatch):
    with fake_gpu(monkeypatch):
        layers = {nn.Parameter(torch.empty(5, 3, device="cuda")): name for name in ("a", "b")}
        optimizer = build_optimizer(name, [*layers], **options)
        for layer in layers:
            layer.grad = torch.empty_like(layer)
        statistics = to_be_had(choose_statistics([*STATISTICS, "median", "q05"]), optimizer)
        measures = StepMeasures(optimizer, [*{m: None for s in statistics for m in s.measures}])
        parts = {"a": {"first": 2, "last": 3}, "b": "rows"}
        watched = with_parts(layers, {param: [name] for param, name in layers.items()}, parts)
        measures.copy(watched)
        optimizer.step()
        with Transfers() as transfers:
            rows = measures.take(watched, {*layers})
    assert transfers.copies == []
    tensors = [x for row in rows.values() for x in row.values() if isinstance(x, torch.Tensor)]
    assert tensors
    assert all(tensor.is_cuda for tensor in tensors)
