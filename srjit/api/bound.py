"""Methods: an srjit function with the object that it was taken from as its first argument."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

# What takes the function's own arguments.
TAKING = frozenset(
    {"aot", "diagnose", "eval_shape", "explain", "init_state", "lower", "replay", "rewritten"}
    | {"trace", "verify"}
)


class BoundMethod:
    """A method of an object, decorated with ``srjit``: called, and looked at, without the object.

    It has all that the function in the class has: ``self.step.explain(params, x)``. (Bound methods
    of ``jax.jit`` want the object again: ``self.step.lower(self, params, x)``. That works, too.)
    Calls are counted by the function in the class, for all objects together.

    Attributes:
      __func__: the function in the class.
      __self__: the object.
    """

    __slots__ = ("__func__", "__self__", "__weakref__")

    def __init__(self, function: Callable[..., Any], instance: Any) -> None:
        object.__setattr__(self, "__func__", function)
        object.__setattr__(self, "__self__", instance)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Calls the function with the object first."""
        return self.__func__(self.__self__, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__func__, name)
        if name not in TAKING:
            return found

        @functools.wraps(found)
        def bound(*args: Any, **kwargs: Any) -> Any:
            if name == "replay" and not args:  # of the last call, which had the object
                return found(**kwargs)
            return found(*self.with_self(args, kwargs), **kwargs)

        return bound

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__func__, name, value)

    def with_self(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Returns the function's arguments: the object and ``args``, unless it is there already."""
        whole = (self.__self__, *args)
        if not args or args[0] is not self.__self__:
            return whole
        names = inspect.signature(self.__func__.__wrapped__).parameters  # type: ignore[attr-defined]
        own = {k: v for k, v in kwargs.items() if k in names}
        try:
            inspect.signature(self.__func__.__wrapped__).bind(*whole, **own)  # type: ignore[attr-defined]
        except TypeError:
            return args
        return whole

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's, without the object."""
        whole = inspect.signature(self.__func__)
        first, *rest = whole.parameters.values()
        if first.kind is first.VAR_POSITIONAL:
            rest = [first, *rest]
        return whole.replace(parameters=rest)

    @property
    def __doc__(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The function's."""
        return self.__func__.__doc__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundMethod):
            return NotImplemented
        return self.__self__ is other.__self__ and self.__func__ is other.__func__

    def __hash__(self) -> int:
        return hash((id(self.__self__), self.__func__))

    def __repr__(self) -> str:
        return (
            f"<bound method {self.__func__.__qualname__} of {self.__self__!r}: {self.__func__!r}>"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundMethod:
        return BoundMethod(self.__func__, copy.deepcopy(self.__self__, memo))

    def __reduce__(self) -> Any:
        return getattr, (self.__self__, self.__func__.__name__)


def unbound(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """A method's function and its arguments, the object among them; others as they are."""
    if isinstance(fn, BoundMethod):
        return fn.__func__, fn.with_self(args, kwargs)
    return fn, args
