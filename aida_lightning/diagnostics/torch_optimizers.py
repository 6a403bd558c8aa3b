"""The functions that read the state of torch's own optimizers."""

from torch import optim

from aida_lightning.diagnostics import formulas, rates
from aida_lightning.diagnostics.adapter import Adapter

ADAM = Adapter(formulas.adam)
ONE_RATE = "one learning rate moves all elements of a layer"
ORTHOGONAL = "its update is orthogonalized"

ADAPTERS = {
    "Adam": ADAM,
    "AdamW": ADAM,  # In older torch, AdamW is no subclass of Adam.
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
    "LBFGS": Adapter("its step follows one direction for all parameters together"),
    "SparseAdam": Adapter("it moves only the rows of a sparse gradient and does not record which"),
}

for name, adapter in ADAPTERS.items():
    if hasattr(optim, name):  # Older torch has no Muon.
        adapter(getattr(optim, name))
