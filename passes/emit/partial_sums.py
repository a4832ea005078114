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
from srjit.passes.mlir import editing
from srjit.program.stablehlo import operations

_SAID, _NUMBER = "mhlo.frontend_attributes", "srjit.number"


def settle(module: ir.Operation, returned: Sequence[Any] | None = None) -> int:
    """Changes products that say in which dtype parts of them are added, and lets none say it.

    Args:
      module: of all devices, with shardings of ``@main``'s arguments.
      returned: values of ``@main`` that depend on all of it, if it is still being written.

    Returns:
      How many products were changed.
    """
    found = [op for op in operations.inside(module) if _said(op)]
    dots = [op for op in found if op.name == "stablehlo.dot_general"]
    count = operations.device_counts(module)[0]
    sharded = _sharded(module, dots, returned) if dots and (count or 1) > 1 else []
    with module.context:
        for op, whole in sharded:
            _add_in(op, _said(op))
            if whole is not None:
                _constrain(op, whole)
        for op in found:
            _forget(op)
    return len(sharded)


def _sharded(
    module: ir.Operation, dots: list[Any], returned: Sequence[Any] | None
) -> list[tuple[Any, Any]]:
    """The products of which devices have parts of the contraction, and how to shard the sums.

    None where they are sharded as they are to be; otherwise one device keeps a part of what all
    devices add.
    """
    with module.context:
        for number, op in enumerate(dots):
            op.attributes[_NUMBER] = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), number)
    try:
        copy = shardings.propagated(module, returned)
    except ir.MLIRError as error:
        from srjit import _stack

        _stack.warn(
            "how the program is sharded is not known, so that parts of products which devices add "
            f"may take more bytes than the program's own: {error}"
        )
        return []
    finally:
        for op in dots:
            del op.attributes[_NUMBER]
    numbered = [op for op in operations.inside(copy) if _NUMBER in op.attributes]
    found: dict[int, Any] = {}
    for op in numbered:
        if axes := _contracted(op):
            number = ir.IntegerAttr(op.attributes[_NUMBER]).value
            found[number] = shardings.without(op.results[0], axes, module)
    return [(op, found[number]) for number, op in enumerate(dots) if number in found]


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


def _said(op: Any) -> str:
    """The element type in which an operation says that parts of it are added; empty if none."""
    from srjit.products.dot import SUMS

    if _SAID not in op.attributes:
        return ""
    given = ir.DictAttr(op.attributes[_SAID])
    return ir.StringAttr(given[SUMS]).value if SUMS in given else ""


def _forget(op: Any) -> None:
    from srjit.products.dot import SUMS

    given = {entry.name: entry.attr for entry in ir.DictAttr(op.attributes[_SAID])}
    del given[SUMS]
    del op.attributes[_SAID]
    if given:
        op.attributes[_SAID] = ir.DictAttr.get(given)
