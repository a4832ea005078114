"""Frozen dataclasses as MLIR dictionary attributes, and back."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from srjit._mlir import ir
from srjit.program.stablehlo import operations

T = TypeVar("T")
_SCALARS: dict[type, Callable[[Any], ir.Attribute]] = {
    bool: ir.BoolAttr.get,
    int: lambda value: ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value),
    float: ir.FloatAttr.get_f64,
    str: ir.StringAttr.get,
}


def encode(value: Any) -> Any:
    """A value as an attribute: dataclasses become dictionaries of what differs from defaults.

    Args:
      value: a string, a number, a tuple of integers or of such values, or a dataclass of them.
    """
    if attribute_of := _SCALARS.get(type(value)):
        return attribute_of(value)
    if isinstance(value, tuple) and all(type(v) is int for v in value):
        return ir.DenseI64ArrayAttr.get(value)
    if isinstance(value, (tuple, list)):
        return ir.ArrayAttr.get([encode(v) for v in value])
    if isinstance(value, dict):
        return ir.DictAttr.get({k: encode(v) for k, v in value.items()})
    given = {
        name: encode(v)
        for name, default in _defaults(type(value)).items()
        if (v := getattr(value, name)) is not None and v != default
    }
    return ir.DictAttr.get(given)


@functools.cache
def _defaults(cls: type) -> dict[str, Any]:
    """The fields of a dataclass with their defaults; MISSING, which equals no value, if none."""
    return {f.name: f.default for f in dataclasses.fields(cls)}


def decode(cls: type[T], attribute: Any) -> T:
    """The dataclass that ``encode`` made a dictionary of.

    Raises:
      ValueError: it is no such dictionary; the message names the field.
    """
    if not isinstance(attribute, ir.DictAttr):
        raise ValueError(f"expected a dictionary, got {attribute}")
    entries = operations.entries(attribute)
    if entries is None:
        raise ValueError(f"unexpected {attribute}")
    hints, absent = _fields(cls)
    given = dict(absent)
    for name, value in entries.items():
        if name not in hints:
            raise ValueError(f"{cls.__name__} has no field {name!r}")
        try:
            given[name] = _decode(hints[name], value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    try:
        return cls(**given)
    except TypeError as error:
        raise ValueError(str(error)) from None


@functools.cache
def _fields(cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The types of a dataclass's fields, and the values of those that may be missing."""
    hints = typing.get_type_hints(cls)
    absent = {
        f.name: None
        for f in dataclasses.fields(cls)
        if not _has_default(f) and type(None) in typing.get_args(hints[f.name])
    }
    return hints, absent


def _has_default(field: Any) -> bool:
    return field.default is not dataclasses.MISSING


def _decode(hint: Any, attribute: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        wrong: list[str] = []
        for one in typing.get_args(hint):
            if one is type(None) or (one is int and isinstance(attribute, ir.DenseI64ArrayAttr)):
                continue
            try:
                return _decode(one, attribute)
            except ValueError as error:
                wrong.append(str(error))
        raise ValueError("; ".join(wrong))
    if origin is tuple:
        element = typing.get_args(hint)[0]
        if isinstance(attribute, ir.DenseI64ArrayAttr):
            return tuple(int(v) for v in attribute)
        return tuple(_decode(element, a) for a in ir.ArrayAttr(attribute))
    if dataclasses.is_dataclass(hint):
        return decode(hint, attribute)  # type: ignore[arg-type]
    if origin is typing.Literal and ir.StringAttr(attribute).value not in typing.get_args(hint):
        raise ValueError(f"{attribute} is not one of {typing.get_args(hint)}")
    if isinstance(attribute, (ir.StringAttr, ir.IntegerAttr, ir.BoolAttr, ir.FloatAttr)):
        return attribute.value
    raise ValueError(f"unexpected {attribute}")


_FRONTEND = "mhlo.frontend_attributes"


def frontend(op: Any, name: str) -> str:
    """The value of a frontend attribute; empty if there is none."""
    given = _frontend(op)
    return ir.StringAttr(given[name]).value if name in given else ""


def forget_frontend(op: Any, name: str) -> None:
    """Removes a frontend attribute, if there is one."""
    given = _frontend(op)
    if given.pop(name, None) is None:
        return
    del op.attributes[_FRONTEND]
    if given:
        op.attributes[_FRONTEND] = ir.DictAttr.get(given)


def _frontend(op: Any) -> dict[str, Any]:
    if _FRONTEND not in op.attributes:
        return {}
    return {entry.name: entry.attr for entry in ir.DictAttr(op.attributes[_FRONTEND])}
