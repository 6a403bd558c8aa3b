"""What the processes of the distributed tests run under Lightning's Trainer."""

import os
import signal
from pathlib import Path
from pkgutil import resolve_name

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from sharding import Collectives
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.data import DataLoader, TensorDataset

from aida_lightning import build_optimizer
from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.diagnostics import has_stepsize, momentum, stepsize

BATCHES = 12


class Net(LightningModule):
    """Three layers, one of which is unused; every process sees the same batches."""

    hybrid = False

    def __init__(self, name="aida", **options):
        super().__init__()
        self.name, self.options = name, options
        torch.manual_seed(1)
        self.features = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)
        self.unused = nn.Linear(3, 3)

    def configure_model(self):
        if not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return
        mesh = self.device_mesh["data_parallel"]
        if self.hybrid:
            names = ("replicate", "shard")
            mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=names)
        if (tensor_parallel := self.device_mesh["tensor_parallel"]).size() > 1:
            plan = {"features": ColwiseParallel(), "head": RowwiseParallel()}
            parallelize_module(self, tensor_parallel, plan)
        for layer in (self.features, self.head, self.unused):
            fully_shard(layer, mesh=mesh)
        fully_shard(self, mesh=mesh)

    def forward(self, inputs):
        return self.head(self.features(inputs).tanh())

    def training_step(self, batch, batch_idx):
        loss = self(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return build_optimizer(self.name, self, **self.options)

    def train_dataloader(self):
        inputs = torch.randn(BATCHES, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs), batch_size=1)


class TwoOptimizers(Net):
    """Manual optimization: the head at every batch, the features at every third one."""

    def __init__(self, name="aida", **options):
        super().__init__(name, **options)
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [
            build_optimizer(self.name, layer.parameters(), **self.options)
            for layer in (self.head, self.features)
        ]

    def training_step(self, batch, batch_idx):
        head, features = self.optimizers()
        self.manual_backward(self(batch[0]).square().mean())
        head.step()
        head.zero_grad()
        if batch_idx % 3 == 2:
            features.step()
            features.zero_grad()


# Merged over the processes, but for the median. That, and updates without a copy from before the
# step, are measured of the gathered layers.
STATISTICS = (
    "mean std min max ceiling_share median update_ratio update_norm weight_norm gradient_norm "
    "gradient_cosine snr snr_rows"
).split()
# These keep no second moment per element, so the monitor warns that there is no ratio of it.
WITHOUT_SECOND_MOMENT = (
    "laida sgd torch.optim.SGD torch.optim.Adamax torch.optim.ASGD torch.optim.Muon "
    "torch.optim.Adafactor torch.optim.Rprop pytorch_optimizer.Lion"
).split()
MODULES = {"one optimizer": Net, "two optimizers": TwoOptimizers}


def model_parallel(tensor_parallel_size=1):
    data_parallel_size = dist.get_world_size() // tensor_parallel_size
    return ModelParallelStrategy(data_parallel_size, tensor_parallel_size)


STRATEGIES = {
    "one": lambda: "auto",
    "ddp": lambda: DDPStrategy(find_unused_parameters=True),
    "fsdp2": model_parallel,
    "hybrid": model_parallel,
    "fsdp2 and tensor parallel": lambda: model_parallel(2),
    "tensor parallel": lambda: model_parallel(dist.get_world_size()),
}


def as_lightning_launches():
    """Tell Lightning that these processes are those it would have started."""
    os.environ |= {
        "LOCAL_RANK": str(dist.get_rank()),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(dist.get_world_size()),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29999",  # of no use, for they are connected
    }


def fit(
    folder,
    strategy,
    module,
    *callbacks,
    accelerator="cpu",
    ckpt_path=None,
    weights_only=None,
    **options,
):
    if strategy != "one":
        as_lightning_launches()
    trainer = Trainer(
        default_root_dir=folder,
        accelerator=accelerator,
        strategy=STRATEGIES[strategy](),
        devices=1 if strategy == "one" else dist.get_world_size(),
        logger=TensorBoardLogger(folder, name="", version="run"),
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, "max_epochs": 1, "log_every_n_steps": 2, **options},
    )
    trainer.fit(module, ckpt_path=ckpt_path, weights_only=weights_only)
    return trainer


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "placements") else tensor


def weights(folder, strategy, name, kind="one optimizer", monitor=True, **options):
    """Train, and give the whole weights that this process sees."""
    module = MODULES[kind](name, lr=0.01)
    module.hybrid = strategy == "hybrid"
    statistics = [
        s
        for s in STATISTICS
        if (name != "adam" or s != "ceiling_share")
        and (name not in WITHOUT_SECOND_MOMENT or not s.startswith("snr"))
    ]
    monitors = [StepsizeMonitor(["*"], statistics=statistics)] if monitor else []
    fit(folder, strategy, module, *monitors, **options)
    return {key: whole(param.detach()).cpu() for key, param in module.named_parameters()}


def log_at_epochs_ends(folder, strategy):
    """Train for two epochs, of which the monitor logs the ends."""
    monitor = StepsizeMonitor(["*"], logging_interval="epoch", statistics=STATISTICS)
    fit(folder, strategy, Net("aida", lr=0.01), monitor, max_epochs=2)


def weights_with_each(folder, strategy, trainers):
    """Train once with the options of each Trainer, and give the weights of each run."""
    return [
        weights(f"{folder}/{index}", strategy, "aida", monitor=False, **options)
        for index, options in enumerate(trainers)
    ]


