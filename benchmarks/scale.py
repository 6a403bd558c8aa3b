"""Count the traffic of a step and the size of the state, for large models with sharded layers.

    python benchmarks/scale.py [--json scale.json]

Nothing of the models' size is allocated: the optimizers create their state on the meta device, and
the script counts it. The traffic of a step is measured on 8 gloo processes of this machine. They
hold as many layers as the model, each with a few elements, because the traffic does not depend on
the sizes of the layers.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aida_lightning import build_optimizer
from aida_lightning.optim._state import new_state
from aida_lightning.registry import get_optimizer_class

PROCESSES = 8
OPTIMIZERS = ["aida", "laida", "adabeliefl", "adabelief"]
RANKS = [8, 64, 1024]


def decoder(
    width: int, blocks: int, feed_forward: int, keys: int, tied: bool
) -> list[nn.Parameter]:
    """List the layers of a Llama-3-shaped decoder, on the meta device."""
    block = [
        *[(width, width), (keys, width), (keys, width), (width, width)],
        *[(feed_forward, width), (feed_forward, width), (width, feed_forward), (width,), (width,)],
    ]
    vocabulary = [(128_256, width)] * (1 if tied else 2)
    shapes = [*vocabulary, (width,), *(block * blocks)]
    return [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]


MODELS = {
    "1 B": lambda: decoder(2048, 16, 8192, 512, tied=True),
    "70 B": lambda: decoder(8192, 80, 28_672, 1024, tied=False),
}


class Collectives(TorchDispatchMode):
    """Record the bytes that this process gives to each collective."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.bytes.append(sum(tensor.nbytes for tensor in args[0]))
        return func(*args, **(kwargs or {}))


def state_bytes(params: list[nn.Parameter], optimizer: str, ranks: int) -> int:
    """Count the bytes of state on the rank that has the largest shards (along dimension 0)."""
    layer_mean = get_optimizer_class(optimizer).layer_mean  # type: ignore[attr-defined]
    total = 0
    for param in params:
        shard = torch.empty_like(param[: -(-param.shape[0] // ranks)])
        state = new_state(shard, layer_mean, capturable=False)
        total += sum(value.nbytes for value in state.values())
    return total


def measure(rank: int, store: str, layers: int, results: Any) -> None:
    """Take two steps on this rank and put down what the second sent."""
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for optimizer_name in OPTIMIZERS:
        whole = torch.ones(PROCESSES, 2)
        params = [nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)])) for _ in range(layers)]
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer = build_optimizer(optimizer_name, params)
        optimizer.step()
        with Collectives() as collectives:
            optimizer.step()
        if rank == 0:
            results[optimizer_name] = collectives.bytes
    dist.destroy_process_group()


def measured(layers: int) -> dict[str, list[int]]:
    """Give the bytes of each collective of a step, by optimizer, from a run of 8 processes."""
    with tempfile.TemporaryDirectory() as folder, torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        arguments = (f"file://{folder}/store", layers, results)
        torch.multiprocessing.spawn(measure, arguments, nprocs=PROCESSES)
        return dict(results)


def rows() -> Iterator[dict[str, Any]]:
    """Give one row a model and optimizer."""
    for model, build in MODELS.items():
        params = build()
        sent = measured(len(params))
        for optimizer in OPTIMIZERS:
            yield {
                "model": model,
                "parameters": sum(param.numel() for param in params),
                "layers": len(params),
                "optimizer": optimizer,
                "all-reduces": len(sent[optimizer]),
                "bytes each": max(sent[optimizer], default=0),
                "state": {ranks: state_bytes(params, optimizer, ranks) for ranks in RANKS},
            }


def main() -> None:
    """Count, print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="a file to write the counts to, in bytes")
    arguments = parser.parse_args()
    table = list(rows())
    heads = "  ".join(f"state on {ranks:5} ranks" for ranks in RANKS)
    print(f"{'model':6}{'layers':>7}  {'optimizer':12}{'all-reduces of bytes':>22}  {heads}")
    for row in table:
        states = "  ".join(f"{size / 2**30:15.3f} GiB" for size in row["state"].values())
        sends = f"{row['all-reduces']} x {row['bytes each']:,}"
        print(f"{row['model']:6}{row['layers']:7}  {row['optimizer']:12}{sends:>22}  {states}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(table, file, indent=1)


if __name__ == "__main__":
    main()
