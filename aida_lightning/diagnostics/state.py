"""Pure functions that read an optimizer's last step from its state, chosen by its class."""

from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor
from torch.optim import Optimizer

from aida_lightning.diagnostics._dispatch import ByClass
from aida_lightning.diagnostics.reductions import dense


@ByClass
def stepsize(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    r"""Compute the elementwise adaptive stepsizes of one layer from an optimizer's state.

    They are the :math:`s` in :math:`x \leftarrow x - \eta \, m / (1 - \beta_1^t) \, s`, without the
    learning rate and without the correction of the momentum's bias. If the optimizer has no
    momentum, they multiply the gradient. The page about reading the charts lists the known classes.

    To add a class, register a function for it with ``stepsize.register``, or provide an entry point
    in the group ``aida_lightning.stepsize``. The entry point's name is the dotted path of the
    class, of its module or of its package. Its value is a module that registers the functions; it
    is imported when such an optimizer is first used.

    Args:
        optimizer: the optimizer, whose class chooses the function.
        group: parameter group of the layer.
        state: ``optimizer.state[parameter]`` of the layer, which must not be empty. A registered
            function must change neither the state nor the group.

    Returns:
        A real tensor of any shape, on the state's device.

    Raises:
        NotImplementedError: neither the class nor any of its bases is known, or the optimizer has
            no adaptive stepsizes.

    Example:
        >>> import torch
        >>> class Mine(torch.optim.SGD):
        ...     pass
        >>> @stepsize.register
        ... def _(optimizer: Mine, group, state):
        ...     return 1 / (state["square_avg"].sqrt() + group["eps"])
        >>> has_stepsize(Mine([torch.zeros(1)]))
        True
    """
    raise NotImplementedError(
        f"{type(optimizer).__name__} has no known adaptive stepsizes; register a function for its "
        "class with `aida_lightning.stepsize.register`"
    )


def has_stepsize(optimizer: Optimizer) -> bool:
    """Tell whether the optimizer is known to have adaptive stepsizes, which ``stepsize`` computes.

    Example:
        >>> import torch
        >>> has_stepsize(torch.optim.SGD([torch.zeros(1)]))
        False
    """
    function = stepsize.dispatch(type(optimizer))
    return function is not stepsize.dispatch(object) and not isinstance(function, NoStepsize)


def why_none(optimizer: Optimizer) -> str | None:
    """Return the reason why an optimizer of a known class has no adaptive stepsizes.

    Returns:
        The reason, as a clause; None if the optimizer has adaptive stepsizes or its class is
        unknown.

    Example:
        >>> import torch
        >>> why_none(torch.optim.SGD([torch.zeros(1)]))
        'one learning rate moves all elements of a layer'
    """
    function = stepsize.dispatch(type(optimizer))
    return function.why if isinstance(function, NoStepsize) else None


@dataclass(frozen=True)
class NoStepsize:
    """The entry to register with ``stepsize`` for a class that has no adaptive stepsizes.

    Args:
        why: reason, as a clause.

    Example:
        >>> import torch
        >>> class Mine(torch.optim.Adam):
        ...     pass
        >>> mine = stepsize.register(Mine, NoStepsize("its update is the sign of the momentum"))
        >>> has_stepsize(Mine([torch.zeros(1)]))
        False
    """

    why: str

    def __call__(self, optimizer: Optimizer, *args: Any) -> NoReturn:
        """Raise a NotImplementedError that gives the reason."""
        raise NotImplementedError(
            f"{type(optimizer).__name__} has no adaptive stepsizes: {self.why}"
        )


@ByClass
def momentum(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any]) -> Tensor | None:
    r"""Return the momentum: the moving average, or sum, of gradients that the step follows.

    It has the gradient's shape and sign; with ``maximize``, it has the opposite sign. Unless
    another function is registered for the class, it is the first tensor in the state that is named
    ``exp_avg``, ``momentum_buffer`` or ``momentum``. For RMSprop, it is the sum of gradients that
    are already multiplied by the stepsizes; for AdaFactor, it is the average of whole updates.

    Args:
        optimizer: the optimizer, whose class chooses the function.
        group: parameter group of the layer.
        state: ``optimizer.state[parameter]`` of the layer.

    Returns:
        A tensor, which must not be changed, or None if the optimizer has no momentum.

    Example:
        >>> import torch
        >>> param = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.SGD([param], lr=0.1, momentum=0.9)
        >>> param.grad = torch.ones(2)
        >>> optimizer.step()
        >>> momentum(optimizer, optimizer.param_groups[0], optimizer.state[param])
        tensor([1., 1.])
    """
    found = (state.get(name) for name in ("exp_avg", "momentum_buffer", "momentum"))
    return next((dense(value) for value in found if isinstance(value, Tensor)), None)


