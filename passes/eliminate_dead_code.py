"""``srjit-eliminate-dead-code``: what no result depends on goes, through calls and loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from srjit._mlir import ir
from srjit.passes.driver.diagnostics import emit_remark
from srjit.passes.driver.registry import Pass, PassError, register
from srjit.passes.mlir import editing
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

Mask = tuple[bool, ...]


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

    def __init__(self, module: Any) -> None:
        self.module = module
        known = functions(module)
        self.functions = {name: op for name, op in known.items() if not why_closed(op)}
        self._taken = set(known)
        self._uncalled: dict[str, None] = {}  # functions that some call does not call any more
        self._effectful: dict[str, bool] = {}
        self._live: dict[tuple[str, Mask], Mask] = {}  # arguments that live results need
        self._versions: dict[tuple[str, Mask], str] = {}

    # -------------------------------------------------------------------------------- analysis

    def is_effectful(self, op: Any) -> bool:
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
            return not self._is_return(op)
        return self._any_effect(op)

    def _any_effect(self, op: Any) -> bool:
        return any(
            self.is_effectful(inner.operation)
            for region in op.regions
            for block in region.blocks
            for inner in block.operations
        )

    @staticmethod
    def _is_return(op: Any) -> bool:
        return op.name.endswith(".return")

    def live_in(self, block: Any, results: Sequence[bool]) -> set[Any]:
        """The values that a block's chosen results, and its effects, depend on."""
        live = {v for v, r in zip(terminator(block).operands, results, strict=True) if r}
        for op in reversed([op.operation for op in block.operations]):
            if self._is_return(op):
                continue
            used = [r in live for r in op.results]
            if any(used) or self.is_effectful(op):
                live |= self._needed(op, used)
        return live

    def _needed(self, op: Any, used: Sequence[bool]) -> set[Any]:
        """What an operation needs for the results that are used."""
        name = callee_of(op)
        if name is not None and name in self.functions:
            wanted = self.arguments(name, tuple(used))
            return {v for v, w in zip(op.operands, wanted, strict=True) if w}
        if op.name == "stablehlo.while":
            carried, inside = self._loop(op, used)
            return {v for v, c in zip(op.operands, carried, strict=True) if c} | inside
        if op.name in ("stablehlo.case", "stablehlo.if"):
            live = set(op.operands)
            for region in op.regions:
                live |= self.live_in(region.blocks[0], used)
            return live
        return {*op.operands, *_used_inside(op)}

    def arguments(self, name: str, results: Mask) -> Mask:
        """Which arguments of a function its chosen results need."""
        if (name, results) not in self._live:
            block = self.functions[name].regions[0].blocks[0]
            # While they are being found out, as of a function that calls itself: all of them.
            self._live[name, results] = (True,) * len(block.arguments)
            live = self.live_in(block, results)
            self._live[name, results] = tuple(a in live for a in block.arguments)
        return self._live[name, results]

    def _loop(self, op: Any, used: Sequence[bool]) -> tuple[list[bool], set[Any]]:
        """What a loop carries for its used results, and what its regions use."""
        condition, body = (region.blocks[0] for region in op.regions)
        live = self.live_in(condition, [True])
        carried = [u or a in live for u, a in zip(used, condition.arguments, strict=True)]
        while True:
            inside = self.live_in(body, carried)
            more = [c or a in inside for c, a in zip(carried, body.arguments, strict=True)]
            if more == carried:
                return carried, live | inside
            carried = more

    # ------------------------------------------------------------------------------ elimination

    def run(self, main: Any) -> None:
        """Removes the dead code of what @main reaches."""
        self.function(main)
        editing.erase_unused_functions(self.module, self._uncalled)

    def function(self, op: Any) -> None:
        """Removes the dead code of a function all of whose results live."""
        self._block(op.regions[0].blocks[0])

    def _block(self, block: Any) -> None:
        live = self.live_in(block, [True] * len(terminator(block).operands))
        for op in reversed([op.operation for op in block.operations]):
            if self._is_return(op):
                continue
            used = [r in live for r in op.results]
            if not any(used) and not self.is_effectful(op):
                self._uncalled |= dict.fromkeys(operations.used(op))
                op.erase()
            elif callee_of(op) is not None:
                self._call(op, tuple(used))
            elif op.name == "stablehlo.while":
                self._while(op, used)
            elif op.name in ("stablehlo.case", "stablehlo.if"):
                self._branches(op, used)
            elif op.name == "sdy.manual_computation":
                self._block(op.regions[0].blocks[0])

    def _call(self, op: Any, used: Mask) -> None:
        name = callee_of(op) or ""
        if name not in self.functions:
            return
        wanted = self.arguments(name, used)
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
        if (name, used) in self._versions:
            return self._versions[name, used]
        op = self.functions[name]
        if all(used) and all(wanted):
            self._versions[name, used] = name
            self.function(op)
            return name
        with ir.InsertionPoint(op):
            new = op.clone()
        version = self._free(name)
        self._versions[name, used] = version
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

    def _while(self, op: Any, used: Sequence[bool]) -> None:
        carried, _ = self._loop(op, used)
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

    def _branches(self, op: Any, used: Sequence[bool]) -> None:
        for region in op.regions:
            if not all(used):
                _return_only(region.blocks[0], used)
            self._block(region.blocks[0])
        if all(used):
            return
        _replace(op, used, _with_fewer(op, used))


def _with_fewer(op: Any, results: Sequence[bool], operands: Sequence[bool] | None = None) -> Any:
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


def _replace(op: Any, kept: Sequence[bool], new: Any) -> None:
    remaining = iter(new.results)
    for result, keep in zip(op.results, kept, strict=True):
        if keep:
            result.replace_all_uses_with(next(remaining))
    op.erase()


def _return_only(block: Any, kept: Sequence[bool]) -> None:
    last = terminator(block)
    with ir.InsertionPoint(last), last.location:
        operands = [v for v, k in zip(last.operands, kept, strict=True) if k]
        ir.Operation.create(last.name, operands=operands, attributes=editing.attributes_of(last))
    last.erase()


def _erase_arguments(block: Any, kept: Sequence[bool]) -> None:
    for i in reversed(range(len(kept))):
        if not kept[i]:
            block.erase_argument(i)


def _keep_arguments(function: Any, kept: Mask) -> None:
    inputs, results = types_of(function)
    inputs = [t for t, k in zip(inputs, kept, strict=True) if k]
    _set_type(function, inputs, results, "arg_attrs", kept)
    _erase_arguments(function.regions[0].blocks[0], kept)


def _keep_results(function: Any, kept: Mask) -> None:
    inputs, results = types_of(function)
    results = [t for t, k in zip(results, kept, strict=True) if k]
    _set_type(function, inputs, results, "res_attrs", kept)
    _return_only(function.regions[0].blocks[0], kept)


def _set_type(
    function: Any, inputs: list[Any], results: list[Any], extras: str, kept: Mask
) -> None:
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, results))
    if extras in function.attributes:
        old = ir.ArrayAttr(function.attributes[extras])
        function.attributes[extras] = ir.ArrayAttr.get(
            [a for a, k in zip(old, kept, strict=True) if k]
        )


def _used_inside(op: Any) -> set[Any]:
    used: set[Any] = set()
    for inner in operations.walk(op):
        used.update(inner.operands)
    return used
