"""What processes run that share packed layers: their parts, against those of whole layers."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from aida_lightning import build_optimizer, measure_step
from aida_lightning.measuring._statistics import STATISTICS

EVERY = [*STATISTICS, "median"]
# Uneven shards, one with fewer rows than processes, and parts within and across the shards.
ROWS = {"packed": 14, "wide": 10, "few": 2}
PARTS = {"packed.*": {"q": 3, "k": 1, "v": 10}, "wide.*": 5, "few.*": "rows"}


def modules():
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(6, n, bias=False) for name, n in ROWS.items()})


def step(module, name, statistics, parts):
    """Take two steps and return the second one's numbers, and how many collectives it took."""
    optimizer = build_optimizer(name, module, lr=0.01)
    for seed in range(2):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        sum(layer(x).sin().square().sum() for layer in module.values()).backward()
        if seed == 0:
            optimizer.step()
    communication = CommDebugMode()
    with (
        communication,
        measure_step(optimizer, module, statistics, parts=parts) as numbers,
    ):
        optimizer.step()
    return dict(numbers), communication.get_total_counts()


def in_shards(name, layout, statistics=EVERY):
    """Return the numbers of whole layers and of shared ones, and both counts of collectives."""
    whole, _ = step(modules(), name, statistics, PARTS)
    counts, shared = [], {}
    for parts in (None, PARTS):
        sharded = modules()
        if layout == "rows":
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        else:
            meshes = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
            mesh = meshes["data"]
            style = {"columns": RowwiseParallel, "strided": ColwiseParallel}[layout]
            plan = {
                layer: style(input_layouts=Replicate(), output_layouts=Replicate())
                for layer in ROWS
            }
            parallelize_module(sharded, meshes["tensor"], plan)
        for layer in sharded.values():
            fully_shard(layer, mesh=mesh)
        shared, count = step(sharded, name, statistics, parts)
        counts.append(count)
    return whole, shared, counts
