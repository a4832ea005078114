"""``srjit-eliminate-dead-code``: what no result depends on goes, through calls and loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import compress
from typing import Any, ClassVar

from srjit._mlir import ir
from srjit.passes.driver.diagnostics import emit_remark
from srjit.passes.driver.registry import Pass, PassError, register
from srjit.passes.mlir import editing
from srjit.program.control_flow import flow_of
from srjit.program.liveness import Liveness
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.operations import terminator, types_of
from srjit.program.stablehlo.regions import Block, Bodies

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

    def run(self, module: ir.Operation) -> dict[str, int]:
        """Eliminates."""
        try:
            main = operations.main_of(module)
        except operations.MalformedProgram as error:
            raise PassError(error.op, str(error)) from None
        if why := operations.why_closed(main):
            emit_remark(main, f"its dead code stays: @{operations.entry_of(module)} {why}")
            return {}
        elimination = _Elimination(module)
        elimination.run(main)
        return {"operations removed": elimination.removed}


class _Elimination:
    """One module's dead code."""

    def __init__(self, module: ir.Operation) -> None:
        self.module = module
        known = operations.functions(module)
        self.removed = 0  # operations
        self.functions = {name: op for name, op in known.items() if not operations.why_closed(op)}
        self._taken = set(known)
        self._uncalled: dict[str, None] = {}  # functions that some call does not call any more
        self._versions: dict[tuple[str, tuple[bool, ...]], str] = {}
        self.bodies = Bodies(self.functions)
        self.is_effectful = operations.Search(self.functions, _is_effectful, otherwise=True)
        self.liveness = Liveness(lambda step: self.is_effectful(step.op))

    def run(self, main: Any) -> None:
        """Removes the dead code of what @main reaches."""
        self.function(main)
        editing.erase_unused_functions(self.module, self._uncalled)

    def function(self, op: ir.Operation) -> None:
        """Removes the dead code of a function all of whose results live."""
        self._block(op.regions[0].blocks[0])

    def _block(self, block: ir.Block) -> None:
        program = Block(block, self.bodies)
        live = self.liveness.values(program, [True] * len(program.outvars))
        for step in reversed(program.eqns):
            op, flow = step.op, flow_of(step)
            used = [r in live for r in op.results]
            if not any(used) and not self.is_effectful(op):
                self._uncalled |= dict.fromkeys(operations.used(op))
                self.removed += sum(1 for _ in operations.walk(op))
                op.erase()
            elif flow is not None:
                live_results = [i for i, is_used in enumerate(used) if is_used]
                results, arguments, _ = self.liveness.flow(flow, live_results)
                kept = [i in results for i in range(len(op.results))]
                wanted = [i in arguments for i in range(len(op.operands))]
                edit = {"call": self._call, "loop": self._while, "branches": self._branches}
                edit[flow.kind](op, kept, wanted)
            elif op.name == "sdy.manual_computation":
                self._block(operations.body_of(op))

    def _call(self, op: ir.Operation, used: Mask, wanted: Mask) -> None:
        name = operations.callee(op)
        version = self._version(name, used, wanted)
        if version == name:
            return
        self._uncalled[name] = None
        types = (r.type for r in compress(op.results, used))
        callee = ir.FlatSymbolRefAttr.get(version)
        operands = compress(op.operands, wanted)
        _replace(op, used, editing.recreated(op, operands, types, callee=callee))

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
        version = editing.free_symbol(f"{name}_live", self._taken)
        self._versions[key] = version
        self.functions[version] = new = editing.clone_function(op, version)
        block = operations.body_of(new)
        _keep(new, "res_attrs", used)
        _return_only(block, used)
        self._block(block)
        _keep(new, "arg_attrs", wanted)
        _erase_arguments(block, wanted)
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
        types = (r.type for r in compress(op.results, carried))
        operands = compress(op.operands, carried)
        _replace(op, carried, editing.recreated(op, operands, types))

    def _branches(self, op: ir.Operation, used: Mask, _: Mask) -> None:
        for region in op.regions:
            if not all(used):
                _return_only(region.blocks[0], used)
            self._block(region.blocks[0])
        if not all(used):
            types = (r.type for r in compress(op.results, used))
            _replace(op, used, editing.recreated(op, op.operands, types))


def _is_effectful(op: ir.Operation) -> bool:
    return operations.is_effectful(op) and not op.name.endswith(".return")


def _replace(op: ir.Operation, kept: Mask, new: ir.Operation) -> None:
    for result, value in zip(compress(op.results, kept), new.results, strict=True):
        result.replace_all_uses_with(value)
    op.erase()


def _return_only(block: ir.Block, kept: Mask) -> None:
    editing.return_instead(block, compress(terminator(block).operands, kept))


def _erase_arguments(block: ir.Block, kept: Mask) -> None:
    for i in reversed(range(len(kept))):
        if not kept[i]:
            block.erase_argument(i)


def _keep(function: ir.Operation, which: str, kept: Mask) -> None:
    inputs, results = types_of(function)
    if which == "arg_attrs":
        inputs = list(compress(inputs, kept))
    else:
        results = list(compress(results, kept))
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, results))
    if which in function.attributes:
        remaining = compress(ir.ArrayAttr(function.attributes[which]), kept)
        function.attributes[which] = ir.ArrayAttr.get(list(remaining))
