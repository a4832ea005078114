"""Recipes as TOML text, and back; an error names the line of what is wrong."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable
from typing import Any, TypeVar

from srjit.choices import unknown_name
from srjit.numerics.quantization import Quantization
from srjit.recipes.rule import KINDS, ROLES, Operands, RecipeError, Rule

# A recipe's fields beside its rules, in the order in which they are written.
_FIELDS = (
    "name", "pays_on", "source", "weights", "moments", "casts", "keep_first", "keep_last",
)  # fmt: skip
_Recipe = TypeVar("_Recipe")


def text_of(recipe: Any) -> str:
    """A recipe as TOML text, without what has its default."""
    stated = {k: v for k in _FIELDS if (v := getattr(recipe, k)) or k == "name"}
    # A target is written as its name.
    lines = [f"{k} = {_toml(getattr(v, 'name', v))}" for k, v in stated.items()]
    for rule in recipe.rules:
        lines += ["", "[[rule]]"]
        for field in dataclasses.fields(rule):
            value = getattr(rule, field.name)
            if field.name not in ROLES and value != field.default:
                lines.append(f"{field.name} = {_toml(value)}")
        for role in ROLES:
            given: Operands | None = getattr(rule, role)
            for kind in KINDS if given else ():
                q = getattr(given, kind)
                if q is not None:
                    lines.append(f"{role}.{kind} = {_inline_table(q)}")
            if given == Operands():
                lines.append(f"{role} = {{}}")
    return "\n".join(lines) + "\n"


def read(text: str, make: Callable[..., _Recipe]) -> _Recipe:
    """The recipe that TOML text describes.

    Args:
      text: of a recipe.
      make: makes a recipe of its fields.

    Raises:
      RecipeError: not TOML, or not a recipe; the message names the line.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe is not TOML: {error}") from None
    try:
        return make(**_fields(data))
    except RecipeError as error:
        raise RecipeError(f"line {_line_of(text, error.where)}: {error}", error.where) from None


def _line_of(text: str, where: tuple[str, ...]) -> int:
    """The line of the key at ``where``, or of what it would stand in: the parser does not tell.

    It is the first line up to which the text has as much of ``where`` as the whole of it has.
    """
    best, lines = (0, 1), text.split("\n")
    for number in range(1, len(lines) + 1):
        for closing in ("", "]", '"""', "'''"):  # of what goes on below
            try:
                found = tomllib.loads("\n".join([*lines[:number], closing]))
            except tomllib.TOMLDecodeError:
                continue
            best = max(best, (_depth(found, where), number), key=lambda entry: entry[0])
            break
    return best[1]


def _depth(found: Any, where: tuple[str, ...]) -> int:
    """How many of the keys there are, each in what is at the one before."""
    for depth, key in enumerate(where):
        items = {str(i): v for i, v in enumerate(found)} if isinstance(found, list) else found
        if not isinstance(items, dict) or key not in items:
            return depth
        found = items[key]
    return len(where)


def _toml(value: Any) -> str:
    """A value as TOML: as JSON, but for two differences in strings."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _inline_table(q: Quantization) -> str:
    given = {
        f.name: v
        for f in dataclasses.fields(q)
        if f.name != "axis" and (v := getattr(q, f.name)) != f.default
    }
    return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in given.items()) + " }"


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    _check_keys(data, {"rule", *_FIELDS}, "recipe", ())
    if "name" not in data:
        raise RecipeError('a recipe needs name = "..."')
    if not isinstance(tables := data.pop("rule", []), list):
        raise RecipeError("rules are written as [[rule]]", ("rule",))
    rules = tuple(_rule(table, ("rule", str(i))) for i, table in enumerate(tables))
    return {**data, "rules": rules}


def _check_keys(
    table: Any, known: set[str], what: str, where: tuple[str, ...], example: str = ""
) -> None:
    if not isinstance(table, dict):
        raise RecipeError(f"{'.'.join(where[2:])} is a table{example}, got {table!r}", where)
    for key in table:
        if key not in known:
            raise RecipeError(str(unknown_name(f"{what} key", key, known)), (*where, key))


def _rule(table: Any, where: tuple[str, ...]) -> Rule:
    _check_keys(table, {f.name for f in dataclasses.fields(Rule)}, "rule", where)
    operands: dict[str, Any] = {
        role: _operands(table[role], (*where, role)) for role in ROLES if role in table
    }
    try:
        return Rule(**{**table, **operands})
    except RecipeError as error:
        raise RecipeError(str(error), (*where, *error.where)) from None


def _operands(table: Any, where: tuple[str, ...]) -> Operands:
    _check_keys(table, set(KINDS), "operand", where)
    return Operands(**{kind: _quantization(table[kind], (*where, kind)) for kind in table})


# What a quantization's values are in TOML, where they are no strings.
_TYPES: dict[str, tuple[Any, str]] = {
    "block": (int, "a whole number"),
    "amax": ((int, float), "a number"),
    "hadamard": (bool, "true or false"),
}


def _quantization(table: Any, where: tuple[str, ...]) -> Quantization:
    fields = {f.name for f in dataclasses.fields(Quantization)} - {"axis"}
    _check_keys(table, fields, "quantization", where, ' such as { format = "int8" }')
    name = ".".join(where[2:])
    if "format" not in table:
        raise RecipeError(f"{name} needs a format", where)
    for key, value in table.items():
        kind, what = _TYPES.get(key, (str, "a string"))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise RecipeError(f"{name}: {key} is {what}, got {value!r}", (*where, key))
    try:
        return Quantization(**table)
    except (ValueError, TypeError) as error:
        wrong = next((key for key in table if key in str(error)), "format")
        raise RecipeError(f"{name}: {error}", (*where, wrong)) from None
