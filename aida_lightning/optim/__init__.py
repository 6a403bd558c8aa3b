"""The optimizers: the nine members of the family and three baselines of the paper's Table I."""

from aida_lightning.optim.adabelief import (
    AdaBelief,
    AdaBeliefL,
    AdamL,
    AdamPlus,
    LAdaBelief,
    LAdam,
)
from aida_lightning.optim.aida import Aida, AidaGrad, LAida
from aida_lightning.optim.fromage import Fromage
from aida_lightning.optim.layerwise import LayerwiseOptimizer
from aida_lightning.optim.msvag import MSVAG
from aida_lightning.optim.yogi import Yogi

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
    "Yogi",
]
