"""Calls of a target's own functions in place of composites."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from srjit._mlir import ir
from srjit.passes.driver.registry import PassError
from srjit.passes.emit.composites import QUANTIZE, SCALED_DOT, Quantizer, ScaledDot, Together
from srjit.passes.emit.lowering import Library, signature_of
from srjit.passes.mlir import annotation, editing
from srjit.program.stablehlo import operations

if TYPE_CHECKING:
    from srjit.targets import Target

_READERS = {QUANTIZE: Quantizer.read, SCALED_DOT: ScaledDot.read}


class TargetCalls:
    """Replaces composites by calls of the functions that a target has of its own for them.

    Where the target multiplies codes with the scales of their blocks beside them, so it gets them,
    if nothing but products read them. What is quantized in several ways in one block is read once
    for all of them, where the target does that.
    """

    def __init__(self, target: Target, module: Any) -> None:
        self.target = target
        self.library = Library(module)
        self.runs_alone = operations.device_counts(module) == (1, 1)  # it says so
        self.blocks: dict[Any, Any] = {}  # scales of blocks that stand beside codes

    def replace(self, composites: Sequence[Any]) -> None:
        """Replaces composites of srjit, in order; by their decompositions where that is as good.

        Raises:
          PassError: one is not what srjit writes.
        """
        found = {op: self._read(op) for op in composites}
        groups = self._joint(found)
        together = {op for group in groups for op, _ in group}
        one_by_one = [(op, one) for op, one in found.items() if op not in together]
        for group in groups:
            self._replace_together(group)
        for op, one in one_by_one:
            self._replace(op, one)

    def _read(self, op: Any) -> Quantizer | ScaledDot | None:
        """The meaning of a composite; None if the target has nothing of its own for it."""
        from srjit.targets.target import PORTABLE, emulate

        name = operations.text(op, "name")
        emulates = name == QUANTIZE and self.target.quantize is emulate
        if self.target is PORTABLE or name not in _READERS or emulates:
            return None
        try:
            found = _READERS[name](op)
        except (ValueError, TypeError, LookupError) as error:
            why = f"a composite {name!r} that srjit did not write: {error}"
            raise PassError(op, why) from None
        if isinstance(found, Quantizer):
            users = [use.owner.operation for use in op.results[0].uses]
            is_only_multiplied = all(annotation.is_composite(user, SCALED_DOT) for user in users)
            return dataclasses.replace(found, beside=self.runs_alone and is_only_multiplied)
        return found

    def _replace(self, op: Any, found: Quantizer | ScaledDot | None) -> None:
        operands = list(op.operands)
        if found is None:
            symbol = ir.FlatSymbolRefAttr(op.attributes["decomposition"]).value
            editing.replace(op, _called(op, symbol, [r.type for r in op.results], operands))
        elif isinstance(found, ScaledDot):
            self._replace_product(op, found)
        else:
            self._give(op, _called(op, *self._lowered(found, operands), operands))

    def _give(self, op: Any, results: list[Any]) -> None:
        """Replaces a quantization by its results, which may have scales of blocks among them."""
        if len(results) > len(op.results):
            self.blocks[results[0]] = results.pop(1)
        editing.replace(op, results)

    def _replace_product(self, op: Any, found: ScaledDot) -> None:
        from srjit.planning.site import SitePlan

        values = list(op.operands)
        a, b = found.counts
        shapes = tuple(shape for shape, _ in signature_of([values[0], values[a]]))
        blocked = values[0] in self.blocks, values[a] in self.blocks
        operands: list[Any] = []
        for codes, *rest in (values[:a], values[a : a + b]):
            operands += [codes, *([self.blocks[codes]] if codes in self.blocks else []), *rest]
        operands += values[a + b :]
        found = dataclasses.replace(found, counts=(a + blocked[0], b + blocked[1]), blocked=blocked)
        specs = found.lhs, found.rhs
        as_planned = all(
            b or s is None or not s.is_blocked for b, s in zip(blocked, specs, strict=True)
        )
        is_native = as_planned and self.target.native(found.product, (shapes[0], shapes[1]), specs)
        if is_native and annotation.SITES in op.attributes:  # as the decorator's plans say
            entries = annotation.read(op, SitePlan)
            annotation.write(op, [dataclasses.replace(e, status="native") for e in entries])
        editing.replace(op, _called(op, *self._lowered(found, operands), operands))

    def _lowered(
        self, found: Quantizer | ScaledDot | Together, operands: list[Any]
    ) -> tuple[str, list[Any]]:
        """The function that the target runs, and the types of its results."""
        from srjit.targets.kernel_call import as_part

        compiler = self.target.compiler
        kernels = contextlib.nullcontext() if self.runs_alone else as_part()
        with kernels, self.target.lowering():
            return self.library.lowered(
                f"{found.label}_{self.target.name}",
                (found, self.target, self.runs_alone),
                found.on(self.target),
                signature_of(operands),
                platform=compiler.platform if compiler else "cpu",
                result=found.result,
            )

    # ---------------------------------------------------------------- several ways at once

    def _joint(
        self, found: dict[Any, Quantizer | ScaledDot | None]
    ) -> list[list[tuple[Any, Quantizer]]]:
        """Quantizations of one value in one block that can be made at the first of them."""
        if self.target.quantize_together is None or not self.runs_alone:
            return []
        groups: dict[Any, list[tuple[Any, Quantizer]]] = collections.defaultdict(list)
        for op, q in found.items():
            if isinstance(q, Quantizer) and not (q.flips or q.remembers):
                groups[op.operands[0], op.block, q.rng, q.spec.format].append((op, q))
        joint: list[list[tuple[Any, Quantizer]]] = []
        for (first, quantizer), *others in groups.values():
            hoisted = [(op, q) for op, q in others if _hoisted(op.operands, first)]
            if any(q.spec != quantizer.spec for _, q in hoisted):
                joint.append([(first, quantizer), *hoisted])
        return joint

    def _replace_together(self, group: list[tuple[Any, Quantizer]]) -> None:
        first = group[0][0]
        beside = all(q.beside for _, q in group)
        wanted: dict[Any, list[Any]] = collections.defaultdict(list)  # equal ones are made once
        for op, q in group:
            wanted[dataclasses.replace(q, beside=beside), *op.operands[1:]].append(op)
        together = Together(tuple(q for q, *_ in wanted))
        operands = [first.operands[0], *(word for _, *words in wanted for word in words)]
        results = _called(first, *self._lowered(together, operands), operands)
        each = len(results) // len(wanted)
        for i, ops in enumerate(wanted.values()):
            for op in ops:
                self._give(op, results[i * each : (i + 1) * each])


def _hoisted(values: Iterable[Any], before: Any) -> bool:
    """True if values can be, and now are, computed before an operation of their block."""
    moving: dict[Any, None] = {}  # what uses something first

    def can_move(value: Any) -> bool:
        op = operations.owner(value)
        if op is None or op.block != before.block or op.is_before_in_block(before):
            return True
        moving.pop(op, None)
        moving[op] = None
        ours = (operations.callee_of(op) or annotation.PREFIX).startswith(annotation.PREFIX)
        simple = not (len(op.regions) or operations.is_effectful(op) or annotation.is_composite(op))
        return simple and ours and all(map(can_move, op.operands))

    if not all(map(can_move, values)):
        return False
    for op in reversed(moving):
        op.move_before(before)
    return True


def _called(op: Any, symbol: str, types: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    attributes: dict[str, Any] = {"callee": ir.FlatSymbolRefAttr.get(symbol)}
    for kept in annotation.MOVED:
        if kept in op.attributes:
            attributes[kept] = op.attributes[kept]
    with ir.InsertionPoint(op), op.location:
        return editing.create("func.call", types, operands, attributes)
