"""Products whose contraction is sharded: parts are added in the dtype of the program's product.

A compiler multiplies what each device has and adds the parts over devices, before it scales them:
of int8 codes as int32, which is twice what the program's own product sent in bfloat16, and which
libtpu cannot reduce-scatter. So where a contraction is sharded, the parts leave the unit in the
program's own dtype. Products that are not sharded so, and programs of one device, stay as they are,
to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from srjit._mlir import ir, stablehlo
from srjit.passes.emit import shardings
from srjit.passes.mlir import attributes, editing
from srjit.program.stablehlo import operations


def add(module: ir.Operation, dots: Sequence[Any], found: Sequence[Sequence[Any]]) -> None:
    """Changes the products whose contraction is sharded.

    Args:
      module: of all devices.
      dots: its products that say in which dtype parts of them are added.
      found: of each, the copies that say how their operands are sharded.
    """
    for op, copies in zip(dots, found, strict=True):
        sharded = [(copy, axes) for copy in copies if (axes := _contracted(copy))]
        if not sharded:
            continue
        copy, axes = sharded[-1]
        whole = shardings.without(copy.results[0], axes, module)
        _add_in(op, said(op))
        if whole is not None:
            _constrain(op, whole)


def _contracted(dot: Any) -> set[str]:
    """The axes over which both operands of a product are sharded where they are contracted."""
    numbers = stablehlo.DotDimensionNumbers(dot.attributes["dot_dimension_numbers"])
    lhs, rhs = map(shardings.axes_of, dot.operands)
    if lhs is None or rhs is None:
        return set()
    pairs = zip(numbers.lhs_contracting_dimensions, numbers.rhs_contracting_dimensions, strict=True)
    return {axis for a, b in pairs for axis in lhs[a] & rhs[b]}


def _constrain(dot: Any, whole: Any) -> None:
    """Lets devices add all of a product before they keep their parts of it, in one collective.

    Otherwise XLA may send an operand, in float32, by all-to-all instead.
    """
    result = dot.results[0]
    with ir.InsertionPoint(dot), dot.location:
        said = {"sharding": whole}
        (constrained,) = editing.create("sdy.sharding_constraint", [result.type], [result], said)
    constraint = operations.owner(constrained)
    assert constraint is not None
    constraint.move_after(dot)
    result.replace_all_uses_except(constrained, constraint)


def _add_in(dot: Any, name: str) -> None:
    """Lets a product give its result in another element type, to be converted when it is added."""
    result, old = dot.results[0], ir.RankedTensorType(dot.results[0].type)
    new = ir.RankedTensorType.get(old.shape, ir.Type.parse(name), old.encoding)
    if new == old:
        return
    result.set_type(new)
    users = [use.owner.operation for use in result.uses]
    if len(users) == 1 and users[0].name == "stablehlo.convert":
        return
    with ir.InsertionPoint(dot), dot.location:
        (back,) = editing.create("stablehlo.convert", [old], [result])
    converted = operations.owner(back)
    assert converted is not None
    converted.move_after(dot)
    result.replace_all_uses_except(back, converted)


def said(op: Any) -> str:
    """The element type in which an operation says that parts of it are added; empty if none."""
    from srjit.products.dot import SUMS

    return attributes.frontend(op, SUMS)
