"""What the processes of the distributed tests run with parameter groups."""

import warnings

import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from sharded_training import Net, fit, whole

from aida_lightning.registry import get_optimizer_class

OPTIONS = {"lr": 0.01, "weight_decay": 0.1}
A = {"*.bias": {"weight_decay": 0.0}, "features.*": {"lr": 1e-3}}
B = {"features.*": {"lr": 1e-3}, "head.bias": {"lr": 0.5}}


class ByHand(Net):
    """Groups that are made by hand, equal to ``A``."""

    def configure_optimizers(self):
        layers = dict(self.named_parameters())
        biases = [param for name, param in layers.items() if name.endswith("bias")]
        rest = [param for name, param in layers.items() if name.endswith("weight")]
        groups = [
            {"params": [param for param in rest if param is not self.features.weight]},
            {"params": biases, "weight_decay": 0.0},
            {"params": [self.features.weight], "lr": 1e-3},
        ]
        return get_optimizer_class(self.name)(groups, **OPTIONS)


def weights(folder, strategy, names):
    """Give the whole weights after an epoch with patterns, and with groups made by hand."""
    return {
        name: [
            {
                key: whole(param.detach()).clone()
                for key, param in trained(f"{folder}/{name}/{i}", strategy, module).items()
            }
            for i, module in enumerate((Net(name, groups=A, **OPTIONS), ByHand(name, **OPTIONS)))
        ]
        for name in names
    }


def trained(folder, strategy, module):
    fit(folder, strategy, module)
    return dict(module.named_parameters())


def resumed(folder, strategy, groups, epochs):
    """Train to an epoch's end from the last checkpoint, and give the groups and the warnings."""
    module = Net("aida", groups=groups, **OPTIONS)
    module.unused.requires_grad_(False)
    checkpoints = ModelCheckpoint(f"{folder}/saved", save_last=True, save_on_train_epoch_end=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer = fit(
            folder,
            strategy,
            module,
            checkpoints,
            ckpt_path="last" if epochs > 1 else None,
            weights_only=True,
            max_epochs=epochs,
            enable_checkpointing=True,
        )
    dist.barrier()
    (optimizer,) = trainer.optimizers
    trained_layers = {n: p for n, p in module.named_parameters() if p.requires_grad}
    steps = {name: float(optimizer.state[param]["step"]) for name, param in trained_layers.items()}
    keys = ("name", "param_names", "lr", "weight_decay")
    options = [tuple(group[key] for key in keys) for group in optimizer.param_groups]
    return options, steps, [str(w.message) for w in told if "parameter groups" in str(w.message)]
