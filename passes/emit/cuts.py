"""Cuts of a module's products by devices, by Shardy's propagation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from srjit._mlir import ir, stablehlo
from srjit.passes.emit import shardings
from srjit.program.stablehlo.program import read_equation

if TYPE_CHECKING:
    from srjit.planning.profit import Cut, Cuts
    from srjit.program.values import Occurrence


def cuts_of(module: ir.Operation, occurrences: Sequence[Occurrence]) -> Cuts | None:
    """The cuts of a module's products; None if nobody knows how it is sharded.

    Args:
      module: with shardings of ``@main``'s arguments.
      occurrences: of its products.
    """
    ops = [read_equation(o.eqn).op for o in occurrences]
    different = list(dict.fromkeys(ops))
    try:
        with module.context:
            copy, found = shardings.propagated(module, different)
    except ir.MLIRError:
        return None
    cuts = {
        op: _cut(copies[0], copy) if copies else None
        for op, copies in zip(different, found, strict=True)
    }
    return [cuts[op] for op in ops]


def _cut(dot: Any, copy: ir.Operation) -> Cut | None:
    from srjit.planning.profit import Cut

    mesh = shardings.mesh_of(dot.results[0], copy)
    if dot.name != "stablehlo.dot_general" or mesh is None:
        return None
    sizes = shardings.sizes_of(mesh)
    given = (*dot.operands, dot.results[0])
    lhs, rhs, out = (_axes_of(value) for value in given)
    numbers = stablehlo.DotDimensionNumbers(dot.attributes["dot_dimension_numbers"])
    batch = numbers.lhs_batching_dimensions, numbers.rhs_batching_dimensions
    contracted = numbers.lhs_contracting_dimensions, numbers.rhs_contracting_dimensions
    # The labels of DotProduct.
    paired = {r: d for ls, rs in (batch, contracted) for d, r in zip(ls, rs, strict=True)}
    free = [
        *(d for d in range(len(lhs)) if d not in (*batch[0], *contracted[0])),
        *(len(lhs) + d for d in range(len(rhs)) if d not in paired),
    ]
    summed = {d: lhs[d] & rhs[r] for d, r in zip(*contracted, strict=True)}
    taken = set(itertools.chain.from_iterable(summed.values()))
    kept = dict(zip([*batch[0], *free], (axes - taken for axes in out), strict=True))

    def parts(axes: set[str]) -> int:
        return math.prod(sizes.get(name, 1) for name in axes)

    labels = {label: parts(axes) for label, axes in (summed | kept).items()}
    wholes = tuple(math.prod(map(parts, dims)) for dims in (lhs, rhs, out))
    return Cut(labels, (wholes[0], wholes[1], wholes[2]))


def _axes_of(value: Any) -> list[set[str]]:
    return shardings.axes_of(value) or [set()] * ir.RankedTensorType(value.type).rank
