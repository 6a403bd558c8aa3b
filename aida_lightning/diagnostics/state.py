"""What an optimizer's state tells of its last step: pure functions, chosen by its class."""

from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor
from torch.optim import Optimizer

from aida_lightning.diagnostics._dispatch import ByClass
from aida_lightning.diagnostics.reductions import dense


@ByClass
def stepsize(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    r"""Compute the elementwise adaptive stepsizes of one layer from an optimizer's state.

    They are the :math:`s` of :math:`x \leftarrow x - \eta \, m / (1 - \beta_1^t) \, s`, without the
    learning rate and without the correction of the momentum's bias. Of an optimizer without a
    momentum they multiply the gradient. The page on reading the charts has a table of the classes
    that are known. To add another, register a function for it, here or by an entry point of the
    group ``aida_lightning.stepsize``. The entry point's name is the dotted path of the class, or of
    a module or package that it is in; its value is a module that registers the functions, and that
    is imported when an optimizer of such a class is met.

    Args:
        optimizer: the optimizer; its class chooses the function.
        group: the parameter group that the layer is in.
        state: ``optimizer.state[parameter]`` of the layer, which is not empty. Neither it nor the
            group may be changed.

    Returns:
        A real tensor on the state's device, of any shape.

    Raises:
        NotImplementedError: neither the class nor any of its bases is known, or it has none.

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
        f"{type(optimizer).__name__} has no adaptive stepsizes that are known"
    )


def has_stepsize(optimizer: Optimizer) -> bool:
    """Tell whether ``stepsize`` knows the optimizer's class, and that it has adaptive stepsizes.

    Example:
        >>> import torch
        >>> has_stepsize(torch.optim.SGD([torch.zeros(1)]))
        False
    """
    function = stepsize.dispatch(type(optimizer))
    return function is not stepsize.dispatch(object) and not isinstance(function, NoStepsize)


def why_none(optimizer: Optimizer) -> str | None:
    """Say why an optimizer of a class that is known has no adaptive stepsizes.

    Returns:
        A part of a sentence; None where it has some, or where its class is not known.

    Example:
        >>> import torch
        >>> why_none(torch.optim.SGD([torch.zeros(1)]))
        'one learning rate moves all elements of a layer'
    """
    function = stepsize.dispatch(type(optimizer))
    return function.why if isinstance(function, NoStepsize) else None


@dataclass(frozen=True)
class NoStepsize:
    """What is registered with ``stepsize`` for a class that has no adaptive stepsizes.

    Args:
        why: a part of a sentence, the reason.

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
        """Raise with the reason."""
        raise NotImplementedError(
            f"{type(optimizer).__name__} has no adaptive stepsizes: {self.why}"
        )


@ByClass
def momentum(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any]) -> Tensor | None:
    r"""Return the moving average, or sum, of gradients that the optimizer's step goes along.

    It has the gradient's shape and sign; with ``maximize`` that of the gradient turned round. The
    first tensor of the names ``exp_avg``, ``momentum_buffer`` and ``momentum`` is taken, unless
    another function is registered for the class. RMSprop's is the sum of gradients that the
    stepsizes have multiplied already, AdaFactor's the average of whole updates.

    Args:
        optimizer: the optimizer; its class chooses the function.
        group: the parameter group that the layer is in.
        state: ``optimizer.state[parameter]`` of the layer.

    Returns:
        A tensor, which is not to be changed; None where there is none.

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
def stepsize_ceiling(optimizer: Optimizer, group: dict[str, Any]) -> float | None:
    r"""Return the largest value that an adaptive stepsize can have, by the options of its group.

    It is :math:`\sqrt{(1 - \beta_2) / \epsilon}` for the family, which adds :math:`\epsilon` to
    :math:`v` at every step. AdaBelief and Adam+ add it to the denominator as well, so that their
    ceiling is just below; that of SETAdam is :math:`1 / ((1 - \tau) \sqrt \epsilon)`. To add an
    optimizer, register a function for its class.

    Args:
        optimizer: the optimizer; its class chooses the function.
        group: the parameter group.

    Returns:
        The ceiling, or None where none is known of the class.

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
    r"""Compute from a layer's state what its last step added to the parameter.

    It is :math:`-\eta \, m / (1 - \beta_1^t) \, s`, plus the part of a decoupled weight decay. Only
    the family's is known. In half precision it is the update from before :math:`x` was rounded.

    Args:
        optimizer: the optimizer; its class chooses the function.
        group: the parameter group that the layer is in.
        state: ``optimizer.state[parameter]`` of the layer, which is not empty.
        param: the parameter, which no one has changed since.
        lr: the learning rate of that update. None, the default, takes the group's present one.

    Returns:
        A real tensor of the parameter's shape (complex parameters: a last dimension of 2 is added),
        or None where the class is not known. Only a copy from before the step helps then.

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
