"""Formulas of adaptive stepsizes, several of which belong to more than one optimizer.

Each formula takes the optimizer, the group and the state of one layer, and returns a real tensor.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aida_lightning.diagnostics.rates import step_of
from aida_lightning.diagnostics.reductions import dense, real

Entries = dict[str, Any]


def adam(
    optimizer: Optimizer,
    group: Entries,
    state: Entries,
    *,
    v: str = "exp_avg_sq",
    eps_first: bool = False,
    eps_in_root: float = 0.0,
) -> Tensor:
    r"""Compute :math:`s = 1 / (\sqrt{v} / c + \epsilon)` with :math:`c = \sqrt{1 - \beta_2^t}`.

    For AMSGrad, :math:`v` is the largest second moment so far. If ``bias_correction`` is off in the
    group, :math:`c = 1`. Kingma and Ba, arXiv 1412.6980, algorithm 1; Reddi, Kale and Kumar, arXiv
    1904.09237, algorithm 2.

    ``v`` is the name of the second moment in the state. ``eps_first`` adds :math:`\epsilon` before
    the correction, :math:`s = c / (\sqrt{v} + \epsilon)`. ``eps_in_root`` is added to :math:`v`.
    """
    root, correction = _root(group, state, v, eps_in_root), _correction(group, state)
    if eps_first:
        return correction / root.add_(group["eps"])
    return root.div_(correction).add_(group["eps"]).reciprocal_()


def uncorrected(
    optimizer: Optimizer, group: Entries, state: Entries, *, v: str = "exp_avg_sq"
) -> Tensor:
    r"""Compute :math:`s = 1 / (\sqrt{v} + \epsilon)`."""
    return _root(group, state, v).add_(group["eps"]).reciprocal_()


def rectified_adam(
    optimizer: Optimizer,
    group: Entries,
    state: Entries,
    *,
    v: str = "exp_avg_sq",
    eps_in_root: float = 0.0,
) -> Tensor:
    r"""Compute :math:`s = r c / (\sqrt{v} + \epsilon)` with the rectification :math:`r`.

    While the average is too short (a length of 5 or less), the step does not adapt: :math:`s = 1`,
    or :math:`s = 0` for an optimizer that waits (``degenerated_to_sgd=False``). Liu, Jiang, He,
    Chen, Liu, Gao and Han, arXiv 1908.03265, algorithm 2.
    """
    beta2, t = group["betas"][1], double(step_of(group, state))
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * beta2**t / (1 - beta2**t)
    rectification = ((length - 4) * (length - 2) * longest) / (
        (longest - 4) * (longest - 2) * length
    )
    root = _root(group, state, v, eps_in_root)
    adaptive = (rectification * (1 - beta2**t)).sqrt() / (root + group["eps"])
    adapts = length > option(optimizer, group, "n_sma_threshold", 5)
    plain = float(option(optimizer, group, "degenerated_to_sgd", True))
    if (
        adapts.device != root.device
    ):  # It is known on the host, and a copy of it would be waited for.
        return adaptive.to(root.dtype) if adapts else torch.full_like(root, plain)
    return torch.where(adapts, adaptive.to(root.dtype), plain)


def adamax(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    r"""Compute :math:`s = 1 / u`, where the decaying maximum :math:`u` includes :math:`\epsilon`.

    Kingma and Ba, arXiv 1412.6980, algorithm 2.
    """
    return real(state["exp_inf"]).reciprocal()


def adagrad(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    r"""Compute :math:`s = 1 / (\sqrt{\sum g^2} + \epsilon)`, which multiplies the gradient.

    Duchi, Hazan and Singer, JMLR 12, 2011.
    """
    return uncorrected(optimizer, group, state, v="sum")


def rmsprop(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    r"""Compute :math:`s = 1 / (\sqrt{v} + \epsilon)`, which multiplies the gradient.

    If ``centered``, the squared average gradient is subtracted from :math:`v`. With a momentum, the
    optimizer sums the gradients after this multiplication. Hinton, lecture 6e; Graves, arXiv
    1308.0850, equations 38 to 45.
    """
    v = real(state["square_avg"])
    if group["centered"]:
        average = real(state["grad_avg"])
        v = v.addcmul(average, average, value=-1)
    return v.sqrt().add_(group["eps"]).reciprocal_()


def adadelta(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    r"""Compute :math:`s = \sqrt{u + \epsilon} / \sqrt{v + \epsilon}`; it multiplies the gradient.

    :math:`u` is the average of squared updates, including the last one. The step itself used the
    average from before that update, which the optimizer does not keep. Zeiler, arXiv 1212.5701,
    algorithm 1.
    """
    u, v = real(state["acc_delta"]), real(state["square_avg"])
    return u.add(group["eps"]).div_(v.add(group["eps"])).sqrt_()


def rprop(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    """Return the stepsizes in the state, which multiply the gradient's sign; no learning rate does.

    Riedmiller and Braun, ICNN 1993.
    """
    return real(state["step_size"])


def factored(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    r"""Compute :math:`s = 1 / \sqrt{v}` with :math:`v = r c^T / \operatorname{mean}(r)`.

    :math:`r` and :math:`c` are the means of a matrix's squared gradients in rows and in columns;
    for a vector, the state holds :math:`v` itself. Shazeer and Stern, arXiv 1804.04235, algorithms
    4 and 5.
    """
    s: Tensor
    if "exp_avg_sq_row" not in state:
        s = state["exp_avg_sq"].rsqrt()
        return s
    columns: Tensor = state["exp_avg_sq_col"]
    rows = state["exp_avg_sq_row"]
    s = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
    return s * columns.rsqrt().unsqueeze(-2)


def torch_adafactor(optimizer: Optimizer, group: Entries, state: Entries) -> Tensor:
    r"""Compute :math:`s = 1 / \max(\sqrt{v}, \epsilon_1)` with :math:`v` as in ``factored``.

    The stepsizes exclude two factors that a layer's elements share: :math:`\max(\epsilon_2,
    \operatorname{RMS}(x))`, and the factor that clips the update's root mean square at :math:`d`.
    """
    held = state["variance" if "variance" in state else "row_var"]
    eps = torch.finfo(held.dtype).eps if group["eps"][0] is None else group["eps"][0]
    v = held
    if "variance" not in state:
        v = (held @ state["col_var"]).div_(held.mean(dim=-2, keepdim=True).clamp_(min=eps))
    s: Tensor = v.clamp(min=eps**2).rsqrt_()
    return s


def option(optimizer: Optimizer, group: Entries, name: str, default: Any) -> Any:
    """Return an option, which some optimizers keep in their groups and others as an attribute."""
    return group.get(name, getattr(optimizer, name, default))


def double(number: Tensor | float) -> Tensor:
    """Return a number as a tensor of float64 on its device."""
    return torch.as_tensor(number, dtype=torch.float64)


def _root(group: Entries, state: Entries, v: str, eps: float = 0.0) -> Tensor:
    amsgrad = group.get("amsgrad") or group.get("ams_bound")
    moment = real(dense(state[f"max_{v}" if amsgrad else v]))
    return (moment + eps if eps else moment).sqrt()


def _correction(group: Entries, state: Entries) -> Tensor:
    beta2 = group["betas"][1] if group.get("bias_correction", True) else 0.0
    return (1 - beta2 ** double(step_of(group, state))).sqrt()
