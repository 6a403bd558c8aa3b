"""What the processes of the distributed tests run to save and load distributed checkpoints."""

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from aida_lightning import optim

STEPS = 3
# Of layers with 7 and 3 rows; shards cut the parts of given sizes.
PARTITIONS = {"rows": "rows", "sizes": lambda param: {7: (3, 4), 3: (1, 2)}[param.shape[0]]}
CUT = [f"{name} {partition}" for name in ("LAida", "AdamL") for partition in PARTITIONS]


def build(strategy, name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    if strategy == "fsdp2":
        for layer in (model[0], model[2]):
            fully_shard(layer)
        fully_shard(model)
    elif strategy == "ddp":
        model = DistributedDataParallel(model)
    member, _, partition = name.partition(" ")
    options = {"partition": PARTITIONS[partition]} if partition else {}
    return model, getattr(optim, member)(model.parameters(), lr=0.01, **options)


def train(model, optimizer, first):
    for step in range(first, first + STEPS):
        inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(step)).double()
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def whole_weights(model):
    model = getattr(model, "module", model)
    return [
        (p.full_tensor() if hasattr(p, "placements") else p).detach() for p in model.parameters()
    ]


def unbroken(name, parts):
    model, optimizer = build("one", name)
    for part in range(parts):
        train(model, optimizer, part * STEPS)
    return whole_weights(model)


def go_on(folder, strategy, names, part):
    """Load what the part before has saved, train, save; give each member's whole weights."""
    weights = {}
    for name in names:
        model, optimizer = build(strategy, name)
        if part:
            weights_state, optimizer_state = get_state_dict(model, optimizer)
            state = {"model": weights_state, "optimizer": optimizer_state}
            dcp.load(state, checkpoint_id=f"{folder}/{name}-{part - 1}")
            set_state_dict(
                model,
                optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
            )
        train(model, optimizer, part * STEPS)
        weights_state, optimizer_state = get_state_dict(model, optimizer)
        state = {"model": weights_state, "optimizer": optimizer_state}
        dcp.save(state, checkpoint_id=f"{folder}/{name}-{part}")
        weights[name] = whole_weights(model)
    if dist.is_initialized():
        dist.barrier()
    return weights
