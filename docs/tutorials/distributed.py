"""Shard a network over processes, and see that it trains as it does in one.

Run: torchrun --nproc-per-node 2 docs/tutorials/distributed.py
"""

import copy
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from aida_lightning import build_optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """Take 10 steps on the same examples."""
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def difference(sharded: nn.Module, whole: nn.Module) -> float:
    """Give the largest difference of any parameter."""
    pairs = zip(sharded.parameters(), whole.parameters(), strict=True)
    return max((p.full_tensor() - q).abs().max().item() for p, q in pairs)


def main() -> None:
    """Train the same network alone and sharded, then load the shards as a whole."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same network and examples in every process
    x = torch.randn(8 * size, 6)
    y = x.sum(1, keepdim=True).sin()
    alone = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    sharded = copy.deepcopy(alone)

    optimizer = build_optimizer("aida", alone, lr=1e-2)
    train(alone, optimizer, x, y)

    fully_shard(sharded, mesh=init_device_mesh("cpu", (size,)))
    # After it is sharded, for the optimizer has to have the parameters that there are then.
    shards = build_optimizer("aida", sharded, lr=1e-2)
    train(sharded, shards, x[rank::size], y[rank::size])  # each process has a part of the batch
    gap = difference(sharded, alone)

    # A checkpoint of shards is loaded by any number of processes, here by each as a whole.
    folder = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(folder)
    weights, state = get_state_dict(sharded, shards)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder[0])

    loaded = copy.deepcopy(alone)
    with torch.no_grad():
        for param in loaded.parameters():
            param.zero_()
    again = build_optimizer("aida", loaded, lr=1e-2)
    weights, state = get_state_dict(loaded, again)
    content = {"model": weights, "optimizer": state}
    dcp.load(content, checkpoint_id=folder[0])
    set_state_dict(
        loaded, again, model_state_dict=content["model"], optim_state_dict=content["optimizer"]
    )
    reloaded = difference(sharded, loaded)
    train(loaded, again, x, y)
    train(sharded, shards, x[rank::size], y[rank::size])
    after = difference(sharded, loaded)

    if rank == 0:
        print(f"after 10 steps, sharded over {size} against one process: {gap:.1e}")
        print(f"the shards, loaded as a whole: {reloaded:.1e}; 10 steps later: {after:.1e}")
    assert gap < 1e-5
    assert reloaded == 0
    assert after < 1e-5
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
