"""The members that track the gradient's prediction error, or the gradient itself."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from aida_lightning.optim._kernels.tracking import gradient, residual
from aida_lightning.optim.layerwise import LayerwiseOptimizer


class AdaBelief(LayerwiseOptimizer):
    r"""Adapt stepsizes to the error of the momentum as a prediction of the gradient.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) (m_t - g_t)^2 + \epsilon \\
        x_t &= x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t}
               \frac{1}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Args:
        params: parameters, named parameters, or dicts that define groups of them.
        lr: learning rate :math:`\eta`, a float or a tensor of one element.
        betas: :math:`(\beta_1, \beta_2)`, the decay rates of the two moving averages.
        eps: :math:`\epsilon`, added to :math:`v` at every step, and to the
            denominator; the adaptive stepsizes stay
            below :math:`\sqrt{(1 - \beta_2) / \epsilon}`.
        weight_decay: coefficient of the L2 penalty. Its gradient is a part of :math:`g`, and so
            enters :math:`m`, and :math:`v`.
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
        >>> optimizer = AdaBelief(layer.named_parameters(), lr=1e-3)
        >>> layer(torch.ones(3)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.stepsize(layer.weight).shape
        torch.Size([2, 3])

    Source: arXiv 2203.13273, eq. 6, 7; Zhuang et al., NeurIPS 2020.
    """

    track = residual
    eps_in_denominator = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
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
            "decoupled_weight_decay": decoupled_weight_decay,
            "foreach": foreach,
            "fused": fused,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)


class AdaBeliefL(AdaBelief):
    r"""AdaBelief with one stepsize a layer: the mean of the layer's adaptive stepsizes.

    .. math::
        x_t = x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t}
              \operatorname{mean}\left[\frac{1}{\sqrt{v_t / (1 - \beta_2^t)}}\right]

    There is no second :math:`\epsilon`. All else, the arguments and the errors are those of
    :class:`AdaBelief`.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = AdaBeliefL(layer.named_parameters(), lr=1e-3)
        >>> layer(torch.ones(3)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.stepsize(layer.weight).shape
        torch.Size([2, 3])

    Source: arXiv 2203.13273, Algorithm 1, below its last line.
    """

    layer_mean = "stepsize"
    eps_in_denominator = False


class LAdaBelief(AdaBelief):
    r"""AdaBelief with one stepsize a layer: the tracked square is averaged over the layer.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) \operatorname{mean}[(m_t - g_t)^2] + \epsilon \\
        x_t &= x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t} \frac{1}{\sqrt{v_t / (1 - \beta_2^t)}}

    :math:`v` is one number a layer, so that the state is half of Adam's. There is no second
    :math:`\epsilon`. All else, the arguments and the errors are those of :class:`AdaBelief`.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = LAdaBelief(layer.named_parameters(), lr=1e-3)
        >>> layer(torch.ones(3)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.stepsize(layer.weight).shape
        torch.Size([])

    Source: arXiv 2203.13273, Algorithm 2, below its last line.
    """

    layer_mean = "statistic"
    eps_in_denominator = False


class AdamPlus(AdaBelief):
    r"""AdaBelief with the squared gradient tracked: Adam, with :math:`\epsilon` in the state.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 + \epsilon \\
        x_t &= x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t}
               \frac{1}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    All else, the arguments and the errors are those of :class:`AdaBelief`.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = AdamPlus(layer.named_parameters(), lr=1e-3)
        >>> layer(torch.ones(3)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.stepsize(layer.weight).shape
        torch.Size([2, 3])

    Source: arXiv 2203.13273, caption of Fig. 1.
    """

    track = gradient


class AdamL(AdamPlus):
    r"""Adam with one stepsize a layer: the mean of the layer's adaptive stepsizes.

    .. math::
        x_t = x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t}
              \operatorname{mean}\left[\frac{1}{\sqrt{v_t / (1 - \beta_2^t)}}\right]

    :math:`v` is that of :class:`AdamPlus`; there is no second :math:`\epsilon`. The arguments and
    the errors are those of :class:`AdaBelief`.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = AdamL(layer.named_parameters(), lr=1e-3)
        >>> layer(torch.ones(3)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.stepsize(layer.weight).shape
        torch.Size([2, 3])

    Source: arXiv 2203.13273, Algorithm 1.
    """

    layer_mean = "stepsize"
    eps_in_denominator = False


class LAdam(AdamPlus):
    r"""Adam with one stepsize a layer: the squared gradient is averaged over the layer.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) \operatorname{mean}[g_t^2] + \epsilon \\
        x_t &= x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t} \frac{1}{\sqrt{v_t / (1 - \beta_2^t)}}

    :math:`v` is one number a layer, so that the state is half of Adam's. The arguments and the
    errors are those of :class:`AdaBelief`.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = LAdam(layer.named_parameters(), lr=1e-3)
        >>> layer(torch.ones(3)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.stepsize(layer.weight).shape
        torch.Size([])

    Source: arXiv 2203.13273, Algorithm 2.
    """

    layer_mean = "statistic"
    eps_in_denominator = False
