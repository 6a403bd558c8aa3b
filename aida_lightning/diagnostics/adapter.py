"""The adapter, which registers all functions of an optimizer's class at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aida_lightning.diagnostics.rates import learning_rate
from aida_lightning.diagnostics.state import NoStepsize, momentum, second_moment, stepsize


@dataclass(frozen=True)
class Adapter:
    """The functions that read an optimizer's state; a call with a class registers them for it.

    Args:
        stepsize: function that computes the adaptive stepsizes, or the reason why there are none.
        learning_rate: function that computes the effective learning rate from the optimizer, the
            group, the state and the learning rate.
        momentum: function that returns the momentum.
        second_moment: function that returns the second moment.
    """

    stepsize: Callable[..., Tensor] | str
    learning_rate: Callable[..., Any] = learning_rate.default
    momentum: Callable[..., Tensor | None] = momentum.default
    second_moment: Callable[..., Tensor | None] = second_moment.default

    def __call__(self, cls: type) -> None:
        """Register for a class those functions that nobody else has registered for it."""
        known = self.stepsize
        stepsize.add(cls, NoStepsize(known) if isinstance(known, str) else torch.no_grad()(known))
        learning_rate.add(cls, self.learning_rate)
        momentum.add(cls, self.momentum)
        second_moment.add(cls, self.second_moment)
