"""Reading a module: its functions, and what an operation calls, holds and says of itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from srjit._mlir import ir

_EFFECTS = frozenset(
    f"stablehlo.{name}"
    for name in ("rng", "infeed", "outfeed", "send", "recv", "after_all", "create_token")
)
_PURE = (
    "stablehlo.", "chlo.", "arith.", "tensor.", "shape.", "sdy.", "vhlo.", "math.", "func.constant",
)  # fmt: skip

ENTRY = "srjit.entry"  # of a module that does not start with @main: with which function it does

# The bindings give the parts of arrays and dictionaries only, and abort at complex numbers in
# those. Symbols in dialects' own attributes (meshes, aliases of outputs) are only in the text.
_IN_QUOTES = re.compile(r'"(?:[^"\\]|\\.)*"')
_IN_TEXT = re.compile(r'@(?:([\w$.-]+)|"((?:[^"\\]|\\.)*)")')

_WITHOUT_SYMBOLS = (
    ir.StringAttr, ir.IntegerAttr, ir.FloatAttr, ir.BoolAttr, ir.UnitAttr, ir.TypeAttr,
    ir.DenseElementsAttr,
)  # fmt: skip


class MalformedProgram(ValueError):
    """A module that is not one program; ``op`` is where, or None."""

    def __init__(self, op: ir.Operation | None, message: str) -> None:
        super().__init__(message)
        self.op = op


# ---------------------------------------------------------------------------------------- functions


def top_level(module: ir.Operation) -> list[ir.Operation]:
    """The operations that a module consists of."""
    return [op.operation for op in module.regions[0].blocks[0]]


def functions(module: ir.Operation) -> dict[str, ir.Operation]:
    """The functions of a module by name, in order."""
    return {text(op, "sym_name"): op for op in top_level(module) if op.name == "func.func"}


def functions_within(module: ir.Operation, path: str = "") -> dict[str, ir.Operation]:
    """The functions of a module and of those nested in it, by path: ``inner::forward``."""
    found: dict[str, ir.Operation] = {}
    for op in top_level(module):
        if op.name == "func.func":
            found[path + text(op, "sym_name")] = op
        elif op.name == "builtin.module":
            found |= functions_within(op, f"{path}{text(op, 'sym_name')}::")
    return found


def entry_of(module: ir.Operation) -> str:
    """The name of the function that a module starts with."""
    if ENTRY not in module.attributes:
        return "main"
    return ir.FlatSymbolRefAttr(module.attributes[ENTRY]).value


def main_of(module: ir.Operation) -> ir.Operation:
    """The function that a module starts with.

    Raises:
      MalformedProgram: there is none.
    """
    found, entry = functions(module), entry_of(module)
    if entry not in found:
        known = listed(module)
        hint = f"; {known}: say with which it starts (entry=, or --entry of srjit-opt)"
        if any(op.name == "vhlo.func_v1" for op in top_level(module)):
            known = hint = ": it is in VHLO: run vhlo-legalize-to-stablehlo before"
        raise MalformedProgram(None, f"the module has no function @{entry}{hint if known else ''}")
    if not found[entry].regions[0].blocks:
        raise MalformedProgram(found[entry], f"@{entry} is only declared, not defined")
    return found[entry]


def listed(module: ir.Operation) -> str:
    """The functions that a module has, for messages; empty if there are none."""
    known = list(functions_within(module))
    more = f" and {len(known) - 8} more" if len(known) > 8 else ""
    return f"it has {', '.join(f'@{n}' for n in known[:8])}{more}" if known else ""


def device_counts(module: ir.Operation) -> tuple[int | None, ...]:
    """The partitions and replicas that a module says it is for; None where it does not."""
    names, given = ("mhlo.num_partitions", "mhlo.num_replicas"), module.attributes
    return tuple(ir.IntegerAttr(given[n]).value if n in given else None for n in names)


def body_of(function: ir.Operation) -> ir.Block:
    """The block of a function, or of another operation with one region of one block."""
    return function.regions[0].blocks[0]


def types_of(function: ir.Operation) -> tuple[list[ir.Type], list[ir.Type]]:
    """The types of a function's arguments and of its results."""
    kind = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
    return list(kind.inputs), list(kind.results)


def of_jax(function: ir.Operation) -> set[int]:
    """The arguments that are no arguments of the program: on which platform it runs."""
    if "arg_attrs" not in function.attributes:
        return set()
    given = ir.ArrayAttr(function.attributes["arg_attrs"])
    return {i for i, a in enumerate(given) if "jax.global_constant" in ir.DictAttr(a)}


def is_public(function: ir.Operation) -> bool:
    """True if others than the module itself may call a function."""
    module = function.parent
    is_entry = module is not None and entry_of(module.operation) == text(function, "sym_name")
    return is_entry or text(function, "sym_visibility") in ("", "public")


