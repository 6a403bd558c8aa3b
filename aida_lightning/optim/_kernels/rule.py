"""The rule that every kernel updates layers by, and what a kernel is."""

from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from aida_lightning.optim._kernels.layers import Layers, to_device
from aida_lightning.optim._kernels.stepsizes import (
    LARGEST,
    OF_NO_ELEMENTS,
    TINY,
    adaptive_stepsize,
    joined_sums,
    partial_sums,
    suppressed_stepsize,
    suppression,
)
from aida_lightning.optim._kernels.tracking import Coefficients, Scalar, Track

LayerMean: TypeAlias = Literal["statistic", "stepsize"] | None


@dataclass(frozen=True)
class UpdateRule:
    """A member of the family (the first four fields) and the options of one group."""

    track: Track
    layer_mean: LayerMean
    eps_in_denominator: bool
    suppresses_range: bool
    k: int
    xi: float
    tau: float
    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled_weight_decay: bool
    maximize: bool
    capturable: bool
    differentiable: bool

    @property
    def takes_sums(self) -> bool:
        """Whether the momentum and the gradient are summed over a layer before it is updated."""
        return self.layer_mean == "statistic" or not self.track.is_constant

    @property
    def takes_any_sums(self) -> bool:
        """Whether anything is summed over a layer while it is updated."""
        return self.takes_sums or self.of_no_elements is not None

    @property
    def of_no_elements(self) -> tuple[float, ...] | None:
        """What ``update`` returns of a layer without elements; None if it returns nothing."""
        if self.suppresses_range:
            return OF_NO_ELEMENTS
        return (0.0,) if self.layer_mean == "stepsize" else None

    @property
    def eps_in_state(self) -> float:
        """What is added to the statistic at every step."""
        return 0.0 if self.suppresses_range else self.eps

    @property
    def coupled_weight_decay(self) -> float:
        """The multiple of the parameter that is added to the gradient."""
        return 0.0 if self.decoupled_weight_decay else self.weight_decay

    def coefficients(self, m_sq: Scalar, g_sq: Scalar, m_dot_g: Scalar) -> Coefficients:
        """Compute (alpha, beta) of the tracked vector ``alpha * m + beta * g``."""
        return self.track.function(m_sq, g_sq, m_dot_g, k=self.k, xi=self.xi)

    def of_elements(self) -> "UpdateRule":
        """Return the rule by which every element is updated by itself."""
        return replace(self, track=self.track.of_elements, layer_mean=None)

    @property
    def compiled_track(self) -> tuple[int, float, float]:
        """What compiled kernels know the track by: its number, and alpha and beta if constant.

        Raises:
            NotImplementedError: they do not know it.
        """
        if self.track.number is None:
            raise NotImplementedError(
                f"no compiled kernel tracks `{self.track.function.__name__}`, leave `fused` out"
            )
        if not self.track.is_constant:
            return self.track.number, 0.0, 0.0
        alpha, beta = self.coefficients(0.0, 0.0, 0.0)
        return self.track.number, float(alpha), float(beta)

    def squares(self, sums: Tensor) -> Tensor:
        """Compute the squared norm of each layer's tracked vector, of shape ``(n,)``.

        It is put together from ``m - g``, which was subtracted before it was squared: ``<m, m>``,
        ``<g, g>`` and ``<m, g>`` alone would cancel out where m and g agree.
        """
        m_sq, g_sq, m_dot_g, r_sq, r_dot_g = finite_sums(sums).unbind(1)
        alpha, beta = self.coefficients(m_sq, g_sq, m_dot_g)
        both = alpha + beta  # alpha m + beta g = alpha (m - g) + (alpha + beta) g
        squares = both**2 * g_sq
        if self.track.of_momentum:  # 0 times the NaN of a momentum is NaN
            squares = squares + alpha**2 * r_sq + 2 * alpha * both * r_dot_g
        # What overflowed is infinite: its stepsize is 0.
        return squares.clamp(min=0).masked_fill(sums.isinf().any(1), torch.inf)

    def bias_corrections(self, step: Tensor) -> tuple[Scalar, Scalar]:
        """Compute ``1 - beta1^t`` and ``1 - beta2^t`` in double precision.

        They are Python floats where the host may know the step, else tensors on the step's device.
        """
        # In float32, 1 - beta2^t would be off by 1e-5 at small t.
        t = step.double() if self.on_device else step.item()
        return 1 - self.beta1**t, 1 - self.beta2**t

    def stepsizes(self, layers: Layers, totals: Tensor) -> Tensor:
        """Compute what ``move`` takes from what ``update`` returned, over whole layers."""
        if not self.suppresses_range:
            return layers.mean(totals.squeeze(1), on_device=self.on_device)
        totals = totals.double()
        steps = layers.steps_of_layers().double()
        mean, mean_square = (
            layers.mean(sums, on_device=self.on_device) for sums in totals[:, :2].unbind(1)
        )
        correction2 = to_device(totals.device, 1 - self.beta2**steps)
        return suppression(mean, mean_square, totals[:, 2], correction2, self.eps, self.tau)

    def stepsizes_of(self, v: Tensor, step: Tensor, whole: Tensor) -> Tensor:
        """Compute the adaptive stepsizes of one layer in a new tensor.

        Where they depend on the whole layer, ``whole`` is that: v itself, or what it is a part of.
        """
        if not self.suppresses_range:
            _, correction2 = self.bias_corrections(step)
            return adaptive_stepsize(v, correction2, self.eps if self.eps_in_denominator else 0.0)
        layer = Layers([], [], [], [whole], [step], [whole.numel()], {})
        totals = joined_sums(torch.stack(partial_sums(whole)).unsqueeze(0))
        numbers = self.stepsizes(layer, totals.unsqueeze(0))[0]
        unit, inner, outer = numbers.unbind() if v is whole else numbers.tolist()
        return suppressed_stepsize(v, inner, outer).mul_(unit)

    @property
    def on_device(self) -> bool:
        """Whether no number may pass through the host, for a graph is being captured."""
        return self.capturable or torch.compiler.is_compiling()


