"""Operations of a module with the control flow that they have there, before a reader reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from srjit._mlir import ir
from srjit.program.control_flow import ControlFlow, Input, Output, Region, Trips
from srjit.program.stablehlo.operations import body_of, callee, inside, terminator


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
        """What it returns."""
        return list(terminator(self.block).operands)

    @property
    def eqns(self) -> list[Step]:
        """Its operations, without the return."""
        found = (op.operation for op in self.block.operations)
        return [Step(op) for op in found if not op.name.endswith(".return")]

    constvars = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """An operation as an equation."""

    op: ir.Operation

    @property
    def invars(self) -> list[Any]:
        """What it reads; also in its regions, unless control flow states what they read."""
        if self.op.name in _FLOWS:
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

    def __call__(self, step: Step) -> ControlFlow | None:
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
    inputs = tuple(Input(i) for i in range(len(op.operands)))
    return ControlFlow((Region(flows.body(name), (), inputs, _results(op)),))


def _while(op: ir.Operation, flows: OperationFlows) -> ControlFlow:
    inputs = tuple(Input(i, "carried") for i in range(len(op.operands)))
    results = tuple(Output(i, "carried") for i in range(len(op.results)))
    test, body = (Block(region.blocks[0]) for region in op.regions)
    condition = Region(test, (), inputs, (Output(None, "condition"),), ("cond",))
    return ControlFlow((condition, Region(body, (), inputs, results, ("body",))), Trips(None))


def _branches(op: ir.Operation, flows: OperationFlows) -> ControlFlow:
    blocks = [Block(region.blocks[0]) for region in op.regions]
    regions = (Region(block, (), (), _results(op), (i,)) for i, block in enumerate(blocks))
    return ControlFlow(tuple(regions), selector=0)


def _results(op: ir.Operation) -> tuple[Output, ...]:
    return tuple(Output(i) for i in range(len(op.results)))


_FLOWS: dict[str, Callable[[ir.Operation, OperationFlows], ControlFlow | None]] = {
    "func.call": _call,
    "stablehlo.while": _while,
    "stablehlo.case": _branches,
    "stablehlo.if": _branches,
}
