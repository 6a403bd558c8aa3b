"""What the processes of the distributed tests run: optimizers over DTensors of many layouts."""

import reference
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aida_lightning import optim

MEMBERS = sorted(reference.MEMBERS)
KERNELS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
# Uneven shards, empty ones (fewer rows than processes), matrices, a vector, one number.
SHAPES = [(8, 6), (5, 7), (1, 4), (3, 2, 4), (9,), (1,)]
OPTIONS = [("Aida", {"k": 1}), ("Aida", {"k": 3}), ("LAida", {"k": 1}), ("LAida", {"k": 3})]
CASES = [(name, {}) for name in MEMBERS] + OPTIONS
STEPS = 20


def meshes(size):
    """Layouts by name: a mesh, and the placements of a tensor of so many dimensions."""
    one = init_device_mesh("cpu", (size,), mesh_dim_names=("shard",))
    layouts = {
        "fully sharded": (one, lambda ndim: [Shard(0)]),
        "by the last dimension": (one, lambda ndim: [Shard(ndim - 1)]),
        "replicated": (one, lambda ndim: [Replicate()]),
    }
    if size == 4:
        two = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
        unnamed = init_device_mesh("cpu", (2, 2))
        layouts |= {
            "hybrid": (two, lambda ndim: [Replicate(), Shard(0)]),
            "sharded twice": (two, lambda ndim: [Shard(0), Shard(ndim - 1)]),
            "some dimensions": (
                two,
                lambda ndim: [Shard(0), Shard(1) if ndim > 1 else Replicate()],
            ),
            "unnamed mesh": (unnamed, lambda ndim: [Shard(0), Replicate()]),
        }
    return layouts


