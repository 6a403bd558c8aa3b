"""Which vector an optimizer tracks: its two coefficients in the plane of momentum and gradient.

Every member of the family tracks a vector ``d = alpha * m + beta * g`` of the momentum ``m`` and
the gradient ``g`` of one layer. Even the K mutual projections never leave that plane, so three
inner products per layer give any of them, at a cost that does not depend on K and without a copy of
``m`` or ``g``. The functions here are that choice and nothing else. All have one signature

    (m_sq, g_sq, m_dot_g, *, k, xi) -> (alpha, beta)

with ``m_sq = <m, m>``, ``g_sq = <g, g>``, ``m_dot_g = <m, g>`` over one layer: each a float, a
0-dim tensor, or a vector with one entry per layer. What kernels may know beforehand stands beside
each function in a ``Track``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Scalar: TypeAlias = float | Tensor
Coefficients: TypeAlias = tuple[Scalar, Scalar]


@dataclass(frozen=True)
class Track:
    """A vector to track: its function, and what kernels may know of it beforehand.

    Attributes:
        function: gives alpha and beta, with the signature above.
        is_constant: whether d is g or m - g, so that no sums over a layer have to be taken for it.
        of_momentum: whether m is in d.
        of_gradient: whether g is in d.
        number: what the compiled kernels call it; None if they do not know it.
        elementwise: what is tracked in its place where no sums are taken, for a vector of one
            element is its own projection on any other; None for what takes no sums.
    """

    function: Callable[..., Coefficients]
    is_constant: bool = False
    of_momentum: bool = True
    of_gradient: bool = True
    number: int | None = None
    elementwise: "Track | None" = None

    @property
    def of_elements(self) -> "Track":
        """The vector that is tracked where no sums are taken."""
        return self.elementwise or self


def gradient(m_sq: Scalar, g_sq: Scalar, m_dot_g: Scalar, *, k: int, xi: float) -> Coefficients:
    """Track the gradient, ``d = g``, as Adam does."""
    return 0.0, 1.0


def residual(m_sq: Scalar, g_sq: Scalar, m_dot_g: Scalar, *, k: int, xi: float) -> Coefficients:
    """Track the error of the momentum as a prediction of the gradient, ``d = m - g`` (eq. 6)."""
    return 1.0, -1.0


def mutual_projection(
    m_sq: Scalar, g_sq: Scalar, m_dot_g: Scalar, *, k: int, xi: float
) -> Coefficients:
    r"""Track the difference of the pair left by ``k`` mutual projections (eq. 12, 13).

    .. math::
        m^{(j)} = \frac{\langle m^{(j-1)}, g^{(j-1)} \rangle}{\|g^{(j-1)}\|^2 + \xi} g^{(j-1)},
        \qquad
        g^{(j)} = \frac{\langle m^{(j-1)}, g^{(j-1)} \rangle}{\|m^{(j-1)}\|^2 + \xi} m^{(j-1)},
        \qquad d = m^{(k)} - g^{(k)}

    Each :math:`m^{(j)}` and :math:`g^{(j)}` is a multiple of :math:`m` or :math:`g`, in turns; only
    the two multiples and the three inner products are carried from one projection to the next.

    >>> mutual_projection(4.0, 1.0, 1.0, k=1, xi=1e-20)  # d = g - m / 4
    (-0.25, 1.0)
    >>> mutual_projection(4.0, 1.0, 1.0, k=2, xi=1e-20)  # cos(m, g)^2 (m - g)
    (0.25, -0.25)
    """
    of_m: Scalar = 1.0  # m^(j) = of_m * (m if j is even else g)
    of_g: Scalar = 1.0  # g^(j) = of_g * (g if j is even else m)
    for _ in range(k):
        a = m_dot_g / (g_sq + xi)
        b = m_dot_g / (m_sq + xi)
        of_m, of_g = a * of_g, b * of_m
        # From the left, so that no intermediate exceeds the larger of the old and the new value.
        m_sq, g_sq, m_dot_g = a * (a * g_sq), b * (b * m_sq), a * (b * m_dot_g)
    return (of_m, -of_g) if k % 2 == 0 else (-of_g, of_m)


def projected_gradient(
    m_sq: Scalar, g_sq: Scalar, m_dot_g: Scalar, *, k: int, xi: float
) -> Coefficients:
    """Track the gradient projected on the momentum, ``d = <m, g> / (|m|^2 + xi) m`` (Alg. 4)."""
    return m_dot_g / (m_sq + xi), 0.0


# The numbers are those in fused.cpp and triton_sweeps.py.
GRADIENT = Track(gradient, is_constant=True, of_momentum=False, number=0)
RESIDUAL = Track(residual, is_constant=True, number=0)
MUTUAL_PROJECTION = Track(mutual_projection, number=1, elementwise=RESIDUAL)
PROJECTED_GRADIENT = Track(projected_gradient, of_gradient=False, number=2, elementwise=GRADIENT)
