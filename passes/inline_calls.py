"""``srjit-inline-calls``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

from srjit import _mlir
from srjit._mlir import ir
from srjit.passes.driver.diagnostics import emit_remark
from srjit.passes.driver.registry import Pass, register
from srjit.passes.mlir import annotation, editing
from srjit.program.stablehlo import operations

# What a function says of itself that is true of its body wherever that goes.
_OWN = ("function_type", "sym_name", "sym_visibility", "arg_attrs", "res_attrs")
# Stands at the border of a function, and nowhere else: Shardy's own inliner removes it.
_EDGE = "sdy.func_data_flow_edge"


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class InlineCalls(Pass):
    """Inlines calls of private functions, and joins the locations of call and body.

    JAX makes a function of every inner `jit`. Passes that look at one function at a time see more
    without them, and MLIR's own `inline` does not inline a `func.call` here. Functions that no call
    needs any more go. A call stays, with a remark, where body or call carry an attribute that would
    be lost (shardings, frontend attributes, `no_inline`), where Shardy has marked their border
    (`sdy.func_data_flow_edge`), and where functions call each other in a circle. One function that
    is called twice becomes two copies: share it by not running this.

    Before ==> after:
        func.func public @main(%x: tensor<2xf32>) -> tensor<2xf32> {
          %0 = func.call @double(%x) : (tensor<2xf32>) -> tensor<2xf32>
          return %0 : tensor<2xf32>
        }
        func.func private @double(%x: tensor<2xf32>) -> tensor<2xf32> { ... }
        ==>
        func.func public @main(%x: tensor<2xf32>) -> tensor<2xf32> {
          %0 = stablehlo.add %x, %x : tensor<2xf32>
          return %0 : tensor<2xf32>
        }
    """

    name: ClassVar[str] = "srjit-inline-calls"

    def run(self, module: ir.Operation) -> dict[str, int]:
        """Inlines."""
        functions = operations.functions(module)
        inlined = inline(module, lambda name: not operations.is_public(functions[name]))
        editing.erase_unused_functions(module, inlined)
        return {"functions inlined": len(inlined)}


def inline(module: ir.Operation, is_meant: Callable[[str], bool]) -> set[str]:
    """Inlines the calls of some functions; remarks where one cannot be.

    What is known about an inlined product goes onto the operation that makes its result.

    Args:
      module: whose calls these are.
      is_meant: of the name of a function in the module, whether it is one of those.

    Returns:
      The names of functions that were inlined; they are still there.
    """
    functions = operations.functions(module)
    calls = {
        name: [op for op in operations.inside(function) if op.name == "func.call"]
        for name, function in functions.items()
    }
    graph = {name: {operations.callee(call) for call in calls[name]} for name in calls}
    reached = {name: _called_from(name, graph) for name in graph}
    kept = {name: _why_not(op, name in reached[name]) for name, op in functions.items()}
    inlined: set[str] = set()
    # From the innermost outwards, so that each body is complete when copied: a function reaches
    # more than what it calls does.
    for caller in sorted(graph, key=lambda name: len(reached[name])):
        for call in calls[caller]:
            callee = operations.callee(call)
            if callee not in functions or not is_meant(callee):
                continue
            if reason := kept[callee] or _why_not_here(call):
                emit_remark(call, f"not inlined: {reason}")
                continue
            with ir.InsertionPoint(call):
                values = _mlir.inlined_func_call(
                    functions[callee], list(call.operands), call.location
                )
            op = operations.owner(values[0]) if len(values) == 1 else None
            if op is not None:
                annotation.move(call, op)
            editing.replace(call, values)
            inlined.add(callee)
    return inlined


def _why_not(function: ir.Operation, calls_itself: bool) -> str:
    """The reason not to inline a function anywhere; empty if there is none."""
    name = operations.text(function, "sym_name")
    if why := operations.why_closed(function):
        return f"@{name} {why}"
    if calls_itself:
        return f"@{name} calls itself"
    if any(op.name == _EDGE for op in operations.inside(function)):
        return f"@{name} has an {_EDGE}"
    own = [n for n in function.attributes if n not in _OWN and not n.startswith(annotation.PREFIX)]
    if own:
        return f"@{name} has the attribute {own[0]!r}"
    for attributes in ("arg_attrs", "res_attrs"):
        if attributes in function.attributes:
            for each in ir.ArrayAttr(function.attributes[attributes]):
                found = operations.entries(each)
                for key in ["a complex constant"] if found is None else found:
                    if not key.startswith((annotation.PREFIX, "jax.")):
                        return f"an argument or result of @{name} has {key!r}"
    return ""


def _why_not_here(call: ir.Operation) -> str:
    moved = annotation.MOVED if len(call.results) == 1 else ()
    known = ("callee", *(moved if operations.callee(call).startswith(annotation.PREFIX) else ()))
    own = [n for n in call.attributes if n not in known and not n.startswith(annotation.PREFIX)]
    if any(use.owner.name == _EDGE for result in call.results for use in result.uses):
        return f"its result has an {_EDGE}"
    return f"the call has the attribute {own[0]!r}" if own else ""


def _called_from(name: str, graph: dict[str, set[str]]) -> set[str]:
    """The functions that a function calls, directly or not."""
    called: set[str] = set()
    pending = [name]
    while pending:
        new = graph.get(pending.pop(), set()) - called
        called |= new
        pending += new
    return called
