"""Regions of the operations of a module: their control flow, and the values that they use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from srjit._mlir import ir
from srjit.program.control_flow import (
    ControlFlow,
    Output,
    Region,
    Trips,
    inputs_of,
    outputs_of,
)
from srjit.program.stablehlo.operations import (
    attribute_of,
    body_of,
    callee,
    inside,
    terminator,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A block as a program; it may use values of the blocks around it."""

    block: ir.Block

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
        return [OperationEquation(op) for op in found if not op.name.endswith(".return")]

    constvars = ()


@dataclasses.dataclass(eq=False)
class OperationEquation:
    """An operation as an equation."""

    op: ir.Operation

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

    primitive: Any = None
    params: Any = None
    effects: Any = None


class OperationFlows:
    """The control flow of the operations of a module.

    Args:
      functions: those that are looked into, by name.
    """

    def __init__(self, functions: dict[str, ir.Operation]) -> None:
        self.functions = functions
        self._bodies: dict[str, Block] = {}

    def __call__(self, step: OperationEquation) -> ControlFlow | None:
        """The control flow of an operation; None if it has none, or calls another function."""
        entry = _FLOWS.get(step.op.name)
        return entry and entry(step.op, self)

    def body(self, name: str) -> Block:
        """The body of a function, the same one at every call."""
        if name not in self._bodies:
            self._bodies[name] = Block(body_of(self.functions[name]))
        return self._bodies[name]


def _call(op: ir.Operation, flows: OperationFlows) -> ControlFlow | None:
    name = callee(op)
    if name not in flows.functions:
        return None
    inputs, results = inputs_of(len(op.operands)), outputs_of(len(op.results))
    return ControlFlow((Region(flows.body(name), (), inputs, results),))


def _while(op: ir.Operation, flows: OperationFlows) -> ControlFlow:
    inputs, results = inputs_of(0, len(op.operands)), outputs_of(0, len(op.results))
    test, body = (Block(region.blocks[0]) for region in op.regions)
    condition = Region(test, (), inputs, (Output(None, "condition"),), ("cond",))
    return ControlFlow((condition, Region(body, (), inputs, results, ("body",))), Trips(None))


def _branches(op: ir.Operation, flows: OperationFlows) -> ControlFlow:
    results, blocks = (
        outputs_of(len(op.results)),
        [Block(region.blocks[0]) for region in op.regions],
    )
    regions = (Region(block, (), (), results, (i,)) for i, block in enumerate(blocks))
    return ControlFlow(tuple(regions), selector=0)


_FLOWS: dict[str, Callable[[ir.Operation, OperationFlows], ControlFlow | None]] = {
    "func.call": _call,
    "stablehlo.while": _while,
    "stablehlo.case": _branches,
    "stablehlo.if": _branches,
}


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
    """Whether the region of an operation adds."""
    return any(inner.operation.name == "stablehlo.add" for inner in body_of(op))
