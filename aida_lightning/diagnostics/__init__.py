"""What an optimizer's state says about its steps, and statistics of a layer's tensors."""

from aida_lightning.diagnostics.state import (
    effective_learning_rate,
    has_stepsize,
    last_update,
    momentum,
    stepsize,
    stepsize_ceiling,
    why_none,
)

__all__ = [
    "effective_learning_rate",
    "has_stepsize",
    "last_update",
    "momentum",
    "stepsize",
    "stepsize_ceiling",
    "why_none",
]
