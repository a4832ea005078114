"""Functions of a module, by their names."""

from __future__ import annotations

from typing import Any

from srjit._mlir import ir


def text(op: ir.Operation, attribute: str) -> str:
    """The value of a string attribute; empty if there is none."""
    return ir.StringAttr(op.attributes[attribute]).value if attribute in op.attributes else ""


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

    def read(attribute: Any) -> None:
        match attribute:
            case ir.FlatSymbolRefAttr():
                found[attribute.value] = None
            case ir.ArrayAttr():
                for inner in attribute:
                    read(inner)
            case ir.DictAttr():
                for named in attribute:
                    read(named.attr)
            case _:
                pass

    def look(inner: ir.Operation) -> ir.WalkResult:
        for name in inner.attributes:
            read(inner.attributes[name])
        return ir.WalkResult.ADVANCE

    op.walk(look, ir.WalkOrder.PRE_ORDER)
    return list(found)
