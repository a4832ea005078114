"""Names and signatures of functions that users give to srjit."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any


def name_of(fun: Callable[..., Any]) -> str:
    """Returns the name that messages use for a function."""
    return getattr(fun, "__name__", type(fun).__name__)


def is_named(fun: Any) -> bool:
    """True if a function is found by its name in its module, as pickle looks for it."""
    here: Any = sys.modules.get(str(getattr(fun, "__module__", "")))
    for step in str(getattr(fun, "__qualname__", "")).split("."):
        here = getattr(here, step, None)
    return here is fun


def parameters_of(fun: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Returns the parameters of a function, or None where Python does not know them."""
    try:
        return list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        return None


def signature_with_key(fun: Callable[..., Any]) -> inspect.Signature:
    """Returns the signature of ``fun`` with the keyword ``sr_key`` that srjit adds to it."""
    parameters = parameters_of(fun)
    if parameters is None:
        kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        parameters = [
            inspect.Parameter(n, k) for n, k in zip(("args", "kwargs"), kinds, strict=True)
        ]
    key = inspect.Parameter("sr_key", inspect.Parameter.KEYWORD_ONLY, default=None)
    last = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    cut = len(parameters) - last
    return inspect.Signature([*parameters[:cut], key, *parameters[cut:]])


def called_as(fun: Callable[..., Any], call: Callable[..., Any], *first: str) -> Callable[..., Any]:
    """Returns ``call(*first, args, kwargs)`` with fun's name and its signature after ``first``."""
    count = len(first)

    def called(*args: Any, **kwargs: Any) -> Any:
        return call(*args[:count], args[count:], kwargs)

    functools.update_wrapper(called, fun)
    parameters = parameters_of(fun)
    if parameters is None:
        del called.__wrapped__  # type: ignore[attr-defined]  # a signature is looked for there
    else:
        own = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in first]
        called.__signature__ = inspect.Signature([*own, *parameters])  # type: ignore[attr-defined]
    return called
