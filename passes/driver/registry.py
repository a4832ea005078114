"""Passes, and the registry of all that there are.

A pass of srjit is one file named after it: ``srjit-insert-quantize`` is ``insert_quantize.py``. It
is imported when its name is first used, so that ``srjit-opt`` starts as fast with thirty passes as
with one. Anybody's pass is found if it was registered by the decorator, or if its distribution has
an entry point in the group ``srjit.passes``, called as the pass is.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib
import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from srjit.passes.driver.options import nearest, options_of

if TYPE_CHECKING:
    from srjit._mlir import ir

ENTRY_POINTS = "srjit.passes"
_PREFIX = "srjit-"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class PassError(Exception):
    """A pass cannot do what it was asked to.

    Attributes:
      op: the operation at whose location MLIR reports it, or None for the module.
      message: what is wrong, and what the pass needs.
    """

    def __init__(self, op: ir.Operation | ir.OpView | None, message: str) -> None:
        super().__init__(message)
        self.op = op
        self.message = message


class UnknownPassError(LookupError):
    """No pass has this name; the message has the nearest ones."""


class Pass(abc.ABC):
    """A change to a module; subclasses are frozen dataclasses whose fields are their options.

    Fields are ``str``, ``int``, ``bool``, ``float``, a ``Literal`` of strings, or a ``tuple`` of
    any number of ``str`` or of ``int``, and have defaults. One of ``str | object`` takes objects
    from Python, where text names them: a pipeline prints the names. In pipelines they are written
    with hyphens: ``max_size`` is ``srjit-a{max-size=3}``.

    Attributes:
      name: what pipelines call it.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def run(self, module: ir.Operation) -> Mapping[str, int] | None:
        """Changes a ``builtin.module`` in place; its context and a location are entered.

        Returns:
          Statistics, if it has any: numbers by what they count.

        Raises:
          PassError: it cannot; whoever runs it makes an MLIR diagnostic of that.
        """


P = TypeVar("P", bound=type[Pass])
_registered: dict[str, type[Pass]] = {}


def register(cls: P) -> P:
    """Makes a pass known by its name: in pipelines, to ``srjit-opt`` and in its lists.

    Raises:
      TypeError: it is not a frozen dataclass, or an option's type or name cannot be written.
      ValueError: its name is malformed or is another pass's.
    """
    if not (dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):  # pyright: ignore
        raise TypeError(
            f"{cls.__name__} has to be a frozen dataclass: write @register above "
            "@dataclasses.dataclass(frozen=True, kw_only=True)"
        )
    name = getattr(cls, "name", "")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{cls.__name__}.name is {name!r}; it has to be like 'my-pass-2'")
    options_of(cls)  # raises for an option that cannot be written
    if name in _builtin_modules() and cls.__module__ != _builtin_modules()[name]:
        raise ValueError(f"{name!r} is a pass of srjit's own: choose another name for {cls!r}")
    other = _registered.get(name)
    # A cell of a notebook that is run again defines its pass again.
    if other is not None and _origin(other) != _origin(cls):
        raise ValueError(f"{_origin(other)} is called {name!r} already")
    _registered[name] = cls
    return cls


def find(name: str) -> type[Pass]:
    """The pass of that name.

    Raises:
      UnknownPassError: there is none.
    """
    if name not in _registered:
        if name in _builtin_modules():
            importlib.import_module(_builtin_modules()[name])
        elif name in _entry_points():
            _load(_entry_points()[name])
        else:
            raise UnknownPassError(f"unknown pass {name!r}{nearest(name, names())}")
    return _registered[name]


def knows(name: str) -> bool:
    """True if ``find`` finds it; imports nothing, and reads entry points last."""
    return name in _registered or name in _builtin_modules() or name in _entry_points()


def names() -> list[str]:
    """The names of all passes that there are, sorted."""
    return sorted({*_registered, *_builtin_modules(), *_entry_points()})


def builtin_names() -> list[str]:
    """The names of srjit's own passes, sorted."""
    return sorted(_builtin_modules())


@functools.cache
def _builtin_modules() -> Mapping[str, str]:
    passes = Path(__file__).parents[1]
    stems = sorted(path.stem for path in passes.glob("[!_]*.py"))
    return {_PREFIX + stem.replace("_", "-"): f"srjit.passes.{stem}" for stem in stems}


@functools.cache
def _entry_points() -> Mapping[str, importlib.metadata.EntryPoint]:
    return {e.name: e for e in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def _load(entry: importlib.metadata.EntryPoint) -> None:
    owner = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a distribution"
    origin = f"entry point {entry.name} = {entry.value!r} of {owner} in group {ENTRY_POINTS}"
    try:
        loaded = entry.load()
    except Exception as error:
        raise UnknownPassError(f"{origin} cannot be loaded: {error}") from error
    if isinstance(loaded, type) and issubclass(loaded, Pass) and loaded.name == entry.name:
        register(loaded)
    elif entry.name not in _registered:
        raise UnknownPassError(f"{origin} gives no pass called {entry.name!r}")


def _origin(cls: type[Pass]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
