"""The measures of an optimizer's step, layer by layer, with or without a Trainer."""

from aida_lightning.measuring._step import measure_step

__all__ = ["measure_step"]
