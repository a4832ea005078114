"""``srjit-legalize``: composites of srjit as what a target runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from srjit._mlir import ir
from srjit.passes.registry import Pass, PassError, register
from srjit.passes.support import annotation, attributes, editing, symbols
from srjit.passes.support.composites import QUANTIZE, SCALED_DOT, Quantizer, ScaledDot
from srjit.passes.support.lowering import Library, signature_of
from srjit.passes.support.products import RAGGED
from srjit.passes.support.raising import why_closed

if TYPE_CHECKING:
    from srjit.targets import Target


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Legalize(Pass):
    """Replaces composites of srjit by the operations that a target runs.

    Every number is defined once: a target's products and quantizations are those that the
    decorator uses there. ``target=portable`` inlines the decompositions that the composites carry.
    A composite that srjit does not know stays, and the report says so.

    Attributes:
      target: a chip's name, `portable`, or `auto`: the attached device's.

    Before ==> after:
        %0 = stablehlo.composite "srjit.scaled_dot" %q#0, %q#1, %r#0, %r#1 {...}
        ==>
        %0 = call @srjit.scaled_dot_int8_int8_cpu(%q#0, %q#1, %r#0, %r#1)
    """

    name: ClassVar[str] = "srjit-legalize"
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
        known: dict[Any, str] = {}
        composites = [
            op
            for function in symbols.functions(module).values()
            for op in annotation.operations(function)
            if annotation.is_composite(op)
        ]
        used: dict[str, None] = {}
        for op in composites:
            name = symbols.text(op, "name")
            decomposition = ir.FlatSymbolRefAttr(op.attributes["decomposition"]).value
            if name in _READERS and target.name != "portable":
                _called(op, _on(target, op, library, known) or decomposition)
            elif name in (QUANTIZE, SCALED_DOT, RAGGED):
                _called(op, decomposition)
            else:
                unknown[name] = None
                continue
            used[decomposition] = None
        if target.name == "portable" and used:
            used |= dict.fromkeys(_inline(module))
        symbols.erase_unused(module, used)
        header = annotation.header_of(module)
        if header is not None:
            notes = [f"composite {n} stays: target {target.name} does not know it" for n in unknown]
            header = dataclasses.replace(header, target=target.name, notes=(*header.notes, *notes))
            module.attributes[annotation.REPORT] = attributes.encode(header)


_READERS = {QUANTIZE: Quantizer.read, SCALED_DOT: ScaledDot.read}


def _on(target: Target, op: Any, library: Library, known: dict[Any, str]) -> str | None:
    """The function that a target runs for a composite, if it has one of its own.

    Args:
      target: what is compiled for.
      op: the composite.
      library: to lower into.
      known: those that were found before.
    """
    from srjit.targets.base import emulate
    from srjit.targets.kernel_call import without_kernels

    name = symbols.text(op, "name")
    if name == QUANTIZE and target.quantize is emulate:
        return None
    types = tuple(v.type for v in (*op.operands, *op.results))
    key = (name, op.attributes["composite_attributes"], types)
    if key not in known:
        try:
            found = _READERS[name](op)
        except (ValueError, TypeError, LookupError) as error:
            why = f"a composite {name!r} that srjit did not write: {error}"
            raise PassError(op, why) from None
        if found is None:
            return None
        signature = signature_of(op.operands)
        label = f"{found.label}_{target.name}"
        platform = target.compiler.platform if target.compiler else None
        partitions = not _runs_alone(library.module)  # which kernels do not
        with without_kernels() if partitions else contextlib.nullcontext():
            known[key], _ = library.lowered(
                label, found, found.on(target.name), signature, platform=platform
            )
    return known[key]


def _runs_alone(module: Any) -> bool:
    """Whether a module says that it is of a program on one device."""
    counts = ("mhlo.num_partitions", "mhlo.num_replicas")
    given = module.attributes
    return all(n in given and ir.IntegerAttr(given[n]).value == 1 for n in counts)


def _called(op: Any, symbol: str) -> None:
    """Puts a call in place of a composite."""
    attributes: dict[str, Any] = {"callee": ir.FlatSymbolRefAttr.get(symbol)}
    if annotation.SITES in op.attributes:
        attributes[annotation.SITES] = op.attributes[annotation.SITES]
    with ir.InsertionPoint(op), op.location:
        new = ir.Operation.create(
            "func.call",
            results=[r.type for r in op.results],
            operands=list(op.operands),
            attributes=attributes,
        )
    for old, result in zip(op.results, new.results, strict=True):
        old.replace_all_uses_with(result)
    op.erase()


def _inline(module: Any) -> set[str]:
    """Puts what functions of srjit do in place of the calls, in these functions first; which."""
    known = symbols.functions(module)
    inlined: set[str] = set()
    done: dict[str, bool] = {}  # False: while it is being done, as of one that calls itself

    def flatten(name: str) -> None:
        done[name] = False
        calls = [op for op in annotation.operations(known[name]) if _calls_ours(op)]
        for call in calls:
            called = editing.callee_of(call) or ""
            if called not in done:
                flatten(called)
            if done[called] and not why_closed(known[called]):
                _inline_one(call, known[called])
                inlined.add(called)
        done[name] = True

    for name in known:
        if name not in done:
            flatten(name)
    return inlined


def _inline_one(call: Any, callee: Any) -> None:
    from srjit._mlir import inlined_func_call

    with ir.InsertionPoint(call), call.location:
        results = inlined_func_call(callee, list(call.operands))
    for old, new in zip(call.results, results, strict=True):
        old.replace_all_uses_with(new)
    _pass_on_sites(call, results)
    call.erase()


def _pass_on_sites(call: Any, results: Sequence[Any]) -> None:
    """Writes what is known about an inlined product onto the operation that makes its result."""
    op = editing.owner(results[0]) if annotation.SITES in call.attributes else None
    if op is not None and annotation.SITES not in op.attributes:
        op.attributes[annotation.SITES] = call.attributes[annotation.SITES]


_OURS = "srjit."


def _calls_ours(op: Any) -> bool:
    return (editing.callee_of(op) or "").startswith(_OURS)
