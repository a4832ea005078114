"""``srjit-eliminate-dead-code``: what no result depends on goes, through calls and loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence, Sized
from typing import Any, ClassVar

from srjit._mlir import ir
from srjit.passes.driver.diagnostics import emit_remark
from srjit.passes.driver.registry import Pass, PassError, register
from srjit.passes.mlir import editing
from srjit.program.liveness import Liveness
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.operations import (
    MalformedProgram,
    callee_of,
    functions,
    is_effectful,
    main_of,
    terminator,
    types_of,
    why_closed,
)
from srjit.program.stablehlo.regions import Block, OperationFlows

Mask = Sequence[bool]


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class EliminateDeadCode(Pass):
    """Removes what no result and no effect depends on, through calls, loops and branches.

    Sites are numbered, and noise is drawn by these numbers, as in the jaxpr without its dead code:
    a module and the program that it was lowered from agree only if its dead code is gone too. A
    function whose results are not all used by a call becomes, for that call, one that has only
    those; a loop loses what it carries for nothing. Where nothing is dead, nothing changes.

    Before ==> after:
        %0:2 = call @f(%x) : (tensor<f32>) -> (tensor<f32>, tensor<f32>)   // %0#1 is not used
        ==>
        %0 = call @f_live(%x) : (tensor<f32>) -> tensor<f32>
    """

    name: ClassVar[str] = "srjit-eliminate-dead-code"

    def run(self, module: ir.Operation) -> None:
        """Eliminates."""
        try:
            main = main_of(module)
        except MalformedProgram as error:
            raise PassError(error.op, str(error)) from None
        if why := why_closed(main):
            emit_remark(main, f"its dead code stays: @main {why}")
            return
        _Elimination(module).run(main)


class _Elimination:
    """One module's dead code."""

    def __init__(self, module: ir.Operation) -> None:
        self.module = module
        known = functions(module)
        self.functions = {name: op for name, op in known.items() if not why_closed(op)}
        self._taken = set(known)
        self._uncalled: dict[str, None] = {}  # functions that some call does not call any more
        self._effectful: dict[str, bool] = {}
        self._versions: dict[tuple[str, tuple[bool, ...]], str] = {}
        self.flow_of = OperationFlows(self.functions)
        self.liveness = Liveness(self.flow_of, lambda step: self.is_effectful(step.op))

    def is_effectful(self, op: ir.Operation) -> bool:
        """Whether an operation, what it calls or what is in its regions does more than compute."""
        name = callee_of(op)
        if name is not None:
            if name not in self.functions:
                return True
            if name not in self._effectful:
                self._effectful[name] = True  # while it is being found out: recursion
                self._effectful[name] = self._any_effect(self.functions[name])
            return self._effectful[name]
        if is_effectful(op):
            return not op.name.endswith(".return")
        return self._any_effect(op)

    def _any_effect(self, op: ir.Operation) -> bool:
        return any(
            self.is_effectful(inner.operation)
            for region in op.regions
            for block in region.blocks
            for inner in block.operations
        )

    def run(self, main: Any) -> None:
        """Removes the dead code of what @main reaches."""
        self.function(main)
        editing.erase_unused_functions(self.module, self._uncalled)

    def function(self, op: ir.Operation) -> None:
        """Removes the dead code of a function all of whose results live."""
        self._block(op.regions[0].blocks[0])

    def _block(self, block: ir.Block) -> None:
        program = Block(block)
        live = self.liveness.values(program, [True] * len(program.outvars))
        for step in reversed(program.eqns):
            op, flow = step.op, self.flow_of(step)
            used = [r in live for r in op.results]
            if not any(used) and not self.is_effectful(op):
                self._uncalled |= dict.fromkeys(operations.used(op))
                op.erase()
            elif flow is not None:
                results, arguments, _ = self.liveness.flow(flow, _positions(used))
                kept = _mask(results, op.results), _mask(arguments, op.operands)
                edit = {"call": self._call, "loop": self._while, "branches": self._branches}
                edit[flow.kind](op, *kept)
            elif op.name == "sdy.manual_computation":
                self._block(operations.body_of(op))

    def _call(self, op: ir.Operation, used: Mask, wanted: Mask) -> None:
        name = operations.callee(op)
        version = self._version(name, used, wanted)
        if version == name:
            return
        self._uncalled[name] = None
        operands = [v for v, w in zip(op.operands, wanted, strict=True) if w]
        with ir.InsertionPoint(op), op.location:
            types = [r.type for r, u in zip(op.results, used, strict=True) if u]
            callee: Any = ir.FlatSymbolRefAttr.get(version)
            attributes = editing.attributes_of(op) | {"callee": callee}
            new = ir.Operation.create(
                "func.call", results=types, operands=operands, attributes=attributes
            )
        _replace(op, used, new)

    def _version(self, name: str, used: Mask, wanted: Mask) -> str:
        """The function with only those results and arguments; itself if that is all of them."""
        key = name, tuple(used)
        if key in self._versions:
            return self._versions[key]
        op = self.functions[name]
        if all(used) and all(wanted):
            self._versions[key] = name
            self.function(op)
            return name
        with ir.InsertionPoint(op):
            new = op.clone()
        version = self._free(name)
        self._versions[key] = version
        new.attributes["sym_name"] = ir.StringAttr.get(version)
        new.attributes["sym_visibility"] = ir.StringAttr.get("private")
        _keep_results(new, used)
        self._block(new.regions[0].blocks[0])
        _keep_arguments(new, wanted)
        self.functions[version] = new
        return version

    def _free(self, name: str) -> str:
        version, number = f"{name}_live", 0
        while version in self._taken:
            number += 1
            version = f"{name}_live_{number}"
        self._taken.add(version)
        return version

    def _while(self, op: ir.Operation, carried: Mask, _: Mask) -> None:
        condition, body = (region.blocks[0] for region in op.regions)
        if not all(carried):
            _return_only(body, carried)
        self._block(condition)
        self._block(body)
        if all(carried):
            return
        for block in (condition, body):
            _erase_arguments(block, carried)
        _replace(op, carried, _with_fewer(op, carried, operands=carried))

    def _branches(self, op: ir.Operation, used: Mask, _: Mask) -> None:
        for region in op.regions:
            if not all(used):
                _return_only(region.blocks[0], used)
            self._block(region.blocks[0])
        if all(used):
            return
        _replace(op, used, _with_fewer(op, used))


