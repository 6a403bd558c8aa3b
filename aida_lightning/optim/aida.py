"""The ten members of the family, which differ in what they track and how stepsizes follow."""

from torch import Tensor
from torch.optim.optimizer import ParamsT

from aida_lightning.optim._docstrings import complete_docstring
from aida_lightning.optim._kernels.tracking import (
    GRADIENT,
    MUTUAL_PROJECTION,
    PROJECTED_GRADIENT,
    RESIDUAL,
)
from aida_lightning.optim._options import options_of
from aida_lightning.optim._partition import Partition
from aida_lightning.optim.layerwise import LayerwiseOptimizer


@complete_docstring
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

    The projections cost three sums per layer for any K. With K = 0, the optimizer is AdaBelief
    without its second :math:`\epsilon`.

    Source: arXiv 2203.13273, Algorithm 3, eq. 12-14.
    """

    track = MUTUAL_PROJECTION

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
        partition: Partition = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        super().__init__(params, options_of(locals()))


@complete_docstring
class LAida(Aida):
    r"""Run Aida with one stepsize per layer, from the layer mean of the tracked square.

    .. math::
        v_t = \beta_2 v_{t-1}
              + (1 - \beta_2) \operatorname{mean}\bigl[(m^{(K)} - g^{(K)})^2\bigr] + \epsilon

    :math:`v` is one number per layer, so the state is half the size of Adam's.

    Source: arXiv 2203.13273, Algorithm 5.
    """

    layer_mean = "statistic"


@complete_docstring
class AidaGrad(LayerwiseOptimizer):
    r"""Adapt stepsizes to the gradient's projection on the momentum.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        g^p_t &= \frac{\langle m_t, g_t \rangle}{\|m_t\|^2 + \xi} m_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) (g^p_t)^2 + \epsilon \\
        x_t &= x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t} \frac{1}{\sqrt{v_t / (1 - \beta_2^t)}}

    Source: arXiv 2203.13273, Algorithm 4. Its line 11 prints :math:`m_t` where the bias-corrected
    momentum is meant.
    """

    track = PROJECTED_GRADIENT

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
        partition: Partition = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        super().__init__(params, options_of(locals()))


@complete_docstring
class AdaBelief(LayerwiseOptimizer):
    r"""Adapt stepsizes to the error of the momentum as a prediction of the gradient.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) (m_t - g_t)^2 + \epsilon \\
        x_t &= x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t}
               \frac{1}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Source: arXiv 2203.13273, eq. 6, 7; Zhuang et al., NeurIPS 2020.
    """

    track = RESIDUAL
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
        partition: Partition = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        super().__init__(params, options_of(locals()))


@complete_docstring
class AdaBeliefL(AdaBelief):
    r"""Run AdaBelief with one stepsize per layer, the mean of the layer's adaptive stepsizes.

    .. math::
        x_t = x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t}
              \operatorname{mean}\left[\frac{1}{\sqrt{v_t / (1 - \beta_2^t)}}\right]

    There is no second :math:`\epsilon`.

    Source: arXiv 2203.13273, Algorithm 1, below its last line.
    """

    layer_mean = "stepsize"
    eps_in_denominator = False


@complete_docstring
class LAdaBelief(AdaBelief):
    r"""Run AdaBelief with one stepsize per layer, from the layer mean of the tracked square.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) \operatorname{mean}[(m_t - g_t)^2] + \epsilon \\
        x_t &= x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t} \frac{1}{\sqrt{v_t / (1 - \beta_2^t)}}

    :math:`v` is one number per layer, so the state is half the size of Adam's. There is no second
    :math:`\epsilon`.

    Source: arXiv 2203.13273, Algorithm 2, below its last line.
    """

    layer_mean = "statistic"
    eps_in_denominator = False


@complete_docstring
class AdamPlus(AdaBelief):
    r"""Track the squared gradient, as Adam does, but keep :math:`\epsilon` in the state.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 + \epsilon \\
        x_t &= x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t}
               \frac{1}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Source: arXiv 2203.13273, caption of Fig. 1.
    """

    track = GRADIENT


@complete_docstring
class AdamL(AdamPlus):
    r"""Run Adam with one stepsize per layer, the mean of the layer's adaptive stepsizes.

    .. math::
        x_t = x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t}
              \operatorname{mean}\left[\frac{1}{\sqrt{v_t / (1 - \beta_2^t)}}\right]

    :math:`v` is the one of :class:`AdamPlus`. There is no second :math:`\epsilon`.

    Source: arXiv 2203.13273, Algorithm 1.
    """

    layer_mean = "stepsize"
    eps_in_denominator = False


@complete_docstring
class LAdam(AdamPlus):
    r"""Run Adam with one stepsize per layer, from the layer mean of the squared gradient.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) \operatorname{mean}[g_t^2] + \epsilon \\
        x_t &= x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t} \frac{1}{\sqrt{v_t / (1 - \beta_2^t)}}

    :math:`v` is one number per layer, so the state is half the size of Adam's.

    Source: arXiv 2203.13273, Algorithm 2.
    """

    layer_mean = "statistic"
    eps_in_denominator = False


@complete_docstring
class SETAdam(LayerwiseOptimizer):
    r"""Run Adam with a suppressed range of each layer's adaptive stepsizes.

    For each layer of n elements,

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \tilde v_t &= \frac{\left(\sum_i v_{t,i}\right)^2}{n \sum_i v_{t,i}^2} \, v_t \\
        w_t &= \sqrt{\tilde v_t / (1 - \beta_2^t) + \epsilon}, \quad
        \tilde w_t = w_t - \tau \min_i w_{t,i} \\
        x_t &= x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t} \frac{1}{\tilde w_t}

    :math:`v` is multiplied by the squared cosine of the angle between it and the vector of ones.
    This cosine counts as 1 where :math:`v` is all zeros or has overflowed. :math:`\epsilon` does
    not stay in the state. The adaptive stepsizes, :math:`1 / \tilde w`, cost two sums and a minimum
    per layer. The default :math:`\epsilon` differs from the source's: it bounds :math:`w` as the
    other members' :math:`\epsilon` of 1e-8 bounds :math:`\sqrt{v / (1 - \beta_2^t)}`.

    Source: Zhang, On Suppressing Range of Adaptive Stepsizes of Adam to Improve Generalisation
    Performance, ECML PKDD 2024, arXiv 2302.01029. The equations follow the transcription at
    https://junaidaliop.github.io/zij/math/setadam/; nobody has compared them with the paper's text.
    """

    track = GRADIENT
    suppresses_range = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        *,
        tau: float = 0.5,
        decoupled_weight_decay: bool = False,
        partition: Partition = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        super().__init__(params, options_of(locals()))
