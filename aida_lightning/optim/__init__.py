"""The optimizers: the ten members of the family and three baselines of the paper's Table I."""

from aida_lightning.optim.aida import (
    AdaBelief,
    AdaBeliefL,
    AdamL,
    AdamPlus,
    Aida,
    AidaGrad,
    LAdaBelief,
    LAdam,
    LAida,
    SETAdam,
)
from aida_lightning.optim.baselines import MSVAG, Fromage, Yogi
from aida_lightning.optim.layerwise import LayerwiseOptimizer

__all__ = [
    "MSVAG",
    "AdaBelief",
    "AdaBeliefL",
    "AdamL",
    "AdamPlus",
    "Aida",
    "AidaGrad",
    "Fromage",
    "LAdaBelief",
    "LAdam",
    "LAida",
    "LayerwiseOptimizer",
    "SETAdam",
    "Yogi",
]
