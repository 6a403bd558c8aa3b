"""The devices that tests run on, and what is found out about a device: whether it is waited for."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])


@contextmanager
def no_waits(device):
    """Raise where the host waits for a GPU."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def counted_waits(device):
    """Yield a list that has, in the end, an entry for each time the host waited for a GPU."""
    waits = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    waits += [entry for entry in seen if "synchronizing CUDA operation" in str(entry.message)]


class Transfers(TorchDispatchMode):
    """Lists the operations that move numbers between the host and a GPU.

    Attributes:
        copies: all copies. A number on the host that goes along with a launch is none.
        waits: those that the host waits for. To read a number of a fake tensor is an error.
    """

    def __init__(self):
        super().__init__()
        self.waits, self.copies = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        is_copy = function._opname in ("_to_copy", "copy_", "_foreach_copy_")
        if is_copy and len({tensor.device.type for tensor in tensors}) > 1:
            self.copies.append(str(function))
            if not (kwargs or {}).get("non_blocking", args[2:3] == (True,)):
                self.waits.append(str(function))
        return result


@contextmanager
def fake_gpu(monkeypatch):
    """Have tensors only say that they are on a GPU; those on the host count as 5 where read."""
    if TORCH < (2, 11):
        pytest.skip("fake tensors of older torch ask for a driver of CUDA")

    def on_host(name, read):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda x: read(5) if x.device.type == "cpu" else original(x)
        )

    with monkeypatch.context() as monkeypatch, FakeTensorMode():
        for name, read in (("item", float), ("__float__", float), ("__int__", int)):
            on_host(name, read)
        # Not implemented for fake tensors; what it returns is on the host as well.
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        yield
