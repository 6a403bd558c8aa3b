"""Functions that dispatch on the optimizer's class, even if its package is not imported here."""

import warnings
from collections.abc import Callable, Iterator
from functools import singledispatch, update_wrapper
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")
ENTRY_POINTS = "aida_lightning.stepsize"

# Callables that register functions for a class, by the path of the class, its module or package.
adapters: dict[str, Callable[[type], None]] = {}
_met: WeakSet[type] = WeakSet()


class ByClass(Generic[T]):
    """Turn a function into one that dispatches on its first argument, as ``singledispatch`` does.

    When a class is dispatched on for the first time, the entry points and the adapters that are
    named after it or after one of its bases register their functions for it.
    """

    def __init__(self, function: Callable[..., T]) -> None:
        self.default = function
        dispatched = singledispatch(function)
        self.registry = dispatched.registry
        self._register, self._dispatch = dispatched.register, dispatched.dispatch
        update_wrapper(self, function)

    def __call__(self, optimizer: object, /, *args: Any, **kwargs: Any) -> T:
        return self.dispatch(type(optimizer))(optimizer, *args, **kwargs)

    def register(self, cls: Any, function: Any = None) -> Any:
        """Register a function for a class, as ``singledispatch`` does, directly or as decorator."""
        if function is None:
            return self._register(cls)
        if not callable(function):
            raise TypeError(f"The function for {cls} must be callable, got {function!r}")
        return self._register(cls, function)

    def __reduce__(self) -> str:
        return self.__qualname__  # type: ignore[attr-defined, no-any-return]  # like a function

    def dispatch(self, cls: type) -> Callable[..., T]:
        """Return the function of the class, or of its nearest base that has one."""
        for base in cls.__mro__:
            if base not in _met:
                _met.add(base)
                _meet(base)
        return self._dispatch(cls)

    def add(self, cls: type, function: Callable[..., T]) -> None:
        """Register a function for a class that has none."""
        if cls not in self.registry:
            self.register(cls, function)


def _meet(cls: type) -> None:
    names = [*_prefixes(f"{cls.__module__}.{cls.__qualname__}")]
    if names[-1] in ("builtins", "typing", "torch", "aida_lightning"):
        return  # These need no entry points, and a lookup reads each installed distribution.
    for entry_point in entry_points(group=ENTRY_POINTS):
        if entry_point.name in names:
            try:
                entry_point.load()
            except Exception as error:  # Whatever fails there, the training continues.
                warnings.warn(
                    f"The entry point '{entry_point.name} = {entry_point.value}' of the group "
                    f"{ENTRY_POINTS} cannot be loaded ({type(error).__name__}: {error}).",
                    stacklevel=3,
                )
    for name in names:
        if name in adapters:
            adapters[name](cls)
            break


def _prefixes(path: str) -> Iterator[str]:
    """Yield a dotted path and the paths that contain it, the longest first."""
    while path:
        yield path
        path = path.rpartition(".")[0]
