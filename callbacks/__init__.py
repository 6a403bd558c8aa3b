"""Lightning callbacks."""

from aida_lightning.callbacks.stepsize_monitor import StepsizeMonitor

__all__ = ["StepsizeMonitor"]
