"""Blocks of a module as programs, and the values that the regions of its operations use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from srjit._mlir import ir
from srjit.program.stablehlo.operations import (
    attribute_of,
    body_of,
    callee,
    inside,
    terminator,
)
from srjit.program.stablehlo.program import Primitive


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A block as a program; it may use values of the blocks around it."""

    block: ir.Block
    bodies: Bodies

    @property
    def invars(self) -> list[Any]:
        """Its arguments."""
        return list(self.block.arguments)

    @property
    def outvars(self) -> list[Any]:
        """The values that it returns."""
        return list(terminator(self.block).operands)

    @property
    def eqns(self) -> list[OperationEquation]:
        """Its operations, without the return."""
        found = (op.operation for op in self.block.operations)
        return [OperationEquation(op, self.bodies) for op in found if not _returns(op)]

    constvars = ()


class OperationEquation:
    """An operation as an equation; with control flow, as JAX's primitive of that kind."""

    effects: Any = None

    def __init__(self, op: ir.Operation, bodies: Bodies) -> None:
        self.op = op
        flow = _FLOWS[op.name](op, bodies) if op.name in _FLOWS else None
        name, self.params = flow or (op.name, dict[str, Any]())
        self.primitive = Primitive(name)

    @property
    def invars(self) -> list[Any]:
        """The values that it reads; also in its regions, unless control flow states those."""
        if not len(self.op.regions) or self.op.name in _FLOWS:
            return list(self.op.operands)
        return [*self.op.operands, *(v for inner in inside(self.op) for v in inner.operands)]

    @property
    def outvars(self) -> list[Any]:
        """Its results."""
        return list(self.op.results)


class Bodies:
    """The bodies of functions as programs, the same one at every call.

    Args:
      functions: those that are looked into, by name.
    """

    def __init__(self, functions: dict[str, ir.Operation]) -> None:
        self.functions = functions
        self._known: dict[str, Block] = {}

    def of(self, name: str) -> Block | None:
        """The body of a function; None if it is not looked into."""
        if name not in self._known and name in self.functions:
            self._known[name] = Block(body_of(self.functions[name]), self)
        return self._known.get(name)


Flow = tuple[str, dict[str, Any]]  # the name of a primitive with control flow, and its parameters


def _call(op: ir.Operation, bodies: Bodies) -> Flow | None:
    body = bodies.of(callee(op))
    return body and ("closed_call", {"call_jaxpr": body})


def _while(op: ir.Operation, bodies: Bodies) -> Flow:
    test, body = (Block(region.blocks[0], bodies) for region in op.regions)
    blocks = {"cond_jaxpr": test, "body_jaxpr": body}
    return "while", {"cond_nconsts": 0, "body_nconsts": 0, **blocks}


def _branches(op: ir.Operation, bodies: Bodies) -> Flow:
    return "cond", {"branches": [Block(region.blocks[0], bodies) for region in branches(op)]}


_FLOWS: dict[str, Callable[[ir.Operation, Bodies], Flow | None]] = {
    "func.call": _call,
    "stablehlo.while": _while,
    "stablehlo.case": _branches,
    "stablehlo.if": _branches,
}


def branches(op: ir.Operation) -> list[ir.Region]:
    """The regions of a case or an if, in the order of a conditional's branches."""
    regions = list(op.regions)
    return regions[::-1] if op.name == "stablehlo.if" else regions


def _returns(op: ir.Operation) -> bool:
    return op.name.endswith(".return")


# ----------------------------------------------------------------- regions without control flow


def arguments(op: ir.Operation) -> list[ir.Value[Any]]:
    """The arguments of the blocks of an operation."""
    return [a for region in op.regions for block in region.blocks for a in block.arguments]


def free_values(op: ir.Operation) -> list[ir.Value[Any]]:
    """Values of enclosing blocks that the regions of an operation use, in order."""
    inner = list(inside(op))
    defined: set[ir.Value[Any]] = {v for o in inner for v in o.results}
    defined.update(a for o in (op, *inner) for a in arguments(o))
    return [v for v in dict.fromkeys(v for o in inner for v in o.operands) if v not in defined]


def structure(op: ir.Operation, known: dict[ir.Value[Any], int]) -> tuple[Any, ...]:
    """The regions of an operation, equal for equal ones: values by number."""

    def numbers(values: Iterable[ir.Value[Any]]) -> tuple[tuple[int, ir.Type], ...]:
        return tuple((known.setdefault(v, len(known)), v.type) for v in values)

    return numbers(arguments(op)), *(
        (o.name, attributes(o), *map(numbers, (o.operands, o.results, arguments(o))))
        for o in inside(op)
    )


def attributes(op: ir.Operation) -> tuple[tuple[str, Any], ...]:
    """The attributes of an operation but for srjit's, to be compared."""
    names = (name for name in op.attributes if not name.startswith("srjit."))
    return tuple([(name, attribute_of(op, name)) for name in names])


def adds(op: ir.Operation) -> bool:
    """True if the region of an operation adds."""
    return any(inner.operation.name == "stablehlo.add" for inner in body_of(op))
