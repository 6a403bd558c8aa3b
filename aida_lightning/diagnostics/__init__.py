"""What an optimizer's state reveals about its steps, and statistics of a layer's tensors."""

from aida_lightning.diagnostics import family, foreign, torch_optimizers  # noqa: F401  # to register them
from aida_lightning.diagnostics.rates import effective_learning_rate
from aida_lightning.diagnostics.state import (
    NoStepsize,
    has_stepsize,
    last_update,
    momentum,
    second_moment,
    stepsize,
    stepsize_ceiling,
    why_none,
)

__all__ = [
    "NoStepsize",
    "effective_learning_rate",
    "has_stepsize",
    "last_update",
    "momentum",
    "second_moment",
    "stepsize",
    "stepsize_ceiling",
    "why_none",
]
