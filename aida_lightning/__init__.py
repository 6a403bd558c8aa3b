"""The Aida family of layerwise-adaptive optimizers for PyTorch Lightning."""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aida_lightning.callbacks import StepsizeMonitor, UseOptimizer
    from aida_lightning.checkpoint_io import DurableCheckpointIO
    from aida_lightning.diagnostics import stepsize
    from aida_lightning.measuring import measure_step
    from aida_lightning.mixin import OptimizerMixin
    from aida_lightning.optim import (
        MSVAG,
        AdaBelief,
        AdaBeliefL,
        AdamL,
        AdamPlus,
        Aida,
        AidaGrad,
        Fromage,
        LAdaBelief,
        LAdam,
        LAida,
        SETAdam,
        Yogi,
    )
    from aida_lightning.registry import build_optimizer, list_optimizers

__version__ = _version("aida-lightning")

__all__ = [
    "MSVAG",
    "AdaBelief",
    "AdaBeliefL",
    "AdamL",
    "AdamPlus",
    "Aida",
    "AidaGrad",
    "DurableCheckpointIO",
    "Fromage",
    "LAdaBelief",
    "LAdam",
    "LAida",
    "OptimizerMixin",
    "SETAdam",
    "StepsizeMonitor",
    "UseOptimizer",
    "Yogi",
    "build_optimizer",
    "list_optimizers",
    "measure_step",
    "stepsize",
]


# The names are in these. All import torch, and the last two Lightning, each of which takes seconds:
# whoever asks for an optimizer waits for torch alone, and `aida-lightning --help` for neither.
_PARTS = ("optim", "registry", "mixin", "diagnostics", "measuring", "checkpoint_io", "callbacks")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"{__name__}.{name}")
    for part in _PARTS if name in __all__ else ():
        if hasattr(module := import_module(f"{__name__}.{part}"), name):
            return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