def why_closed(function: ir.Operation) -> str:
    """Why passes do not look into a function; nothing if they do."""
    blocks = list(function.regions[0].blocks)
    if not blocks:
        return "is only declared"
    if len(blocks) > 1:
        return "has more than one block"
    if not len(blocks[0].operations) or terminator(blocks[0]).name != "func.return":
        return "does not end in a return"
    return ""


# --------------------------------------------------------------------------------------- operations


def walk(op: ir.Operation) -> Iterator[ir.Operation]:
    """An operation and all inside it, in order."""
    yield op
    yield from inside(op)


def inside(op: ir.Operation) -> Iterator[ir.Operation]:
    """All operations in the regions of one, however deep, in order."""
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield from walk(inner.operation)


def terminator(block: ir.Block) -> ir.Operation:
    """The last operation of a block."""
    return block.operations[len(block.operations) - 1].operation


def root_of(op: ir.Operation) -> ir.Operation:
    """The module that an operation stands in, the outermost."""
    while op.parent is not None:
        op = op.parent.operation
    return op


def owner(value: ir.Value[Any]) -> ir.Operation | None:
    """The operation that makes a value; none makes a block's argument."""
    made_by = value.owner
    return None if isinstance(made_by, ir.Block) else made_by.operation


def callee_of(op: ir.Operation) -> str | None:
    """The function that an operation calls."""
    return callee(op) if op.name == "func.call" else None


def callee(call: ir.Operation) -> str:
    """The name of the function that a ``func.call`` calls."""
    return ir.FlatSymbolRefAttr(call.attributes["callee"]).value


def is_effectful(op: ir.Operation) -> bool:
    """True if an operation does more than compute its results, as far as anybody can tell."""
    if op.name == "stablehlo.custom_call":
        attributes = op.attributes
        return "has_side_effect" in attributes and ir.BoolAttr(attributes["has_side_effect"]).value
    return op.name in _EFFECTS or not (op.name.startswith(_PURE) or op.name == "func.call")


class Search:
    """Looks for operations of one kind inside of operations, and in the functions that they call.

    Args:
      functions: those that are looked into, by name.
      is_found: whether an operation is of that kind.
      otherwise: whether calls of other functions, and of functions that call themselves, count.
    """

    def __init__(
        self,
        functions: dict[str, ir.Operation],
        is_found: Callable[[ir.Operation], bool],
        otherwise: bool,
    ) -> None:
        self.functions, self.is_found, self.otherwise = functions, is_found, otherwise
        self._called: dict[str, bool] = {}

    def __call__(self, op: ir.Operation) -> bool:
        """True if an operation is one, or has one inside."""
        return self._here(op) or self.inside(op)

    def inside(self, op: ir.Operation) -> bool:
        """True if an operation has one inside."""
        return any(map(self._here, inside(op)))

    def _here(self, op: ir.Operation) -> bool:
        name = callee_of(op)
        if name is None or name not in self.functions:
            return self.is_found(op) if name is None else self.otherwise
        if name not in self._called:
            self._called[name] = self.otherwise  # while it is being found out
            self._called[name] = self.inside(self.functions[name])
        return self._called[name]


# --------------------------------------------------------------------------------------- attributes


def attribute_of(op: ir.Operation, name: str) -> Any:
    """An attribute; its text where the bindings have no class for it: dense complex numbers."""
    try:
        return op.attributes[name]
    except TypeError as error:
        return str(error)


def text(op: ir.Operation, attribute: str) -> str:
    """The value of a string attribute; empty if there is none."""
    value = attribute_of(op, attribute) if attribute in op.attributes else None
    return value.value if isinstance(value, ir.StringAttr) else ""


def entries(attribute: ir.Attribute) -> dict[str, ir.Attribute] | None:
    """The entries of a dictionary attribute; None if the bindings would abort at one."""
    if "complex<" in _IN_QUOTES.sub("", str(attribute)):
        return None
    return {named.name: named.attr for named in ir.DictAttr(attribute)}


def is_dense(op: ir.Operation) -> bool:
    """True if a constant's value is written out, element by element."""
    return isinstance(attribute_of(op, "value"), ir.DenseElementsAttr)


def constant_integer(value: ir.Value[Any]) -> int | None:
    """The integer that a scalar value is, if it is a constant."""
    op = owner(value)
    if op is None or op.name != "stablehlo.constant" or not is_dense(op):
        return None
    dense = ir.DenseElementsAttr(op.attributes["value"])
    kind = ir.RankedTensorType(value.type)
    if kind.rank or not isinstance(kind.element_type, ir.IntegerType) or not dense.is_splat:
        return None
    return ir.IntegerAttr(dense.get_splat_value()).value


def used(op: ir.Operation) -> list[str]:
    """Symbols that an operation and those inside of it mention in any attribute, in order."""
    return list(dict.fromkeys(symbol for inner in walk(op) for symbol in mentioned(inner)))


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
