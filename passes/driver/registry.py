"""What a pass is, and which ones there are.

A pass of srjit is one file named after it: ``srjit-insert-quantize`` is ``insert_quantize.py``. It
is imported when its name is first used, so that ``srjit-opt`` starts as fast with thirty passes as
with one. Anybody's pass is found if it was registered by the decorator, or if its distribution has
an entry point in the group ``srjit.passes``, called as the pass is.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import functools
import importlib
import importlib.metadata
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

if TYPE_CHECKING:
    from srjit._mlir import ir

ENTRY_POINTS = "srjit.passes"
_PREFIX = "srjit-"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SCALARS = (str, int, bool, float)


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
    def run(self, module: ir.Operation) -> None:
        """Changes a ``builtin.module`` in place; its context and a location are entered.

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
    options_of(cls)  # says what is wrong with them
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
    """Whether ``find`` finds it; imports nothing, and reads entry points last."""
    return name in _registered or name in _builtin_modules() or name in _entry_points()


def names() -> list[str]:
    """The names of all passes that there are, sorted."""
    return sorted({*_registered, *_builtin_modules(), *_entry_points()})


def builtin_names() -> list[str]:
    """The names of srjit's own passes, sorted."""
    return sorted(_builtin_modules())


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"`` for the names most like ``name``, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


@functools.cache
def _builtin_modules() -> Mapping[str, str]:
    """Names of srjit's own passes, and the modules that they are in."""
    passes = Path(__file__).parents[1]
    stems = sorted(path.stem for path in passes.glob("[!_]*.py"))
    return {_PREFIX + stem.replace("_", "-"): f"srjit.passes.{stem}" for stem in stems}


@functools.cache
def _entry_points() -> Mapping[str, importlib.metadata.EntryPoint]:
    return {e.name: e for e in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def _load(entry: importlib.metadata.EntryPoint) -> None:
    """Imports what an entry point names: a pass, or a module that registers it."""
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


# ------------------------------------------------------------------------------------------ options


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a pass.

    Attributes:
      name: as pipelines write it.
      field: the field of the dataclass.
      element: the type of the value, or of the values of a list.
      is_list: whether it is a tuple.
      choices: all the values there are, or nothing if any will do.
      default: its value when it is not given.
    """

    name: str
    field: str
    element: type
    is_list: bool
    choices: tuple[str, ...]
    default: Any

    @property
    def wants(self) -> str:
        """What errors say a value has to be."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        kind = {
            str: "a string",
            int: "an integer",
            bool: "true or false",
            float: "a number",
        }[self.element]
        return f"a list (a,b,c), each {kind}" if self.is_list else kind


@functools.cache
def options_of(cls: type[Pass]) -> Mapping[str, Option]:
    """The options of a pass by name, in order.

    Raises:
      TypeError: a field has a type that no text stands for, or no default.
    """
    hints = typing.get_type_hints(cls)
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(cls)  # pyright: ignore
    options = [_option(cls, field, hints[field.name]) for field in fields if field.init]
    return {option.name: option for option in options}


def _option(cls: type[Pass], field: dataclasses.Field[Any], hint: Any) -> Option:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING:
        raise TypeError(f"option {field.name!r} of {cls.__name__} needs a default")
    name, args = field.name.replace("_", "-"), typing.get_args(hint)
    origin = typing.get_origin(hint)
    if hint in _SCALARS:
        return Option(name, field.name, hint, False, (), default)
    if args == (str, object):
        return Option(name, field.name, str, False, (), default)
    if origin is Literal and all(isinstance(choice, str) for choice in args):
        return Option(name, field.name, str, False, args, default)
    if origin is tuple and len(args) == 2 and args[0] in (str, int) and args[1] is Ellipsis:
        return Option(name, field.name, args[0], True, (), default)
    raise TypeError(
        f"option {field.name!r} of {cls.__name__} has type {hint}; it has to be str, int, bool, "
        "float, a Literal of strings, tuple[str, ...] or tuple[int, ...]"
    )
