"""``srjit-inline-calls``."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from srjit._mlir import ir
from srjit.passes.driver.diagnostics import emit_remark
from srjit.passes.driver.registry import Pass, register
from srjit.passes.mlir import annotation, editing
from srjit.program.stablehlo import operations

# What a function says of itself that is true of its body wherever that goes.
_OWN = ("function_type", "sym_name", "sym_visibility", "arg_attrs", "res_attrs")


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class InlineCalls(Pass):
    """Inlines calls of private functions, and joins the locations of call and body.

    JAX makes a function of every inner `jit`. Passes that look at one function at a time see more
    without them, and MLIR's own `inline` does not inline a `func.call` here. Functions that no call
    needs any more go. A call stays, with a remark, where body or call carry an attribute that would
    be lost (shardings, frontend attributes, `no_inline`), and where functions call each other in a
    circle. One function that is called twice becomes two copies: share it by not running this.

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

    def run(self, module: ir.Operation) -> None:
        """Inlines from the innermost calls outwards, so that each body is complete when copied."""
        functions = operations.functions(module)
        calls = {
            name: [op for op in operations.inside(function) if op.name == "func.call"]
            for name, function in functions.items()
        }
        graph = {name: {operations.callee(call) for call in calls[name]} for name in calls}
        kept = {name: _why_not(function, graph) for name, function in functions.items()}
        inlined: set[str] = set()
        for caller in _innermost_first(graph):
            for call in calls[caller]:
                callee = operations.callee(call)
                if callee not in functions or operations.is_public(functions[callee]):
                    continue
                if reason := kept[callee] or _why_not_here(call):
                    emit_remark(call, f"not inlined: {reason}")
                else:
                    editing.inline(call, functions[callee])
                    call.erase()
                    inlined.add(callee)
        editing.erase_unused_functions(module, inlined)


def _why_not(function: ir.Operation, graph: dict[str, set[str]]) -> str:
    """What stands against inlining a function anywhere; nothing if nothing does."""
    name = operations.text(function, "sym_name")
    if why := operations.why_closed(function):
        return f"@{name} {why}"
    if name in _called_from(name, graph):
        return f"@{name} calls itself"
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
    own = [n for n in call.attributes if n != "callee" and not n.startswith(annotation.PREFIX)]
    return f"the call has the attribute {own[0]!r}" if own else ""


def _innermost_first(graph: dict[str, set[str]]) -> list[str]:
    """All functions, each after those that it calls; without recursion, as stacks are finite."""
    order: list[str] = []
    seen: set[str] = set()
    for root in graph:
        pending = [(root, False)]
        while pending:
            name, is_done = pending.pop()
            if is_done:
                order.append(name)
            elif name not in seen:
                seen.add(name)
                pending.append((name, True))
                pending += [(called, False) for called in sorted(graph[name]) if called in graph]
    return order


def _called_from(name: str, graph: dict[str, set[str]]) -> set[str]:
    """The functions that a function calls, directly or not."""
    called: set[str] = set()
    pending = [name]
    while pending:
        new = graph.get(pending.pop(), set()) - called
        called |= new
        pending += new
    return called
