"""Lightning callbacks."""

from aida_lightning.callbacks.projection_recorder import ProjectionRecorder
from aida_lightning.callbacks.stepsize_monitor import StepsizeMonitor
from aida_lightning.callbacks.use_optimizer import UseOptimizer

__all__ = ["ProjectionRecorder", "StepsizeMonitor", "UseOptimizer"]
