"""Reads Python's stack: the line of the user's code, and the arguments of JAX's own functions."""

from __future__ import annotations

import inspect
import itertools
import os
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax

_FOLDERS = tuple(os.path.dirname(os.path.abspath(f)) + os.sep for f in (jax.__file__, __file__))
# Functions of JAX that trace others, and the name that each has for what they were called with.
_GIVEN = {"_trace_for_jit": "args_ft", "fun_remat": "args_flat"}


def warn(message: str) -> None:
    """Warns, at the line of the user's own code."""
    ours = itertools.takewhile(lambda f: f.f_code.co_filename.startswith(_FOLDERS), _frames())
    warnings.warn(message, stacklevel=1 + len(list(ours)))


def passed(argument: Any) -> Any:
    """The value that a jit or checkpoint was called with, for its argument in the trace.

    JAX tells it nowhere else. None if this is no such argument, or if JAX has other names.
    """
    place: int | None = None
    for frame in _frames():
        name = frame.f_code.co_name
        if not frame.f_code.co_filename.startswith(_FOLDERS[0]):
            continue
        if place is not None and name in _GIVEN:
            given = _listed(frame, _GIVEN[name])
            return given[place] if place < len(given) else None
        if name.startswith("trace_to_jaxpr"):
            if place is not None:
                return None
            traced = enumerate(_listed(frame, "in_tracers"))
            place = next((i for i, x in traced if x is argument), None)
    return None


def _listed(frame: FrameType, name: str) -> list[Any]:
    """A list that is a local variable of a frame; empty if it has none of that name.

    Until Python 3.12 a frame keeps what it has been asked for, where JAX's check for leaks of
    tracers would find it.
    """
    values: Any = frame.f_locals
    found = list(values.get(name, ()))
    if isinstance(values, dict):
        values.clear()
    return found


def _frames() -> Iterator[FrameType]:
    """The frames of the stack, from that of the caller."""
    frame = inspect.currentframe()
    frame = frame and frame.f_back
    while frame is not None:
        yield frame
        frame = frame.f_back
