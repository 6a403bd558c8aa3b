"""What every kernel is given: lists with one tensor a layer, and the rule to update them by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from aida_lightning.optim.tracking import Coefficients, Scalar, Track

LayerMean: TypeAlias = Literal["statistic", "stepsize"] | None


class Layers(NamedTuple):
    """The tensors of the layers of one group; entry ``l`` of each list belongs to layer ``l``."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]


@dataclass(frozen=True)
class UpdateRule:
    """A member of the family (the first three fields) and the options of one group."""

    track: Track
    layer_mean: LayerMean
    eps_in_denominator: bool
    k: int
    xi: float
    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled_weight_decay: bool
    maximize: bool
    capturable: bool
    differentiable: bool

    def coefficients(self, m_sq: Scalar, g_sq: Scalar, m_dot_g: Scalar) -> Coefficients:
        """Give (alpha, beta) of the tracked vector ``alpha * m + beta * g``."""
        return self.track(m_sq, g_sq, m_dot_g, k=self.k, xi=self.xi)

    def bias_corrections(self, step: Tensor) -> tuple[Scalar, Scalar]:
        """Give ``1 - beta1^t`` and ``1 - beta2^t`` in double precision.

        Python floats where the host may know the step; else tensors on the step's device.
        """
        # In float32, 1 - beta2^t would be off by 1e-5 at small t.
        t = step.double() if self.on_device else step.item()
        return 1 - self.beta1**t, 1 - self.beta2**t

    @property
    def on_device(self) -> bool:
        """Whether no number may pass through the host, for a graph is being captured."""
        return self.capturable or torch.compiler.is_compiling()


Kernel: TypeAlias = Callable[[Layers, UpdateRule], None]


def finite_sums(sums: Tensor) -> Tensor:
    """Prepare sums over layers for the projections' scalar arithmetic.

    Sums of squares above float32's range become its largest number: such a layer is not projected
    (its stepsizes are 0 whatever is tracked) instead of being lost to inf / inf. NaN stays NaN.
    Double precision then holds every product of two sums.
    """
    return torch.nan_to_num(sums, nan=torch.nan).double()


def adaptive_stepsize(v: Tensor, correction2: Scalar, eps: float) -> Tensor:
    """Give ``1 / (sqrt(v / (1 - beta2^t)) + eps)``, elementwise, in a new tensor."""
    v_hat = v / correction2
    if not eps:
        return v_hat.rsqrt_()
    root = v_hat.sqrt_()
    # Autograd keeps the root itself, which therefore may not change.
    return (root + eps if root.requires_grad else root.add_(eps)).reciprocal_()
