"""M-SVAG, a baseline of the paper's Table I."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from aida_lightning.optim._checks import (
    check_betas,
    check_gradient,
    check_lr,
    check_non_negative,
)


class MSVAG(Optimizer):
    r"""Momentum SGD that scales each element by how far its gradient exceeds its noise.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t
            & \tilde m_t &= m_t / (1 - \beta_1^t) \\
        v_t &= \beta_1 v_{t-1} + (1 - \beta_1) g_t^2
            & \tilde v_t &= v_t / (1 - \beta_2^t) \\
        \rho_t &= \frac{(1 - \beta_1)(1 + \beta_1^t)}{(1 + \beta_1)(1 - \beta_1^t)}
            & s_t &= \frac{\tilde v_t - \tilde m_t^2}{1 - \rho_t} \\
        \gamma_t &= \frac{\tilde m_t^2}{\tilde m_t^2 + \rho_t s_t}
            & x_t &= x_{t-1} - \eta \gamma_t \tilde m_t

    :math:`\gamma_t` is 0 where it is 0/0. :math:`\rho_1 = 1`, so the first step never moves x.

    :math:`\beta_2` enters the bias correction alone. That is how the baseline of the paper's Table
    I was run; M-SVAG's authors divide by :math:`1 - \beta_1^t`, which equal betas give.

    Args:
        params: parameters, or dicts that define groups of them.
        lr: learning rate :math:`\eta`, a float or a tensor of one element.
        betas: :math:`(\beta_1, \beta_2)`. With :math:`\beta_2 \ge \beta_1`, the variance
            :math:`s_t` is not negative and :math:`\gamma_t` lies in [0, 1].
        weight_decay: coefficient of the L2 penalty; added to the gradient, times the parameter.
        maximize: maximize the objective instead of minimizing it.

    Raises:
        ValueError: an option is outside of its range.
        TypeError: an option is not a number.
        RuntimeError: ``step`` met a sparse or complex gradient.

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
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        _check(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose own options are checked as the constructor's are."""
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return what ``closure``, if any, returned for the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is not None:
                    check_gradient(self, x.grad)
                    self._update(x, x.grad, group)
        return loss

    def _update(self, x: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        state = self.state[x]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(x)
            state["exp_avg_sq"] = torch.zeros_like(x)
        m, v = state["exp_avg"], state["exp_avg_sq"]
        state["step"] += 1
        t = state["step"].item()
        beta1, beta2 = group["betas"]

        # A float16 gradient's square over- or underflows; what meets a float32 one is float32.
        g = g.to(torch.promote_types(g.dtype, torch.float32))
        if group["maximize"]:
            g = -g
        if group["weight_decay"] != 0:
            g = g.add(x, alpha=group["weight_decay"])

        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta1).add_(g.square(), alpha=1 - beta1)
        m = m.to(g.dtype) / (1 - beta1**t)
        v = v.to(g.dtype) / (1 - beta2**t)
        rho = (1 - beta1) * (1 + beta1**t) / ((1 + beta1) * (1 - beta1**t))
        m_sq = m.square()
        s = (v - m_sq) / (1 - rho)  # infinite at t = 1, where rho is 1: then gamma is 0
        gamma = m_sq / (m_sq + rho * s)
        gamma.masked_fill_(gamma.isnan(), 0.0)
        x.sub_(gamma.mul_(m), alpha=float(group["lr"]))


def _check(options: dict[str, Any]) -> None:
    check_lr(options["lr"])
    check_betas(options["betas"])
    check_non_negative("weight_decay", options["weight_decay"])
