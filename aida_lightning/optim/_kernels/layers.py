"""The layers that a kernel is given: lists with one tensor per layer, or per several of them.

A tensor may hold several layers, its parts: runs of slices of dimension 0, one after the other. The
kernels whose sweeps go by addresses take such a tensor whole, and have a row per part in their
tables; for the others it is split into views.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Parts(NamedTuple):
    """How a tensor is cut. A tuple has a number per part, and an int is that of every part."""

    number: int
    rows: int | tuple[int, ...]  # slices of dimension 0 that this process holds
    numels: int | tuple[int, ...]  # elements of the whole parts

    def cut(self, tensor: Tensor) -> Sequence[Tensor]:
        """View each part of a tensor."""
        rows = _each(self.rows, self.number)
        if not torch.is_grad_enabled():
            return torch.split(tensor, rows) if rows else ()
        # Autograd refuses changes of views that were made by one function.
        ends = torch.tensor(rows, device="cpu").cumsum(0).tolist()
        return [tensor[end - n : end] for n, end in zip(rows, ends, strict=True)]

    def select(self, tensor: Tensor) -> Sequence[Tensor]:
        """View each element of a vector with one element per part."""
        if not torch.is_grad_enabled():
            return tensor.unbind()
        return [tensor[index] for index in range(self.number)]


class Layers(NamedTuple):
    """The tensors of some layers; entry ``l`` of each list belongs to tensor ``l``."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    # The elements of the whole tensors, of which this process may hold but a part.
    numels: list[int]
    # What a kernel keeps from one sweep over these layers to the next.
    kept: dict[str, Any]
    # Empty where each tensor is one layer; None for a tensor that is.
    parts: Sequence[Parts | None] = ()

    def tensors(self) -> tuple[list[Tensor], ...]:
        """Return the lists that have a tensor per layer; torch.compile cuts no named tuple."""
        return self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, self.steps

    @property
    def counts(self) -> list[int]:
        """The number of layers in each tensor."""
        if not self.parts:
            return [1] * len(self.params)
        return [parts.number if parts else 1 for parts in self.parts]

    @property
    def number(self) -> int:
        """The number of layers."""
        return sum(self.counts) if self.parts else len(self.params)

    @property
    def layer_numels(self) -> list[int]:
        """The elements of each whole layer."""
        if not self.parts:
            return self.numels
        pairs = zip(self.parts, self.numels, strict=True)
        per_tensor = [_each(p.numels, p.number) if p else [numel] for p, numel in pairs]
        return [numel for numels in per_tensor for numel in numels]

    def mean(self, totals: Tensor, *, on_device: bool) -> Tensor:
        """Divide sums over whole layers, of shape ``(n,)``, by the layers' numbers of elements."""
        counts = [max(numel, 1) for numel in self.layer_numels]
        if on_device:  # At a graph's replay the memory of a copy's source would be another's.
            return torch.stack(torch._foreach_div(totals.unbind(), counts))
        divisors = torch.tensor(counts, dtype=totals.dtype, device="cpu")
        return totals / to_device(totals.device, divisors)

    def steps_of_layers(self) -> Tensor:
        """Stack the steps of the layers, of shape ``(n,)``."""
        if not self.parts:
            return torch.stack(self.steps)
        pairs = zip(self.steps, self.counts, strict=True)
        return torch.cat([step.reshape(1).expand(count) for step, count in pairs])

    def take(self, indices: Sequence[int]) -> "Layers":
        """Pick the tensors of these indices."""
        picked = ([column[index] for index in indices] for column in self.tensors())
        numels = [self.numels[index] for index in indices]
        parts = [self.parts[index] for index in indices] if self.parts else ()
        return Layers(*picked, numels=numels, kept={}, parts=parts)  # type: ignore[misc, arg-type]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Layers":
        """Replace every tensor by what the function makes of it."""
        mapped = ([function(tensor) for tensor in column] for column in self.tensors())
        return Layers(*mapped, numels=self.numels, kept={}, parts=self.parts)  # type: ignore[misc, arg-type]

    def split(self, *, averaged: bool) -> "Layers":
        """View every layer as a tensor of its own; ``averaged`` statistics are one number each."""
        if not any(self.parts):
            return self
        split = Layers([], [], [], [], [], self.layer_numels, {})
        for x, g, m, v, step, parts in zip(*self.tensors(), self.parts, strict=True):
            cut = parts.cut if parts else _whole
            select = parts.select if parts and averaged else cut
            views = cut(x), cut(g), cut(m), select(v), [step] * (parts.number if parts else 1)
            for column, of_tensor in zip(split.tensors(), views, strict=True):
                column += of_tensor
        return split

    def stack(self, *, averaged: bool) -> "Layers":
        """View every tensor as a matrix with a row per layer; ``averaged`` statistics are vectors.

        All tensors must be stackable.
        """

        def matrices(tensors: Sequence[Tensor]) -> list[Tensor]:
            pairs = zip(tensors, self.counts, strict=True)
            return [t.as_strided((n, t.numel() // n), (t.numel() // n, 1)) for t, n in pairs]

        vs = self.exp_avg_sqs if averaged else matrices(self.exp_avg_sqs)
        xs, gs, ms = (matrices(tensors) for tensors in (self.params, self.grads, self.exp_avgs))
        return Layers(xs, gs, ms, vs, self.steps, self.numels, {}, self.parts)

    @property
    def cut(self) -> "Cut":
        """Say how the tensors are cut into layers."""
        parts = tuple(self.parts) or (None,) * len(self.params)
        return Cut(parts, tuple(map(Tensor.numel, self.params)), tuple(self.numels))


class Cut(NamedTuple):
    """How some tensors are cut into layers, with an entry per tensor."""

    parts: tuple[Parts | None, ...]
    here: tuple[int, ...]  # elements that this process holds
    numels: tuple[int, ...]  # elements of the whole tensors

    def addresses(
        self,
        of_tensors: Sequence[Sequence[int]],
        dtypes: tuple[torch.dtype, ...],
        *,
        averaged: bool,
    ) -> Tensor:
        """List the addresses of every layer, for kernels that go by addresses.

        Args:
            of_tensors: addresses of the tensors, a sequence per list of ``Layers.tensors``.
            dtypes: that of the parameters, and that of the statistics.
            averaged: whether the statistic of a layer is one number.

        Returns:
            Tensor of int64 on the host, with a row per list and a column per layer.
        """
        addresses = torch.tensor(of_tensors, device="cpu")
        if not any(self.parts):
            return addresses
        plan = plan_of(self)
        return addresses.index_select(1, plan.owners) + _offsets(plan, dtypes, averaged)


@dataclass(frozen=True, eq=False)
class Plan:
    """Where the layers are in their tensors, as tensors of int64 on the host, of shape ``(n,)``."""

    owners: Tensor  # the index of the tensor that holds the layer
    indices: Tensor  # the layers of the tensor before the layer
    begins: Tensor  # the elements of the tensor before the layer
    here: Tensor  # the elements of the layer that are here
    whole: Tensor  # the elements of the whole layer


@lru_cache(maxsize=16)  # it is the same at every step
def plan_of(cut: Cut) -> Plan:
    """Find every layer of some tensors."""
    rows = [_each(p.rows, p.number) if p else [1] for p in cut.parts]
    sizes, begins = [], []
    for of_tensor, here in zip(rows, cut.here, strict=True):
        per_row = here // max(sum(of_tensor), 1)
        of_layers = torch.tensor(of_tensor, dtype=torch.int64, device="cpu") * per_row
        sizes.append(of_layers)
        begins.append(of_layers.cumsum(0) - of_layers)
    counts = torch.tensor([len(of_tensor) for of_tensor in rows], device="cpu")
    pairs = zip(cut.parts, cut.numels, strict=True)
    numels = [n for p, whole in pairs for n in (_each(p.numels, p.number) if p else [whole])]
    return Plan(
        owners=torch.arange(len(rows), device="cpu").repeat_interleave(counts),
        indices=torch.cat([torch.arange(len(of_tensor), device="cpu") for of_tensor in rows]),
        begins=torch.cat(begins),
        here=torch.cat(sizes),
        whole=torch.tensor(numels, device="cpu"),
    )


@lru_cache(maxsize=16)
def _offsets(plan: Plan, dtypes: tuple[torch.dtype, ...], averaged: bool) -> Tensor:
    """Return how far the addresses of the layers are from those of their tensors, in bytes."""
    vectors = plan.begins * dtypes[0].itemsize
    statistics = (plan.indices if averaged else plan.begins) * dtypes[1].itemsize
    return torch.stack((vectors, vectors, vectors, statistics, torch.zeros_like(vectors)))


def _each(number: int | tuple[int, ...], count: int) -> list[int]:
    return [number] * count if isinstance(number, int) else list(number)


def _whole(tensor: Tensor) -> Sequence[Tensor]:
    return [tensor]


def to_device(device: torch.device, host: Tensor) -> Tensor:
    """Copy to the device without a wait, which takes pinned memory."""
    if device.type == "cuda" and host.is_cpu:
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)
