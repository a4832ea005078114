"""Functions of a module, by their names."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable

from srjit._mlir import ir
from srjit.passes.mlir.editing import attribute_of

_IN_TEXT = re.compile(r'@(?:([\w$.-]+)|"((?:[^"\\]|\\.)*)")')

_WITHOUT_SYMBOLS = (
    ir.StringAttr, ir.IntegerAttr, ir.FloatAttr, ir.BoolAttr, ir.UnitAttr, ir.TypeAttr,
    ir.DenseElementsAttr,
)  # fmt: skip


def text(op: ir.Operation, attribute: str) -> str:
    """The value of a string attribute; empty if there is none."""
    value = attribute_of(op, attribute) if attribute in op.attributes else None
    return value.value if isinstance(value, ir.StringAttr) else ""


def top_level(module: ir.Operation) -> list[ir.Operation]:
    """The operations that a module consists of."""
    return [op.operation for op in module.regions[0].blocks[0]]


def functions(module: ir.Operation) -> dict[str, ir.Operation]:
    """The functions of a module by name, in order."""
    return {text(op, "sym_name"): op for op in top_level(module) if op.name == "func.func"}


def is_public(function: ir.Operation) -> bool:
    """Whether others than the module itself may call a function."""
    return text(function, "sym_visibility") in ("", "public")


def callee(call: ir.Operation) -> str:
    """The name of the function that a ``func.call`` calls."""
    return ir.FlatSymbolRefAttr(call.attributes["callee"]).value


def used(op: ir.Operation) -> list[str]:
    """Symbols that an operation and those inside of it mention in any attribute, in order."""
    found: dict[str, None] = {}

    def look(inner: ir.Operation) -> ir.WalkResult:
        found.update(dict.fromkeys(mentioned(inner)))
        return ir.WalkResult.ADVANCE

    op.walk(look, ir.WalkOrder.PRE_ORDER)
    return list(found)


def mentioned(op: ir.Operation) -> list[str]:
    """Symbols that an operation itself mentions in any attribute, in order.

    What only looks like a symbol, in a string inside of another attribute, counts too.
    """
    found: dict[str, None] = {}
    for name in op.attributes:
        value = attribute_of(op, name)
        if isinstance(value, ir.FlatSymbolRefAttr):
            found[value.value] = None
        elif not isinstance(value, _WITHOUT_SYMBOLS) and "@" in (text := str(value)):
            found.update((plain or quoted, None) for plain, quoted in _IN_TEXT.findall(text))
    return list(found)


def erase_unused(module: ir.Operation, names: Iterable[str]) -> None:
    """Erases those private functions, and what only they use, that nothing mentions any more."""
    pending = list(names)
    if not pending:
        return
    known = functions(module)
    mentions = collections.Counter(symbol for op in top_level(module) for symbol in used(op))
    while pending:
        name = pending.pop()
        function = known.get(name)
        if function is None or mentions[name] or is_public(function):
            continue
        inside = used(function)
        mentions.subtract(inside)
        pending += inside
        del known[name]
        function.erase()