class Kernel(Protocol):
    """One backend, which is a module: the sweeps over the layers that a step is made of.

    Between two sweeps the caller completes the sums over layers that are spread over processes. The
    steps have been counted before the first sweep.
    """

    def momentum(self, layers: Layers, rule: UpdateRule) -> Tensor:
        """Update every momentum and return the sums over each layer; for rules that take sums.

        Returns:
            Sums over the local elements, of shape ``(n, 3)``: ``<m, m>``, ``<g, g>`` and
            ``<m, g>``, where g includes the coupled weight decay. Where the statistic is averaged,
            of shape ``(n, 5)``, with ``<m - g, m - g>`` and ``<m - g, g>`` as well.
        """

    def update(self, layers: Layers, rule: UpdateRule, sums: Tensor | None) -> Tensor | None:
        """Update the statistic and the parameter of every layer; without sums, the momentum too.

        Args:
            layers: the layers to update.
            rule: how to update them.
            sums: over whole layers, in the form that ``momentum`` returns, if the rule takes any.

        Returns:
            None. Where the stepsizes depend on a whole layer, what they depend on, over the local
            elements; the parameters have not been moved then. It is their sum, of shape ``(n, 1)``,
            if they are averaged, and of shape ``(n, 3)`` if their range is suppressed: the sum of
            v, that of its squares, and its least element.
        """

    def move(self, layers: Layers, rule: UpdateRule, stepsizes: Tensor) -> None:
        """Move every parameter.

        Args:
            layers: the layers to move.
            rule: how to move them.
            stepsizes: one of each layer, of shape ``(n,)``. Where their range is suppressed, the
                numbers that make them of v, of shape ``(n, 3)`` (see ``suppression``).
        """


def finite_sums(sums: Tensor) -> Tensor:
    """Prepare sums over layers for the projections' scalar arithmetic, in double precision.

    A sum that overflowed becomes float32's largest number instead of being lost to inf / inf. A
    squared norm becomes more where ``<m, g>`` needs more, for projections never make a vector
    longer. NaN stays.
    """
    finite = torch.nan_to_num(sums.double(), nan=torch.nan, posinf=LARGEST, neginf=-LARGEST)
    m_sq, g_sq, m_dot_g = finite[..., :3].unbind(-1)
    others = torch.stack((g_sq, m_sq), -1).clamp(min=TINY)
    least = (m_dot_g.square().unsqueeze(-1) / others).clamp(min=LARGEST)
    norms = torch.where(sums[..., :2].isinf(), least, finite[..., :2])
    return torch.cat((norms, finite[..., 2:]), -1)
