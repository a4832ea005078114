"""Recipes as TOML text, and back; an error names the line of what is wrong."""

from __future__ import annotations

import codecs
import collections
import dataclasses
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from srjit.choices import unknown_name
from srjit.numerics.quantization import Quantization
from srjit.recipes.rule import KINDS, ROLES, Operands, RecipeError, Rule

# A recipe's fields beside its rules, in the order in which they are written.
_FIELDS = (
    "name", "pays_on", "source", "weights", "moments", "casts", "residuals", "reduce", "wire",
    "keep_first", "keep_last",
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
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    statements = list(_statements(text))
    for line, statement in statements:
        keys = re.split(r"[^\w.\- \t]", _STRING.sub("s", statement))
        if any(
            key.count(".") > 16 for key in keys
        ):  # on which tomllib takes quadratic time, and no recipe has
            raise RecipeError(f"line {line}: recipe is not TOML: a key with more than 16 dots")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe is not TOML: {error}{_quoted(text, str(error))}") from None
    except (ValueError, RecursionError) as error:  # numbers too long, tables too deep
        raise RecipeError(f"recipe is not TOML that can be read: {error}") from None
    try:
        return make(**_fields(data))
    except RecipeError as error:
        raise RecipeError(
            f"line {_line_of(statements, error.where)}: {error}", error.where
        ) from None


def decoded(content: bytes) -> str:
    """The text of a file, which is UTF-8, with or without a byte-order mark.

    Raises:
      RecipeError: it is of another encoding.
    """
    for mark, name in _OTHER_MARKS.items():
        if content.startswith(mark):
            raise RecipeError(f"recipe is {name} text: save it as UTF-8, which TOML is")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"line {line}: recipe is not UTF-8 text, which TOML is: byte {error.start} is "
            f"0x{content[error.start]:02x}; save it as UTF-8"
        ) from None


_OTHER_MARKS = {  # the longer ones first: they begin as the shorter ones do
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"|' r"'[^'\n]*'")
_TOKENS = re.compile(
    r'"""(?:\\.|[^\\])*?"""|'
    r"'''.*?'''|"
    r'"(?:\\.|[^"\\\n])*"|'
    r"'[^'\n]*'|#[^\n]*|[\[\]{}\n]",
    re.DOTALL,
)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each statement of TOML text, a header or a key with its value, and the line it begins at."""
    begin, line, first, depth = 0, 1, 1, 0
    for token in _TOKENS.finditer(text):
        found = token.group()
        depth += (found in "[{") - (found in "]}")
        line += found.count("\n")
        if found == "\n" and depth <= 0:
            yield first, text[begin : token.start()]
            begin, first, depth = token.end(), line, 0
    yield first, text[begin:]


def _quoted(text: str, message: str) -> str:
    """The line of text that a message of tomllib names, for the end of ours."""
    number = re.search(r"\(at line (\d+),", message)
    line = text.split("\n")[int(number[1]) - 1].strip() if number else ""
    return f": {line[:80]!r}" if line else ""


def _line_of(statements: Sequence[tuple[int, str]], where: tuple[str, ...]) -> int:
    """The line of the key at ``where``, or of what it would stand in: the parser does not tell.

    Args:
      statements: of text that is TOML.
      where: the key's path; places in lists are numbers.
    """
    best, header, counts = (0, 1), tuple[str, ...](), collections.Counter[tuple[str, ...]]()
    for line, statement in statements:
        found = tomllib.loads(statement)
        if statement.lstrip().startswith("["):
            header = tuple[str, ...]()
            inside: Any = found
            while inside:
                if isinstance(inside, list):
                    header += (str(counts[header]),)
                    counts[header[:-1]] += 1
                    inside = inside[0]
                else:
                    (name, inside), *_ = inside.items()
                    header += (name,)
                    if not isinstance(inside, list) and counts[header]:
                        header += (str(counts[header] - 1),)
            found = {}
        nested: Any = found
        for key in reversed(header):
            nested = {key: nested}
        depth = _depth(nested, where)
        if depth > max(best[0], 1) and not header and where[1].isdigit():  # rule = [{ ... }, ...]
            line += _line_of_element(statement, int(where[1]))
        best = max(best, (depth, line), key=lambda entry: entry[0])
    return best[1]


def _line_of_element(statement: str, element: int) -> int:
    """The number of lines between the beginning of a list of tables and one of them."""
    lines = depth = 0
    for token in _TOKENS.finditer(statement):
        found = token.group()
        if found == "{" and depth == 1:
            if not element:
                return lines
            element -= 1
        depth += (found in "[{") - (found in "]}")
        lines += found.count("\n")
    return 0


def _depth(found: Any, where: tuple[str, ...]) -> int:
    """The number of keys that are there, each inside the one before."""
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
        if f.name not in _OF_SITES and (v := getattr(q, f.name)) != f.default
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


_OF_SITES = {
    "axis",
    "apart",
    "grouped",
    "ragged",
}  # fields of quantizations that recipes leave alone
# What a quantization's values are in TOML, where they are no strings.
_TYPES: dict[str, tuple[Any, str]] = {
    "block": (int, "a whole number"),
    "amax": ((int, float), "a number"),
    "hadamard": (bool, "true or false"),
}


def _quantization(table: Any, where: tuple[str, ...]) -> Quantization:
    fields = {f.name for f in dataclasses.fields(Quantization)} - _OF_SITES
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
