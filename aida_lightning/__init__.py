"""The Aida family of layerwise-adaptive optimizers for PyTorch Lightning."""

from importlib import import_module
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
    from aida_lightning.measuring import measure_step

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
    "measure_step",
    "stepsize",
]


# Most of them need Lightning, whose import takes seconds; the optimizers need none of it.
_LATER = {
    "DurableCheckpointIO": "checkpoint_io",
    "StepsizeMonitor": "callbacks",
    "UseOptimizer": "callbacks",
    "measure_step": "measuring",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
