"""What the processes of the distributed tests run: optimizers over parts of DTensors."""

import itertools
import math

import sharding
import torch
import torch.distributed as dist
from sharding import MEMBERS, Collectives, meshes, problem, train
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from aida_lightning import build_optimizer, diagnostics, measure_step, optim
from aida_lightning.measuring._statistics import STATISTICS

# For the rows 8, 5, 1, 3 and 9 of the problem's tensors: some shards cut parts, some do not.
CUT = {8: 4, 5: (2, 3), 1: 1, 3: 3, 9: 3}
PARTITIONS = {
    "rows": "rows",
    "parts": lambda param: CUT[param.shape[0]],
    "mixed": lambda param: {8: "rows", 5: None, 9: "elements"}.get(param.shape[0], 1),
}


def partition_of(key, name):
    if key == "mixed" and name == "SETAdam":
        return lambda param: {8: "rows", 5: None}.get(param.shape[0], 1)
    return PARTITIONS[key]


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "placements") else tensor


def readings(optimizer, params):
    """Give the weights, statistics, stepsizes and last updates of all layers, whole."""
    (group,) = optimizer.param_groups
    read = []
    for param in params:
        state = optimizer.state[param]
        s = optimizer.stepsize(param)
        update = diagnostics.last_update(optimizer, group, state, param)
        read.append((param.detach(), state["exp_avg_sq"], s, update))
    return [tuple(whole(tensor) for tensor in of_layer) for of_layer in read]


def weights(optimizer, params):
    return [(whole(param.detach()),) for param in params]


# Gathering takes most of the time, so only some of the members and layouts are read in full.
READ = ("LAida", "AdamL", "SETAdam", "Aida")
READ_IN = ("fully sharded", "by the last dimension", "sharded twice")


def largest_differences(kernel, steps=3):
    """Train on one process and on all; give the largest difference of each case and layout."""
    start, gradients = problem(torch.float64)
    differences = {}
    for layout, (mesh, placements) in meshes(dist.get_world_size()).items():
        parts, *of_steps = (
            [distribute_tensor(x, mesh, placements(x.ndim)) for x in tensors]
            for tensors in (start, *gradients[:steps])
        )
        for key, name in itertools.product(PARTITIONS, MEMBERS):
            options = {"partition": partition_of(key, name), "weight_decay": 0.1, **kernel}
            read = readings if name in READ and layout in READ_IN else weights
            results = []
            for tensors, with_gradients in ((start, gradients[:steps]), (parts, of_steps)):
                params = [nn.Parameter(x.clone()) for x in tensors]
                optimizer = getattr(optim, name)(params, **options)
                train(optimizer, params, with_gradients)
                results.append(read(optimizer, params))
            for layer, there in zip(*results, strict=True):
                for what, (a, b) in enumerate(zip(layer, there, strict=True)):
                    case = (layout, name, key, "weights statistics stepsizes update".split()[what])
                    assert a.shape == b.shape, (case, a.shape, b.shape)
                    error = (a - b).norm() / max(a.norm(), 1e-12)
                    differences[case] = max(differences.get(case, 0.0), error.item())
    return differences


def collectives_of_a_step(name, partition, layout="fully sharded"):
    """Give the bytes of each collective of the second step, and the local statistics' shapes."""
    mesh, placements = meshes(dist.get_world_size())[layout]
    start, gradients = problem()
    spread = lambda x: distribute_tensor(x, mesh, placements(x.ndim))  # noqa: E731
    params = [nn.Parameter(spread(x)) for x in start]
    partition = partition_of(partition, name) if isinstance(partition, str) else partition
    optimizer = getattr(optim, name)(params, partition=partition)
    train(optimizer, params, [[spread(g) for g in gradients[0]]])
    for param, gradient in zip(params, gradients[1], strict=True):
        param.grad = spread(gradient)
    with Collectives() as collectives:
        optimizer.step()
    local = lambda v: v.to_local() if hasattr(v, "placements") else v  # noqa: E731
    statistics = [local(optimizer.state[p]["exp_avg_sq"]).numel() for p in params]
    return collectives.sizes, statistics


def step_without_gradients_on_rank_one(name):
    return sharding.step_without_gradients_on_rank_one(name, partition=PARTITIONS["parts"])


ROWS = {"packed": 14, "wide": 10, "few": 2, "even": 12}
PARTS = {"packed.*": {"q": 3, "k": 1, "v": 10}, "wide.*": 5, "few.*": "rows"}
MEASURED = {
    "rows": {"partition": "rows"},
    "halves": {"partition": 2},
    "callable": {"partition": lambda param: {14: "rows", 10: (3, 7)}.get(param.shape[0], 1)},
    "groups": {"groups": {"packed.*": {"partition": [3, 1, 10]}, "even.*": {"partition": 4}}},
}


def measured(shard, name, options, parts):
    """Give every statistic of the second step over partitioned layers."""
    torch.manual_seed(0)
    module = nn.ModuleDict({n: nn.Linear(6, rows, bias=False) for n, rows in ROWS.items()}).double()
    if shard:
        for layer in module.values():
            fully_shard(layer)
    optimizer = build_optimizer(name, module, lr=0.01, **options)
    for seed in range(2):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)).double()
        optimizer.zero_grad()
        sum(layer(x).sin().square().sum() for layer in module.values()).backward()
        if seed == 0:
            optimizer.step()
    with measure_step(optimizer, module, [*STATISTICS, "median"], parts=parts) as numbers:
        optimizer.step()
    return dict(numbers)


def differing_statistics(name):
    """List the statistics that differ between one process and several, by options."""
    found = []
    for (key, options), parts in itertools.product(MEASURED.items(), (None, PARTS)):
        alone, shared = (measured(shard, name, options, parts) for shard in (False, True))
        assert len(alone) > 10
        assert alone.keys() == shared.keys(), (key, alone.keys() ^ shared.keys())
        found += [
            (key, tag, number, shared[tag])
            for tag, number in alone.items()
            if not math.isclose(number, shared[tag], rel_tol=1e-6, abs_tol=1e-9)
        ]
    return found
