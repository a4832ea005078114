"""``srjit-share-quantized``: one quantization where several multiplications use the same codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any, ClassVar

from srjit._mlir import ir
from srjit.passes.driver.registry import Pass, register
from srjit.passes.emit.composites import QUANTIZE
from srjit.passes.mlir import annotation, editing
from srjit.program.stablehlo import operations

# Regions that values of the enclosing block can be used in.
_OPEN = ("stablehlo.while", "stablehlo.case", "stablehlo.if")


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareQuantized(Pass):
    """Quantizes a tensor once where several multiplications want the same codes.

    The forward multiplication, dgrad and wgrad read each tensor twice. Where the recipe's scales do
    not depend on which dimension is contracted, both want the same codes: same operand, same
    quantization, and, if it draws noise, same key. Codes are shared inside a function and with the
    loops and branches in it; run ``srjit-inline-calls`` first to share across functions. Results do
    not change by a bit.

    Before ==> after:
        %q:2 = stablehlo.composite "srjit.quantize" %x {...}
        %r:2 = stablehlo.composite "srjit.quantize" %x {...}
        ==>
        %q:2 = stablehlo.composite "srjit.quantize" %x {...}
    """

    name: ClassVar[str] = "srjit-share-quantized"

    def run(self, module: ir.Operation) -> dict[str, int]:
        """Shares."""
        shared = 0
        for region in module.regions:
            for block in region.blocks:
                shared += _share(block, {}, {})
        return {"quantizations shared": shared}


def _share(block: Any, known: dict[Hashable, Any], same: dict[Any, Any]) -> int:
    """Shares in a block and the regions inside, and counts; ``same``: what a value always is."""
    shared = 0
    for op in list(block.operations):
        op = op.operation
        if annotation.is_composite(op, QUANTIZE):
            key = (
                ir.FlatSymbolRefAttr(op.attributes["decomposition"]).value,
                *(same.get(v, v) for v in op.operands),
            )
            first = known.setdefault(key, op)
            if first != op:
                editing.replace(op, first.results)
                shared += 1
                continue
        is_open = op.name in _OPEN
        inside = {**same, **(_invariants(op, same) if op.name == "stablehlo.while" else {})}
        for region in op.regions:
            for inner in region.blocks:
                shared += _share(inner, dict(known) if is_open else {}, inside if is_open else {})
    return shared


def _invariants(op: Any, same: dict[Any, Any]) -> dict[Any, Any]:
    """The invariants of a loop: for each argument that never changes, its first value."""
    found: dict[Any, Any] = {}
    condition, body = (region.blocks[0] for region in op.regions)
    returned = operations.terminator(body).operands
    for i, (argument, result) in enumerate(zip(body.arguments, returned, strict=True)):
        if argument == result:
            given = op.operands[i]
            found[argument] = found[condition.arguments[i]] = same.get(given, given)
    return found
