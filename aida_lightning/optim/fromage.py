"""Fromage, a baseline of the paper's Table I."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from aida_lightning.optim._checks import check_gradient, check_lr


class Fromage(Optimizer):
    r"""SGD whose step is, in each layer, a fixed fraction of the layer's own norm.

    .. math::
        x_t = \frac{1}{\sqrt{1 + \eta^2}}
              \left( x_{t-1} - \eta \frac{\|x_{t-1}\|}{\|g_t\|} g_t \right)

    The ratio of the norms is left out where either of them is 0. Nothing is kept between steps.

    Args:
        params: parameters, or dicts that define groups of them. Each tensor is a layer.
        lr: learning rate :math:`\eta`, a float or a tensor of one element.
        maximize: maximize the objective instead of minimizing it.

    Raises:
        ValueError: ``lr`` is negative or NaN.
        TypeError: ``lr`` is not a number.
        RuntimeError: ``step`` met a sparse or complex gradient.

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
        check_lr(lr)
        super().__init__(params, {"lr": lr, "maximize": maximize})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose own options are checked as the constructor's are."""
        check_lr(param_group.get("lr", self.defaults["lr"]))
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
                    _update(x, x.grad, float(group["lr"]), group["maximize"])
        return loss


def _update(x: Tensor, g: Tensor, lr: float, maximize: bool) -> None:
    # A float16 norm overflows; what meets a float32 gradient is float32.
    g = g.to(torch.promote_types(g.dtype, torch.float32))
    norm_x = torch.linalg.vector_norm(x, dtype=g.dtype)
    norm_g = torch.linalg.vector_norm(g)
    # Chosen on the device: asking which it is would wait for the device once a layer.
    direction = torch.where((norm_x > 0) & (norm_g > 0), g / norm_g * norm_x, g)
    if maximize:
        direction = -direction
    x.copy_((x - lr * direction) / math.sqrt(1 + lr**2))
