"""The members that track projections of momentum and gradient on each other."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from aida_lightning.optim._kernels.tracking import mutual_projection, projected_gradient
from aida_lightning.optim.layerwise import LayerwiseOptimizer


class Aida(LayerwiseOptimizer):
    r"""Adapt stepsizes to what K mutual projections leave of the gradient's prediction error.

    For each layer, from :math:`m^{(0)} = m_t` and :math:`g^{(0)} = g_t`, with k = 1 ... K,

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        m^{(k)} &= \frac{\langle m^{(k-1)}, g^{(k-1)} \rangle}{\|g^{(k-1)}\|^2 + \xi} g^{(k-1)},
        \quad
        g^{(k)} = \frac{\langle m^{(k-1)}, g^{(k-1)} \rangle}{\|m^{(k-1)}\|^2 + \xi} m^{(k-1)} \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) (m^{(K)} - g^{(K)})^2 + \epsilon \\
        x_t &= x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t} \frac{1}{\sqrt{v_t / (1 - \beta_2^t)}}

    The projections cost three sums a layer, whatever K is. With K = 0 it is AdaBelief without its
    second :math:`\epsilon`.

    Args:
        params: parameters, named parameters, or dicts that define groups of them.
        lr: learning rate :math:`\eta`, a float or a tensor of one element.
        betas: :math:`(\beta_1, \beta_2)`, the decay rates of the two moving averages.
        eps: :math:`\epsilon`, added to :math:`v` at every step; the adaptive stepsizes stay
            below :math:`\sqrt{(1 - \beta_2) / \epsilon}`.
        weight_decay: coefficient of the L2 penalty. Its gradient is a part of :math:`g`, and so
            enters :math:`m`, the projections and
            :math:`v`.
        k: number of mutual projections K, at least 0.
        xi: :math:`\xi`, added to the squared norms that divide; keeps a zero gradient finite.
        decoupled_weight_decay: shrink :math:`x` by ``lr * weight_decay`` instead, as AdamW does.
        foreach: batch the operations of all layers; None does so on a GPU alone.
        fused: update in one or two sweeps of the memory: on the CPU by C++ that is compiled (and
            cached) at the first step, on CUDA by Triton in at most three launches, which was only
            checked in Triton's interpreter so far and never ran on a GPU. Without a compiler, or
            without Triton, it warns and goes on unfused.
        maximize: maximize the objective instead of minimizing it.
        capturable: keep every number on the GPU, so that CUDA graphs can capture the step.
        differentiable: let autograd record the step.

    Raises:
        ValueError: an option is outside of its range; named with its value and the range.
        TypeError: an option is not a number.
        RuntimeError: two of the options exclude each other, or ``step`` met a sparse gradient.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = Aida(layer.named_parameters(), lr=1e-3, k=2)
        >>> layer(torch.ones(3)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.stepsize(layer.weight).shape
        torch.Size([2, 3])

    Source: arXiv 2203.13273, Algorithm 3, eq. 12-14.
    """

    track = mutual_projection

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        k: int = 2,
        xi: float = 1e-20,
        decoupled_weight_decay: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "k": k,
            "xi": xi,
            "decoupled_weight_decay": decoupled_weight_decay,
            "foreach": foreach,
            "fused": fused,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)


class LAida(Aida):
    r"""Aida with one stepsize a layer: the tracked square is averaged over the layer.

    .. math::
        v_t = \beta_2 v_{t-1}
              + (1 - \beta_2) \operatorname{mean}\bigl[(m^{(K)} - g^{(K)})^2\bigr] + \epsilon

    :math:`v` is one number a layer, so that the state is half of Adam's. All else, the arguments
    and the errors are those of :class:`Aida`.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = LAida(layer.named_parameters(), lr=1e-3)
        >>> layer(torch.ones(3)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.stepsize(layer.weight).shape
        torch.Size([])

    Source: arXiv 2203.13273, Algorithm 5.
    """

    layer_mean = "statistic"


class AidaGrad(LayerwiseOptimizer):
    r"""Adapt stepsizes to the gradient's projection on the momentum.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        g^p_t &= \frac{\langle m_t, g_t \rangle}{\|m_t\|^2 + \xi} m_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) (g^p_t)^2 + \epsilon \\
        x_t &= x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t} \frac{1}{\sqrt{v_t / (1 - \beta_2^t)}}

    Args:
        params: parameters, named parameters, or dicts that define groups of them.
        lr: learning rate :math:`\eta`, a float or a tensor of one element.
        betas: :math:`(\beta_1, \beta_2)`, the decay rates of the two moving averages.
        eps: :math:`\epsilon`, added to :math:`v` at every step; the adaptive stepsizes stay
            below :math:`\sqrt{(1 - \beta_2) / \epsilon}`.
        weight_decay: coefficient of the L2 penalty. Its gradient is a part of :math:`g`, and so
            enters :math:`m`, the projection and
            :math:`v`.
        xi: :math:`\xi`, added to the squared norm that divides; keeps a zero gradient finite.
        decoupled_weight_decay: shrink :math:`x` by ``lr * weight_decay`` instead, as AdamW does.
        foreach: batch the operations of all layers; None does so on a GPU alone.
        fused: update in one or two sweeps of the memory: on the CPU by C++ that is compiled (and
            cached) at the first step, on CUDA by Triton in at most three launches, which was only
            checked in Triton's interpreter so far and never ran on a GPU. Without a compiler, or
            without Triton, it warns and goes on unfused.
        maximize: maximize the objective instead of minimizing it.
        capturable: keep every number on the GPU, so that CUDA graphs can capture the step.
        differentiable: let autograd record the step.

    Raises:
        ValueError: an option is outside of its range; named with its value and the range.
        TypeError: an option is not a number.
        RuntimeError: two of the options exclude each other, or ``step`` met a sparse gradient.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = AidaGrad(layer.named_parameters(), lr=1e-3)
        >>> layer(torch.ones(3)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.stepsize(layer.weight).shape
        torch.Size([2, 3])

    Source: arXiv 2203.13273, Algorithm 4, whose line 11 prints :math:`m_t` for
    the bias-corrected momentum.
    """

    track = projected_gradient

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        xi: float = 1e-20,
        decoupled_weight_decay: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "xi": xi,
            "decoupled_weight_decay": decoupled_weight_decay,
            "foreach": foreach,
            "fused": fused,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)