class KillRankOne(Callback):
    """End this process as a machine that fails would, at a batch of the second epoch."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 7 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def run_of_three_epochs(folder, strategy, name, kill=False, resume=False):
    """Train with a checkpoint an epoch, which a run that resumes goes on from."""
    module = Net(name, lr=0.01)
    # torch's distributed checkpoints want state of every layer that is trained.
    module.unused.requires_grad_(False)
    checkpoints = ModelCheckpoint(
        f"{folder}/checkpoints", save_last=True, save_on_train_epoch_end=True
    )
    fit(
        folder,
        strategy,
        module,
        StepsizeMonitor(["*"], every_n_steps=1),
        checkpoints,
        *([KillRankOne()] if kill else []),
        ckpt_path="last" if resume else None,
        weights_only=True,
        max_epochs=3,
        enable_checkpointing=True,
        log_every_n_steps=1,
    )
    return {key: whole(param.detach()).clone() for key, param in module.named_parameters()}


class BuiltTooEarly(Net):
    """Its optimizer is over the layers from before they were sharded, as LightningCLI builds it."""

    def configure_model(self):
        self.early = build_optimizer(self.name, self, **self.options)
        super().configure_model()

    def configure_optimizers(self):
        return self.early


def error_of_an_optimizer_built_too_early(folder):
    try:
        fit(folder, "fsdp2", BuiltTooEarly("aida"), StepsizeMonitor())
    except MisconfigurationException as error:
        return str(error)


def collectives_of_a_run(folder, strategy, name, statistics, monitored):
    """Count the collectives of three steps, whose last batches are of different sizes."""
    module = Net(name)
    inputs = torch.randn(11 - dist.get_rank(), 4)
    module.train_dataloader = lambda: DataLoader(TensorDataset(inputs), batch_size=4)
    with Collectives() as collectives:
        monitor = StepsizeMonitor(["*"], 1, statistics=statistics)
        fit(f"{folder}/{monitored:d}", strategy, module, *[monitor] * monitored)
    return collectives.sizes


def epochs_from_a_checkpoint(folder, strategy, epochs, weights_only=True):
    """Train to the end of an epoch, from the last checkpoint if there is one."""
    module = Net("aida", lr=0.01)
    module.unused.requires_grad_(False)
    # By strategy, for Lightning's processes race to remove a file where there is to be a folder.
    checkpoints = Path(folder, strategy)
    last = next(Path(folder).glob("*/last.ckpt"), None)
    fit(
        folder,
        strategy,
        module,
        ModelCheckpoint(checkpoints, save_last=True, save_on_train_epoch_end=True),
        ckpt_path=last,
        weights_only=weights_only,
        max_epochs=epochs,
        enable_checkpointing=True,
    )
    return {key: whole(param.detach()).clone() for key, param in module.named_parameters()}


class InFloat64(Callback):
    """By tag and step: each statistic in float64, from whole weights before and after and state."""

    def __init__(self):
        self.at = {}

    def on_train_batch_start(self, trainer, module, *args):
        self.before = {n: whole(p.detach()).double() for n, p in module.named_parameters()}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        params = (p for p in module.parameters() if p.grad is not None)
        self.gradients = {p: whole(p.grad).double().clone() for p in params}

    def on_train_batch_end(self, trainer, module, *args):
        (optimizer,) = trainer.optimizers
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        for name, param in module.named_parameters():
            if param in groups:
                numbers = self.of(optimizer, groups[param], param, self.before[name])
                for statistic, number in numbers.items():
                    self.at.setdefault(f"{statistic}/{name}", {})[step] = number.item()

    def of(self, optimizer, group, param, before):
        state = {
            key: whole(value).double() if isinstance(value, torch.Tensor) else value
            for key, value in optimizer.state[param].items()
        }
        after, g = whole(param.detach()).double(), self.gradients[param]
        numbers = {
            "update_norm": (after - before).norm(),
            "update_ratio": (after - before).norm() / before.norm(),
            "weight_norm": after.norm(),
            "gradient_norm": g.norm(),
        }
        if (m := momentum(optimizer, group, state)) is not None:
            numbers["gradient_cosine"] = (m * g).sum() / (m.norm() * g.norm())
        names = ("max_exp_avg_sq", "exp_avg_sq", "exp_avg_var", "square_avg", "sum")
        if v := [state[name] for name in names if name in state]:
            numbers["snr"] = v[0].mean() ** 2 / v[0].var(correction=0)
            if v[0].ndim > 1:
                of_rows = v[0].mean(1) ** 2 / v[0].var(1, correction=0)
                numbers["snr_rows"] = of_rows.mean()
        if has_stepsize(optimizer):
            s = stepsize(optimizer, group, state)
            numbers |= {
                "stepsize_mean": s.mean(), "stepsize_std": s.std(correction=0),
                "stepsize_min": s.min(), "stepsize_max": s.max(),
            }  # fmt: skip
        return numbers


def any_optimizer(folder, strategy, path, options):
    """Train ten steps with an optimizer, and give what the monitor is to have logged of each."""
    module, expected = Net(), InFloat64()
    optimizer_class = resolve_name(path)
    matrices = path == "torch.optim.Muon"  # which takes nothing else
    module.unused.requires_grad_(False)

    def configure_optimizers():
        params = [
            p for p in module.parameters() if p.requires_grad and (p.ndim > 1 or not matrices)
        ]
        optimizer = optimizer_class(params, **options)
        getattr(optimizer, "train", lambda: None)()  # of those that are free of a schedule
        return optimizer

    module.configure_optimizers = configure_optimizers
    statistics = [
        s
        for s in STATISTICS
        if s not in ("ceiling_share", "median")
        and (path not in WITHOUT_SECOND_MOMENT or not s.startswith("snr"))
    ]
    monitor = StepsizeMonitor(["*"], 1, statistics=statistics, custom_scalars=False, health=False)
    fit(folder, strategy, module, monitor, expected, max_steps=10)
    return expected.at
