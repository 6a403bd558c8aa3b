"""What is known of torch's own optimizers."""

from torch import optim

from aida_lightning.diagnostics import formulas, rates
from aida_lightning.diagnostics.adapter import Adapter

ADAM = Adapter(formulas.adam)
ONE_RATE = "one learning rate moves all elements of a layer"
ORTHOGONAL = "its update is orthogonalized"

ADAPTERS = {
    "Adam": ADAM,
    "AdamW": ADAM,  # no Adam itself in older torch
    "NAdam": ADAM,
    "RAdam": Adapter(formulas.rectified_adam),
    "Adamax": Adapter(formulas.adamax),
    "Adagrad": Adapter(formulas.adagrad, rates.decayed_rate),
    "RMSprop": Adapter(formulas.rmsprop),
    "Adadelta": Adapter(formulas.adadelta),
    "Adafactor": Adapter(formulas.torch_adafactor, rates.relative_rate),
    "Rprop": Adapter(formulas.rprop, rates.no_rate),
    "SGD": Adapter(ONE_RATE),
    "ASGD": Adapter(ONE_RATE),
    "Muon": Adapter(ORTHOGONAL),
    "LBFGS": Adapter("its step goes along one direction for all parameters together"),
    "SparseAdam": Adapter("it moves the rows of a sparse gradient alone, and keeps not which"),
}

for name, adapter in ADAPTERS.items():
    if hasattr(optim, name):  # Muon is in no older torch.
        adapter(getattr(optim, name))
