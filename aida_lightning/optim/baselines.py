"""The baselines of the paper's Table I that torch does not have: Yogi, M-SVAG and Fromage.

The letters follow the papers: x is the parameter, g the gradient, m and v are the moving averages,
and t is the step.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from aida_lightning.optim._options import options_of, plain_options
from aida_lightning.optim._state import OwnStateOptimizer


class Baseline(OwnStateOptimizer):
    """Base class of the baselines, which checks options and gradients and visits the layers.

    Args:
        params: parameters, or dicts that define groups of them.
        defaults: default options by name, for groups that do not set them.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, plain_options(defaults))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group and check its options as the constructor does."""
        param_group.update(plain_options(param_group))
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return the loss from ``closure``, or None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        layers = [(x, group) for group in self.param_groups for x in group["params"]]
        layers = [(x, group) for x, group in layers if x.grad is not None]
        for x, _ in layers:  # check all of them before any is updated
            self._check_gradient(x.grad)
        for x, group in layers:
            self._update(x, self._gradient(x, group), group)
        return loss

    def _check_gradient(self, g: Tensor) -> None:
        for kind, found in (("sparse", g.is_sparse), ("complex", g.is_complex())):
            if found:
                raise RuntimeError(f"{type(self).__name__} does not support {kind} gradients")

    def _gradient(self, x: Tensor, group: dict[str, Any]) -> Tensor:
        """Compute the gradient of the minimized objective, in float32 or wider."""
        g = x.grad
        assert g is not None
        # The square or norm of a float16 gradient overflows; its results with float32 are float32.
        g = g.to(torch.promote_types(g.dtype, torch.float32))
        if group["maximize"]:
            g = -g
        if group.get("weight_decay"):
            g = g.add(x, alpha=group["weight_decay"])
        return g

    def _averages(self, x: Tensor, initial: float = 0.0) -> tuple[Tensor, Tensor, float]:
        """Count the step of a layer, and return its m and v from the previous step, and t."""
        state = self.state[x]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.full_like(x, initial)
            state["exp_avg_sq"] = torch.full_like(x, initial)
        state["step"] += 1
        return state["exp_avg"], state["exp_avg_sq"], state["step"].item()

    @abstractmethod
    def _update(self, x: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        """Take one step of one layer."""


class Yogi(Baseline):
    r"""Run Adam with a second moment that moves by at most a fraction of the squared gradient.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= v_{t-1} - (1 - \beta_2) \operatorname{sign}(v_{t-1} - g_t^2) g_t^2 \\
        x_t &= x_{t-1} - \frac{\eta}{1 - \beta_1^t}
               \frac{m_t}{\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon}

    Args:
        params: parameters, or dicts that define groups of them.
        lr: learning rate :math:`\eta`, a float or a tensor of one element; 1e-3 by default.
        betas: :math:`(\beta_1, \beta_2)`; (0.9, 0.999) by default.
        eps: :math:`\epsilon`, added to the denominator; 1e-3 by default.
        weight_decay: coefficient of the L2 penalty, by which the parameter is multiplied before it
            is added to the gradient; 0 by default.
        initial_accumulator: value of all elements of :math:`m_0` and :math:`v_0`; 1e-6 by default.
        maximize: whether to maximize the objective instead of minimizing it.

    Raises:
        ValueError: an option is outside of its range.
        TypeError: an option is not a number.
        RuntimeError: ``step`` finds a sparse or complex gradient.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = Yogi([weight], lr=0.1)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([ 0.9001, -1.9000])

    Zaheer, Reddi, Sachan, Kale and Kumar, "Adaptive Methods for Nonconvex Optimization", NeurIPS
    2018.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        initial_accumulator: float = 1e-6,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, options_of(locals()))

    def _update(self, x: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        m, v, t = self._averages(x, group["initial_accumulator"])
        beta1, beta2 = group["betas"]
        g_sq = g.square()
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.sub_(torch.sign(v - g_sq).mul_(g_sq), alpha=1 - beta2)
        denominator = v.to(g.dtype).sqrt().div_(math.sqrt(1 - beta2**t)).add_(group["eps"])
        x.sub_(m / denominator, alpha=float(group["lr"]) / (1 - beta1**t))


class MSVAG(Baseline):
    r"""Run momentum SGD that scales each element by how far its gradient exceeds its noise.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t
            & \tilde m_t &= m_t / (1 - \beta_1^t) \\
        v_t &= \beta_1 v_{t-1} + (1 - \beta_1) g_t^2
            & \tilde v_t &= v_t / (1 - \beta_2^t) \\
        \rho_t &= \frac{(1 - \beta_1)(1 + \beta_1^t)}{(1 + \beta_1)(1 - \beta_1^t)}
            & s_t &= \frac{\tilde v_t - \tilde m_t^2}{1 - \rho_t} \\
        \gamma_t &= \frac{\tilde m_t^2}{\tilde m_t^2 + \rho_t s_t}
            & x_t &= x_{t-1} - \eta \gamma_t \tilde m_t

    :math:`\gamma_t` is 0 where the fraction is 0/0. Because :math:`\rho_1 = 1`, the first step
    never moves x.

    :math:`\beta_2` enters only the bias correction, as in the baseline of the paper's Table I.
    M-SVAG's authors divide by :math:`1 - \beta_1^t`; set equal betas to do the same.

    Args:
        params: parameters, or dicts that define groups of them.
        lr: learning rate :math:`\eta`, a float or a tensor of one element; 0.1 by default.
        betas: :math:`(\beta_1, \beta_2)`; (0.9, 0.999) by default. With
            :math:`\beta_2 \ge \beta_1`, the variance :math:`s_t` is not negative and
            :math:`\gamma_t` lies in [0, 1].
        weight_decay: coefficient of the L2 penalty, by which the parameter is multiplied before it
            is added to the gradient; 0 by default.
        maximize: whether to maximize the objective instead of minimizing it.

    Raises:
        ValueError: an option is outside of its range.
        TypeError: an option is not a number.
        RuntimeError: ``step`` finds a sparse or complex gradient.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = MSVAG([weight], betas=(0.9, 0.9))
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> weight.detach()
        tensor([ 0.8000, -1.6000])

    Balles and Hennig, "Dissecting Adam: The Sign, Magnitude and Variance of Stochastic Gradients",
    arXiv 1705.07774.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, options_of(locals()))

    def _update(self, x: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        m, v, t = self._averages(x)
        beta1, beta2 = group["betas"]
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta1).add_(g.square(), alpha=1 - beta1)
        m = m.to(g.dtype) / (1 - beta1**t)
        v = v.to(g.dtype) / (1 - beta2**t)
        rho = (1 - beta1) * (1 + beta1**t) / ((1 + beta1) * (1 - beta1**t))
        m_sq = m.square()
        s = (v - m_sq) / (1 - rho)  # infinite at t = 1, where rho is 1; gamma is then 0
        gamma = m_sq / (m_sq + rho * s)
        gamma.masked_fill_(gamma.isnan(), 0.0)
        x.sub_(gamma.mul_(m), alpha=float(group["lr"]))


class Fromage(Baseline):
    r"""Run SGD with a step in each layer that is a fixed fraction of the layer's own norm.

    .. math::
        x_t = \frac{1}{\sqrt{1 + \eta^2}}
              \left( x_{t-1} - \eta \frac{\|x_{t-1}\|}{\|g_t\|} g_t \right)

    Where either norm is 0, the ratio of the norms is omitted. The optimizer keeps no state.

    Args:
        params: parameters, or dicts that define groups of them. Each tensor is a layer.
        lr: learning rate :math:`\eta`, a float or a tensor of one element; 0.01 by default.
        maximize: whether to maximize the objective instead of minimizing it.

    Raises:
        ValueError: ``lr`` is negative or NaN.
        TypeError: ``lr`` is not a number.
        RuntimeError: ``step`` finds a sparse or complex gradient.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = Fromage([weight], lr=0.75)
        >>> weight.sum().square().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([0.2787, 1.0787])

    Bernstein, Vahdat, Yue and Liu, "On the distance between two neural networks and the stability
    of learning", arXiv 2002.03432, algorithm 1.
    """

    def __init__(
        self, params: ParamsT, lr: float | Tensor = 0.01, *, maximize: bool = False
    ) -> None:
        super().__init__(params, options_of(locals()))

    def _check_state(
        self, param: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> str | None:
        return f"it has {[*state]}, but Fromage keeps nothing between steps"

    def _update(self, x: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        lr = float(group["lr"])
        norm_x = torch.linalg.vector_norm(x, dtype=g.dtype)
        norm_g = torch.linalg.vector_norm(g)
        # The device chooses: a choice on the host would wait for the device once per layer.
        direction = torch.where((norm_x > 0) & (norm_g > 0), g / norm_g * norm_x, g)
        x.copy_((x - lr * direction) / math.sqrt(1 + lr**2))
