"""Hooks at the start and the end of an optimizer's steps, whatever its class."""

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, wraps
from operator import is_
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


class StepHooks:
    """Call functions before and after each step of an optimizer.

    Args:
        optimizer: the optimizer. If it has not called ``torch.optim.Optimizer.__init__``, it has no
            hooks of its own, and its ``step`` is wrapped while these are attached.
        before: function to call before a step.
        given: function to call when the gradients for a step are available; if the step has a
            closure, the closure computes them.
        after: function to call after a step, with the parameters whose gradient the step used.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        before: Callable[[], None],
        given: Callable[[], None],
        after: Callable[[set[Tensor]], None],
    ) -> None:
        self._optimizer = optimizer
        self._before, self._given, self._after = before, given, after
        self._depth = 0  # number of nested steps in progress: a subclass's and its base's
        self._level = 0  # call depth at which the first of them began
        self._took: set[Tensor] | None = None
        self._handles: list[Any] = []

    def attach(self) -> None:
        try:
            self._handles = [
                self._optimizer.register_step_pre_hook(self.begin),
                self._optimizer.register_step_post_hook(self.end),
            ]
        except AttributeError:
            self._handles = [_listen(self._optimizer, self)]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self, _: Any, args: Any, kwargs: Any) -> Any:
        """Note the start of a step, and return its arguments with the closure wrapped."""
        level = _level()
        # torch calls the hooks again if a subclass's step calls its base's. A step that begins no
        # deeper than the first follows one that raised.
        if self._depth and level > self._level:
            self._depth += 1
            return None
        self._depth, self._level, self._took = 1, level, None
        self._before()
        watched = [self._watched(x) if _is_closure(place, x) else x for place, x in enumerate(args)]
        named = {key: self._watched(x) if _is_closure(key, x) else x for key, x in kwargs.items()}
        if all(map(is_, watched, args)) and all(map(is_, named.values(), kwargs.values())):
            self._are_given()
            return None
        return tuple(watched), named

    def end(self, *_: Any) -> None:
        """Note the end of a step."""
        self._depth -= 1
        if not self._depth:
            took, self._took = self._took, None
            self._after(_with_gradient(self._optimizer) if took is None else took)

    def _watched(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(closure, updated=())
        def computed(*args: Any, **kwargs: Any) -> Any:
            result = closure(*args, **kwargs)
            self._are_given()
            return result

        return computed

    def _are_given(self) -> None:
        self._took = _with_gradient(self._optimizer)
        self._given()


def _is_closure(place: int | str, argument: object) -> bool:
    """Tell whether a step's argument may be its closure, judging by its place or name and type."""
    if isinstance(argument, FunctionType | MethodType | partial):
        return True
    # The first argument is the optimizer itself.
    other = isinstance(argument, nn.Module | Optimizer | type)
    return place in (1, "closure") and callable(argument) and not other


def _level() -> int:
    """Return the call depth of the caller."""
    return sum(1 for _ in traceback.walk_stack(None))


def _with_gradient(optimizer: Optimizer) -> set[Tensor]:
    return {param for param in params_of(optimizer) if param.grad is not None}


class _Listener:
    """The handle that removes hooks from a wrapped ``step``, and the wrapper with the last ones."""

    def __init__(self, optimizer: Any, hooks: StepHooks) -> None:
        self._optimizer, self._hooks = optimizer, hooks
        self._listeners: list[StepHooks] = optimizer.step.listeners
        self._listeners.append(hooks)

    def remove(self) -> None:
        self._listeners.remove(self._hooks)
        step = vars(self._optimizer).get("step")
        # Someone else may have wrapped the step again.
        if not self._listeners and getattr(step, "listeners", None) is self._listeners:
            if step.own is None:
                del self._optimizer.step
            else:
                self._optimizer.step = step.own


def _listen(optimizer: Any, hooks: StepHooks) -> _Listener:
    """Call hooks around the ``step`` of an optimizer that lacks torch's hooks."""
    if not hasattr(vars(optimizer).get("step"), "listeners"):
        step, listeners = optimizer.step, list[StepHooks]()

        @wraps(step)  # LR schedulers look for the mark that they leave on the step.
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            given = (optimizer, *args), kwargs
            for each in listeners:
                given = each.begin(optimizer, *given) or given
            result = step(*given[0][1:], **given[1])
            for each in listeners:
                each.end()
            return result

        wrapped.listeners = listeners  # type: ignore[attr-defined]
        wrapped.own = vars(optimizer).get("step")  # type: ignore[attr-defined]
        optimizer.step = wrapped
    return _Listener(optimizer, hooks)


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
    """Add an optimizer and those that it holds; of a wrapper of Lightning's, add the content."""
    if any(optimizer is other for other in found):
        return
    if not any(cls.__name__ in _WRAPPERS for cls in type(optimizer).__mro__):
        found.append(optimizer)
    for name, value in getattr(optimizer, "__dict__", {}).items():
        if name not in ("state", "param_groups"):
            for held in _optimizers_in(value):
                _add(held, found)


def _optimizers_in(value: Any) -> Iterator[Optimizer]:
    if isinstance(value, Optimizer):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _optimizers_in(item)


# A wrapper's class derives from one of these and from the optimizer's class; the wrapper shares the
# optimizer's attributes.
_WRAPPERS = ("LightningOptimizer", "_FabricOptimizer")