@ByClass
def second_moment(
    optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any]
) -> Tensor | None:
    r"""Return the second moment :math:`v` of each element, without a correction of its bias.

    Unless another function is registered for the class, it is the first tensor in the state that is
    named ``exp_avg_sq`` or ``exp_avg_var`` (preceded by ``max_`` for AMSGrad), ``square_avg`` or
    ``sum``.

    Args:
        optimizer: the optimizer, whose class chooses the function.
        group: parameter group of the layer.
        state: ``optimizer.state[parameter]`` of the layer.

    Returns:
        A tensor, which must not be changed, or None if the optimizer has no second moment. It has
        the parameter's shape, unless the optimizer averages over elements, as ``LAdam`` does.

    Example:
        >>> import torch
        >>> param = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.Adam([param], betas=(0.9, 0.5))
        >>> param.grad = torch.ones(2)
        >>> optimizer.step()
        >>> second_moment(optimizer, optimizer.param_groups[0], optimizer.state[param])
        tensor([0.5000, 0.5000])
    """
    names = ("max_exp_avg_sq", "max_exp_avg_var", "exp_avg_sq", "exp_avg_var", "square_avg", "sum")
    found = (state.get(name) for name in names)
    return next((dense(value) for value in found if isinstance(value, Tensor)), None)


@ByClass
def stepsize_ceiling(optimizer: Optimizer, group: dict[str, Any]) -> float | None:
    r"""Return the largest value that an adaptive stepsize can have with the options of its group.

    For the family, it is :math:`\sqrt{(1 - \beta_2) / \epsilon}`, because :math:`\epsilon` is added
    to :math:`v` at every step. AdaBelief and Adam+ add it to the denominator as well, so their
    ceiling is slightly lower. That of SETAdam is :math:`1 / ((1 - \tau) \sqrt \epsilon)`. To add an
    optimizer, register a function for its class.

    Args:
        optimizer: the optimizer, whose class chooses the function.
        group: the parameter group.

    Returns:
        The ceiling, or None if none is known for the class.

    Example:
        >>> import torch
        >>> from aida_lightning import Aida
        >>> optimizer = Aida([torch.zeros(1)], betas=(0.9, 0.999), eps=1e-5)
        >>> round(stepsize_ceiling(optimizer, optimizer.param_groups[0]), 2)
        10.0
    """
    return None


@ByClass
def last_update(
    optimizer: Optimizer,
    group: dict[str, Any],
    state: dict[str, Any],
    param: Tensor,
    lr: float | Tensor | None = None,
) -> Tensor | None:
    r"""Compute, from a layer's state, what the last step added to the parameter.

    The update is :math:`-\eta \, m / (1 - \beta_1^t) \, s`, plus the part of a decoupled weight
    decay. By default, only the family's classes are known. In half precision, the result is the
    update before :math:`x` was rounded.

    Args:
        optimizer: the optimizer, whose class chooses the function.
        group: parameter group of the layer.
        state: ``optimizer.state[parameter]`` of the layer, which must not be empty.
        param: the parameter, which must not have changed since the step.
        lr: learning rate of that update. None, the default, uses the group's current one.

    Returns:
        A real tensor of the parameter's shape (with an additional last dimension of 2 for a complex
        parameter), or None if the class is unknown. In that case, the update can only be computed
        from a copy of the parameter from before the step.

    Example:
        >>> import torch
        >>> from aida_lightning import Aida
        >>> param = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = Aida([param])
        >>> param.grad = torch.ones(2)
        >>> optimizer.step()
        >>> (group,) = optimizer.param_groups
        >>> torch.allclose(last_update(optimizer, group, optimizer.state[param], param), param)
        True
    """
    return None
