"""Options of passes: the fields of their dataclasses, and how pipelines write the values."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from srjit.passes.driver.registry import Pass

_SCALARS = (str, int, bool, float)
_PLAIN = re.compile(r"[^\s{}'\"]+")
_PLAIN_ITEM = re.compile(r"[^\s{}'\",]+")


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
        """The description of its values in errors."""
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


# ------------------------------------------------------------------------------------------- values


def value_of(option: Option, raw: str | None) -> Any:
    """The value that ``raw`` stands for; ValueError with what it was if it stands for none."""
    if raw is None:
        return True  # an option that is true or false
    if option.is_list:
        return tuple(_scalar(option, item) for item in _items(raw))
    return _scalar(option, _unquoted(raw))


def _scalar(option: Option, text: str) -> Any:
    try:
        if option.element is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        value = option.element(text)
    except (KeyError, ValueError):
        raise ValueError(repr(text)) from None
    if option.choices and value not in option.choices:
        raise ValueError(repr(text) + nearest(text, option.choices))
    return value


def _unquoted(raw: str) -> str:
    """Takes off one layer of quotes or braces; a doubled quote inside of quotes is one."""
    if len(raw) >= 2 and raw[0] in "'\"" and raw[-1] == raw[0]:
        return raw[1:-1].replace(raw[0] * 2, raw[0])
    if raw.startswith("{") and closing(raw, 0, "{}") == len(raw) - 1:
        return raw[1:-1]
    return raw


def _items(raw: str) -> list[str]:
    if raw.startswith("{") and closing(raw, 0, "{}") == len(raw) - 1:
        raw = raw[1:-1].strip()
    if not raw:
        return []
    items, start = list[str](), 0
    while start <= len(raw):
        end = end_of(raw, start, ",")
        items.append(_unquoted(raw[start:end].strip()))
        start = end + 1
    return items


def end_of(text: str, start: int, stops: str) -> int:
    """The position of the first character of ``stops`` that is not in quotes or braces."""
    while start < len(text) and text[start] not in stops:
        if text[start] in "'\"":
            start = text.index(text[start], start + 1)
        elif text[start] == "{":
            start = closing(text, start, "{}")
        start += 1
    return start


def closing(text: str, opened: int, pair: str) -> int:
    """The position at which the parenthesis or brace at ``opened`` is closed; -1 if nowhere."""
    depth, braces, pos = 0, 0, opened
    while pos < len(text):
        c = text[pos]
        braces += (c == "{") - (c == "}")
        if c in "'\"" and braces > 0:  # quotes mean something only inside of options
            pos = text.find(c, pos + 1)
            if pos < 0:
                return -1
        elif c in pair and (braces == 0 or pair == "{}"):
            depth += 1 if c == pair[0] else -1
            if depth == 0:
                return pos
        pos += 1
    return -1


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"`` for the names most like ``name``, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def text_of(one: Pass) -> str:
    """The text of a pass in pipelines; options that have their defaults are left out."""
    given = [
        f"{option.name}={text_of_value(option, value)}"
        for option in options_of(type(one)).values()
        if (value := getattr(one, option.field)) != option.default
    ]
    return one.name + (f"{{{' '.join(given)}}}" if given else "")


def text_of_value(option: Option, value: Any) -> str:
    """The text of an option's value in pipelines."""
    if not option.is_list:
        return _quoted(_scalar_text(value), _PLAIN)
    items = [_quoted(_scalar_text(item), _PLAIN_ITEM) for item in value]
    plain = items and all(_PLAIN_ITEM.fullmatch(item) for item in items)
    return ",".join(items) if plain else f"{{{','.join(items)}}}"


def _scalar_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    name = getattr(value, "name", value)
    return str(getattr(value, "stated", name))


def _quoted(text: str, plain: re.Pattern[str]) -> str:
    return text if plain.fullmatch(text) else '"' + text.replace('"', '""') + '"'
