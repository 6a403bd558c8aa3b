"""What is measured of an optimizer's step, layer by layer, with a Trainer or without one."""

from aida_lightning.measuring._step import measure_step

__all__ = ["measure_step"]
