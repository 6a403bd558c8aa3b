"""The Aida family of layerwise-adaptive optimizers for PyTorch Lightning."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from aida_lightning.diagnostics import stepsize
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
    Yogi,
)
from aida_lightning.registry import build_optimizer, list_optimizers

if TYPE_CHECKING:
    from aida_lightning.callbacks import StepsizeMonitor, UseOptimizer
    from aida_lightning.checkpoint_io import DurableCheckpointIO

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
    "StepsizeMonitor",
    "UseOptimizer",
    "Yogi",
    "build_optimizer",
    "list_optimizers",
    "stepsize",
]


def __getattr__(name: str) -> Any:
    # They need Lightning, whose import takes seconds; the optimizers need none of it.
    if name in ("StepsizeMonitor", "UseOptimizer"):
        from aida_lightning import callbacks

        return getattr(callbacks, name)
    if name == "DurableCheckpointIO":
        from aida_lightning import checkpoint_io

        return checkpoint_io.DurableCheckpointIO
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