def problem(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    start, common, *noise = (
        [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
        for _ in range(2 + STEPS)
    )
    return start, [[c + n for c, n in zip(common, step, strict=True)] for step in noise]


def optimizer_of(name, params, options, kernel):
    return getattr(optim, name)(params, weight_decay=0.1, **options, **KERNELS[kernel])


def train(optimizer, params, gradients):
    for of_step in gradients:
        for param, gradient in zip(params, of_step, strict=True):
            param.grad = gradient
        optimizer.step()


def largest_differences(kernel, dtype):
    """Train on one process and on all; give the largest difference of each case and layout."""
    start, gradients = problem(dtype)
    alone = []
    for name, options in CASES:
        params = [nn.Parameter(x.clone()) for x in start]
        train(optimizer_of(name, params, options, kernel), params, gradients)
        alone.append([param.detach() for param in params])
    differences = {}
    for layout, (mesh, placements) in meshes(dist.get_world_size()).items():
        # Once for all cases, for it communicates.
        parts, *of_steps = (
            [distribute_tensor(x, mesh, placements(x.ndim)) for x in tensors]
            for tensors in (start, *gradients)
        )
        for (name, options), expected in zip(CASES, alone, strict=True):
            params = [nn.Parameter(x.clone()) for x in parts]
            train(optimizer_of(name, params, options, kernel), params, of_steps)
            differences[layout, name, options.get("k")] = max(
                (a - b.full_tensor()).abs().max().item()
                for a, b in zip(expected, params, strict=True)
            )
    return differences


class Collectives(TorchDispatchMode):
    """Count collectives and the bytes that a process gives to each."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            tensors = args["allgather" in func.__name__]  # which names the output first
            tensors = tensors if isinstance(tensors, list) else [tensors]
            if isinstance(tensors[0], torch.Tensor):
                self.sizes.append(sum(t.numel() * t.element_size() for t in tensors))
        return func(*args, **(kwargs or {}))


def collectives_of_a_step(name, layout, groups=1):
    """Give the bytes of each collective of one step, the second."""
    mesh, placements = meshes(dist.get_world_size())[layout]
    start, gradients = problem()
    spread = lambda x: distribute_tensor(x, mesh, placements(x.ndim))  # noqa: E731
    params = [nn.Parameter(spread(x)) for x in start]
    optimizer = getattr(optim, name)([{"params": params[i::groups]} for i in range(groups)])
    train(optimizer, params, [[spread(g) for g in gradients[0]]])
    for param, gradient in zip(params, gradients[1], strict=True):
        param.grad = spread(gradient)
    with Collectives() as collectives:
        optimizer.step()
    return collectives.sizes


def difference_of_stepsizes(name):
    """Ask for the stepsizes of shared layers and of whole ones; give the largest difference."""
    mesh, placements = meshes(dist.get_world_size())["fully sharded"]
    start, gradients = problem(torch.float64)
    spread = lambda x: distribute_tensor(x, mesh, placements(x.ndim))  # noqa: E731
    alone = [nn.Parameter(x.clone()) for x in start]
    shared = [nn.Parameter(spread(x)) for x in start]
    optimizers = [getattr(optim, name)(params) for params in (alone, shared)]
    train(optimizers[0], alone, gradients[:2])
    train(optimizers[1], shared, [[spread(g) for g in of_step] for of_step in gradients[:2]])
    pairs = zip(alone, shared, strict=True)
    return max(
        (optimizers[0].stepsize(a) / optimizers[1].stepsize(b).full_tensor() - 1).abs().max().item()
        for a, b in pairs
    )


def step_without_gradients_on_rank_one(name, **options):
    """Take a step where only rank 0 has gradients; give whether each local part moved."""
    mesh, placements = meshes(dist.get_world_size())["fully sharded"]
    start, gradients = problem()
    params = [nn.Parameter(distribute_tensor(x, mesh, placements(x.ndim))) for x in start]
    before = [param.to_local().detach().clone() for param in params]
    grads = [distribute_tensor(g, mesh, placements(g.ndim)) for g in gradients[0]]
    if dist.get_rank() == 0:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
    getattr(optim, name)(params, **options).step()
    return [not torch.equal(x, p.to_local()) for x, p in zip(before, params, strict=True)]


def layers_without_gradient_anywhere():
    """Train with the first layer unused and plain tensors between the shared ones."""
    mesh, placements = meshes(dist.get_world_size())["fully sharded"]
    start, gradients = problem(torch.float64)
    results = []
    for shared in (False, True):

        def spread(index, x, shared=shared):
            is_shared = shared and index % 2 == 0
            return distribute_tensor(x, mesh, placements(x.ndim)) if is_shared else x.clone()

        params = [nn.Parameter(spread(*pair)) for pair in enumerate(start)]
        optimizer = optim.Aida(params, lr=0.01)
        for of_step in gradients:
            for index, param in list(enumerate(params))[1:]:
                param.grad = spread(index, of_step[index])
            optimizer.step()
        assert params[0] not in optimizer.state
        results.append([p.full_tensor() if hasattr(p, "placements") else p for p in params])
    return max((a - b).abs().max().item() for a, b in zip(*results, strict=True))


def error_of_partial_placements():
    mesh, _ = meshes(dist.get_world_size())["fully sharded"]
    param = nn.Parameter(DTensor.from_local(torch.ones(2, 2), mesh, [Partial()]))
    param.grad = DTensor.from_local(torch.ones(2, 2), mesh, [Partial()])
    try:
        optim.Aida([param]).step()
    except RuntimeError as error:
        return str(error)


def gradients_laid_out_otherwise():
    """Step with partial sums as the gradient of a replicated layer, as tensor parallel has it."""
    mesh, _ = meshes(dist.get_world_size())["fully sharded"]
    start, gradients = (
        torch.ones(4, 4),
        torch.randn(4, 4, generator=torch.Generator().manual_seed(0)),
    )
    alone = nn.Parameter(start.clone())
    alone.grad = gradients * dist.get_world_size()
    shared = nn.Parameter(distribute_tensor(start, mesh, [Replicate()]))
    shared.grad = DTensor.from_local(gradients, mesh, [Partial()])
    for param in (alone, shared):
        optim.Aida([param]).step()
    return (alone - shared.to_local()).abs().max().item()


def zero_redundancy(name):
    """Train under ZeroRedundancyOptimizer, which gives each process whole layers."""
    start, gradients = problem(torch.float64)
    alone, spread = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    train(getattr(optim, name)(alone, lr=0.01), alone, gradients)
    zero = ZeroRedundancyOptimizer(spread, optimizer_class=getattr(optim, name), lr=0.01)
    train(zero, spread, gradients)
    return max((a - b).abs().max().item() for a, b in zip(alone, spread, strict=True))
