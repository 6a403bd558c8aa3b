"""Yogi, a baseline of the paper's Table I."""

import math
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
    check_positive,
)


class Yogi(Optimizer):
    r"""Adam whose second moment moves by at most a fraction of the squared gradient.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= v_{t-1} - (1 - \beta_2) \operatorname{sign}(v_{t-1} - g_t^2) g_t^2 \\
        x_t &= x_{t-1} - \frac{\eta}{1 - \beta_1^t}
               \frac{m_t}{\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon}

    Args:
        params: parameters, or dicts that define groups of them.
        lr: learning rate :math:`\eta`, a float or a tensor of one element.
        betas: :math:`(\beta_1, \beta_2)`.
        eps: :math:`\epsilon`, added to the denominator.
        weight_decay: coefficient of the L2 penalty; added to the gradient, times the parameter.
        initial_accumulator: the elements of both :math:`m_0` and :math:`v_0`.
        maximize: maximize the objective instead of minimizing it.

    Raises:
        ValueError: an option is outside of its range.
        TypeError: an option is not a number.
        RuntimeError: ``step`` met a sparse or complex gradient.

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
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator": initial_accumulator,
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
            state["exp_avg"] = torch.full_like(x, group["initial_accumulator"])
            state["exp_avg_sq"] = torch.full_like(x, group["initial_accumulator"])
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
        g_sq = g.square()

        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.sub_(torch.sign(v - g_sq).mul_(g_sq), alpha=1 - beta2)
        denominator = v.to(g.dtype).sqrt().div_(math.sqrt(1 - beta2**t)).add_(group["eps"])
        x.sub_(m / denominator, alpha=float(group["lr"]) / (1 - beta1**t))


def _check(options: dict[str, Any]) -> None:
    check_lr(options["lr"])
    check_betas(options["betas"])
    check_positive("epsilon", options["eps"])
    check_non_negative("weight_decay", options["weight_decay"])
    check_non_negative("initial_accumulator", options["initial_accumulator"])
