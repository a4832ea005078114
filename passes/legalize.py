"""``srjit-legalize``: composites of srjit as what a target runs."""

from __future__ import annotations

import dataclasses
from typing import Any

from srjit._mlir import ir
from srjit.passes.registry import Pass, PassError, register
from srjit.passes.support import annotation, attributes, editing, symbols
from srjit.passes.support.composites import QUANTIZE, SCALED_DOT, ScaledDot
from srjit.passes.support.lowering import Library, signature_of
from srjit.passes.support.raising import why_closed


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Legalize(Pass):
    """Replaces composites of srjit by the operations that a target runs.

    Every number is defined once: a target's products are those that the decorator uses there.
    ``target=portable`` inlines the decompositions that the composites carry. A composite that
    srjit does not know stays, and the report says so.

    Before ==> after:
        %0 = stablehlo.composite "srjit.scaled_dot" %q#0, %q#1, %r#0, %r#1 {...}
        ==>
        %0 = call @srjit.scaled_dot_int8_int8_cpu(%q#0, %q#1, %r#0, %r#1)
    """

    name = "srjit-legalize"
    target: str = "auto"

    def run(self, module: ir.Operation) -> None:
        """Legalizes."""
        from srjit import targets

        try:
            target = targets.get(self.target)
        except ValueError as error:
            raise PassError(None, str(error)) from None
        library = Library(module)
        unknown: dict[str, None] = {}
        inlined: list[Any] = []
        functions = symbols.functions(module)
        composites = [
            op
            for function in functions.values()
            for op in annotation.operations(function)
            if annotation.is_composite(op)
        ]
        used: dict[str, None] = {}
        for op in composites:
            name = symbols.text(op, "name")
            decomposition = ir.FlatSymbolRefAttr(op.attributes["decomposition"]).value
            if name == QUANTIZE:
                call = _decomposed(op)
            elif name == SCALED_DOT:
                call = (
                    _decomposed(op) if target.name == "portable" else _product(op, target, library)
                )
            elif name == "srjit.ragged_dot":
                call = _decomposed(op)
            else:
                unknown[name] = None
                continue
            inlined.append(call)
            used[decomposition] = None
        if target.name == "portable":
            _inline(inlined, module)
        symbols.erase_unused(module, used)
        header = annotation.header_of(module)
        if header is not None:
            notes = [f"composite {n} stays: target {target.name} does not know it" for n in unknown]
            header = dataclasses.replace(header, target=target.name, notes=(*header.notes, *notes))
            module.attributes[annotation.REPORT] = attributes.encode(header)


def _decomposed(op: Any) -> Any:
    """A composite as a call of its decomposition."""
    return _called(op, ir.FlatSymbolRefAttr(op.attributes["decomposition"]).value)


def _product(op: Any, target: Any, library: Library) -> Any:
    try:
        dot = ScaledDot.read(op)
    except (ValueError, TypeError, LookupError) as error:
        raise PassError(op, f"a composite {SCALED_DOT!r} that srjit did not write: {error}") from None
    label = f"{dot.label}_{target.name}"
    symbol, _ = library.lowered(label, dot, dot.on(target.name), signature_of(op.operands))
    return _called(op, symbol)


def _called(op: Any, symbol: str) -> Any:
    sites = op.attributes[annotation.SITES] if annotation.SITES in op.attributes else None
    with ir.InsertionPoint(op), op.location:
        new = ir.Operation.create(
            "func.call",
            results=[r.type for r in op.results],
            operands=list(op.operands),
            attributes={"callee": ir.FlatSymbolRefAttr.get(symbol)}
            | ({annotation.SITES: sites} if sites is not None else {}),
        )
    for old, result in zip(op.results, new.results, strict=True):
        old.replace_all_uses_with(result)
    op.erase()
    return new


def _inline(calls: list[Any], module: Any) -> None:
    """Puts the operations of called functions in place of the calls."""
    from srjit._mlir import inlined_func_call

    known = symbols.functions(module)
    for call in calls:
        callee = known[editing.callee_of(call) or ""]
        if why_closed(callee):
            continue
        with ir.InsertionPoint(call), call.location:
            results = inlined_func_call(callee, list(call.operands))
        for old, new in zip(call.results, results, strict=True):
            old.replace_all_uses_with(new)
        _pass_on_sites(call, results)
        call.erase()


def _pass_on_sites(call: Any, results: list[Any]) -> None:
    """Writes what is known about an inlined product onto the operation that makes its result."""
    if annotation.SITES not in call.attributes:
        return
    op = editing.owner(results[0])
    sites = call.attributes[annotation.SITES]
    if op is not None and annotation.SITES not in op.attributes:
        op.attributes[annotation.SITES] = sites
