"""Steps of a kernel as the engine takes them, without the engine: for tests of one kernel."""

import torch
from torch import nn

from aida_lightning import optim
from aida_lightning.optim._kernels.dispatch import batches_of, update
from aida_lightning.optim._kernels.layers import Layers
from aida_lightning.optim._state import new_state


def build(name, start, **options):
    """Build an optimizer over copies of the tensors and start its state."""
    optimizer = getattr(optim, name)([nn.Parameter(x.clone()) for x in start], **options)
    for param in optimizer.param_groups[0]["params"]:
        capturable = options.get("capturable", False)
        optimizer.state[param] = new_state(param, optimizer.layer_mean, capturable=capturable)
    return optimizer


def layers_of(optimizer, gradients, numels=None):
    """Return a kernel's arguments; numels are needed where the tensors are parts of layers."""
    (group,) = optimizer.param_groups
    params = group["params"]
    states = [optimizer.state[param] for param in params]
    averages = ([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq", "step"))
    numels = numels or [param.numel() for param in params]
    return Layers(params, gradients, *averages, numels, {}), optimizer._rule(group)


@torch.no_grad()
def step(kernel, *parts):
    """Take a step of layers that lie in one part or, with their sums added up, in several."""
    for layers, _ in parts:
        torch._foreach_add_(layers.steps, 1)
    batches = [batch for part in parts for batch in batches_of(kernel, *part)]
    update(batches, parts[0][1], lambda _, sums, of_none: [_joined(sums, of_none)] * len(sums))


def _joined(sums, of_none):
    """Add sums over parts up; where those over no elements are infinite, find the least."""
    stacked = torch.stack(sums)
    return torch.where(torch.tensor(of_none).isinf(), stacked.amin(0), stacked.sum(0))