def _with_fewer(op: ir.Operation, results: Mask, operands: Mask | None = None) -> Any:
    """A copy of an operation with some of its results and operands, and with its regions."""
    given = list(op.operands)
    if operands is not None:
        given = [v for v, o in zip(given, operands, strict=True) if o]
    with ir.InsertionPoint(op), op.location:
        new = ir.Operation.create(
            op.name,
            results=[r.type for r, wanted in zip(op.results, results, strict=True) if wanted],
            operands=given,
            attributes=editing.attributes_of(op),
            regions=len(op.regions),
        )
    for old_region, new_region in zip(op.regions, new.regions, strict=True):
        old_region.blocks[0].append_to(new_region)
    return new


def _replace(op: ir.Operation, kept: Mask, new: ir.Operation) -> None:
    remaining = iter(new.results)
    for result, keep in zip(op.results, kept, strict=True):
        if keep:
            result.replace_all_uses_with(next(remaining))
    op.erase()


def _return_only(block: ir.Block, kept: Mask) -> None:
    last = terminator(block)
    with ir.InsertionPoint(last), last.location:
        operands = [v for v, k in zip(last.operands, kept, strict=True) if k]
        ir.Operation.create(last.name, operands=operands, attributes=editing.attributes_of(last))
    last.erase()


def _erase_arguments(block: ir.Block, kept: Mask) -> None:
    for i in reversed(range(len(kept))):
        if not kept[i]:
            block.erase_argument(i)


def _keep_arguments(function: ir.Operation, kept: Mask) -> None:
    inputs, results = types_of(function)
    inputs = [t for t, k in zip(inputs, kept, strict=True) if k]
    _set_type(function, inputs, results, "arg_attrs", kept)
    _erase_arguments(function.regions[0].blocks[0], kept)


def _keep_results(function: ir.Operation, kept: Mask) -> None:
    inputs, results = types_of(function)
    results = [t for t, k in zip(results, kept, strict=True) if k]
    _set_type(function, inputs, results, "res_attrs", kept)
    _return_only(function.regions[0].blocks[0], kept)


def _set_type(
    function: ir.Operation, inputs: list[Any], results: list[Any], extras: str, kept: Mask
) -> None:
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, results))
    if extras in function.attributes:
        old = ir.ArrayAttr(function.attributes[extras])
        function.attributes[extras] = ir.ArrayAttr.get(
            [a for a, k in zip(old, kept, strict=True) if k]
        )


def _positions(mask: Mask) -> list[int]:
    return [i for i, chosen in enumerate(mask) if chosen]


def _mask(positions: Collection[int], values: Sized) -> list[bool]:
    return [i in positions for i in range(len(values))]
