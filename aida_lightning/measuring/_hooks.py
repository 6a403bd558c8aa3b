"""Where an optimizer's steps begin and end, whatever its class."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer


class _Handle(Protocol):
    def remove(self) -> None: ...


class StepHooks:
    """Call functions before and after each step of an optimizer.

    Args:
        optimizer: the optimizer. One that has not called ``torch.optim.Optimizer.__init__`` has no
            hooks; its ``step`` is wrapped while these are attached.
        before: is called before a step.
        after: is called after a step, with the parameters whose gradient it had to take.
        given: is called when the gradients are there that a step takes, which its closure computes
            where it has one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        before: Callable[[], None],
        after: Callable[[set[Tensor]], None],
        given: Callable[[], None] | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._before, self._after, self._given = before, after, given
        self._depth = 0  # of the steps that are under way, a subclass's and that of its base
        self._handles: list[_Handle] = []

    def attach(self) -> None:
        try:
            self._handles = [
                self._optimizer.register_step_pre_hook(self._begin),
                self._optimizer.register_step_post_hook(self._end),
            ]
        except AttributeError:
            self._handles = [_WrappedStep(self._optimizer, self._begin, self._end)]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def reset(self) -> None:
        """Forget a step that is under way, as it is where one raised."""
        self._depth = 0

    # torch calls the hooks again where a subclass's step calls that of its base.
    def _begin(self, _: Any, args: Any, kwargs: Any) -> Any:
        self._depth += 1
        if self._depth > 1:
            return None
        self._before()
        if self._given is None:
            return None
        # Among the arguments may be the optimizer itself.
        given = (i for i, x in enumerate(args) if callable(x) and x is not self._optimizer)
        place = next(given, None)
        if place is not None:
            return (*args[:place], self._watched(args[place]), *args[place + 1 :]), kwargs
        if kwargs.get("closure") is not None:
            return args, {**kwargs, "closure": self._watched(kwargs["closure"])}
        self._given()
        return None

    def _watched(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        def computed(*args: Any, **kwargs: Any) -> Any:
            result = closure(*args, **kwargs)
            assert self._given is not None
            self._given()
            return result

        return computed

    def _end(self, *_: Any) -> None:
        self._depth -= 1
        if not self._depth:
            self._after({p for p in params_of(self._optimizer) if p.grad is not None})


class _WrappedStep:
    """Wraps the ``step`` of one optimizer until it is removed."""

    def __init__(self, optimizer: Any, begin: Callable[..., Any], end: Callable[..., None]) -> None:
        self._optimizer, self._own = optimizer, vars(optimizer).get("step")
        self._is_attached = True
        step = optimizer.step

        @wraps(step)  # LR schedulers look for a mark that theirs leaves on it.
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not self._is_attached:
                return step(*args, **kwargs)
            args, kwargs = begin(optimizer, args, kwargs) or (args, kwargs)
            result = step(*args, **kwargs)
            end()
            return result

        optimizer.step = self._wrapped = wrapped

    def remove(self) -> None:
        self._is_attached = False
        if vars(self._optimizer).get("step") is not self._wrapped:
            return  # Someone has wrapped it again.
        if self._own is None:
            del self._optimizer.step
        else:
            self._optimizer.step = self._own


def params_of(optimizer: Optimizer) -> list[Tensor]:
    """Return all parameters of an optimizer's groups."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def named(optimizers: Iterable[Any]) -> dict[str, Optimizer]:
    """Name optimizers and those that they hold, by their classes: Adam, Adam-1, Adam-2.

    Example:
        >>> import torch
        >>> class Both(torch.optim.Optimizer):
        ...     def __init__(self, *optimizers):
        ...         super().__init__(optimizers[0].param_groups, {})
        ...         self.optimizers = optimizers
        >>> params = [torch.nn.Parameter(torch.zeros(1))]
        >>> [*named([Both(torch.optim.SGD(params), torch.optim.SGD(params))])]
        ['Both', 'SGD', 'SGD-1']
    """
    found: list[Optimizer] = []
    for optimizer in optimizers:
        _add(optimizer, found)
    seen: Counter[str] = Counter()
    names: dict[str, Optimizer] = {}
    for optimizer in found:
        name = type(optimizer).__name__
        names[f"{name}-{seen[name]}" if seen[name] else name] = optimizer
        seen[name] += 1
    return names


def _add(optimizer: Any, found: list[Optimizer]) -> None:
    """Add an optimizer and what it holds, in the place of a wrapper of Lightning what is in it."""
    if any(optimizer is other for other in found):
        return
    if not any(cls.__name__ in _WRAPPERS for cls in type(optimizer).__mro__):
        found.append(optimizer)
    for value in getattr(optimizer, "__dict__", {}).values():
        held = [*value.values()] if isinstance(value, Mapping) else value
        for item in held if isinstance(held, list | tuple) else [held]:
            if isinstance(item, Optimizer):
                _add(item, found)


# They are of a class that is made of these and of the optimizer's, and share what it holds.
_WRAPPERS = ("LightningOptimizer", "_FabricOptimizer")
