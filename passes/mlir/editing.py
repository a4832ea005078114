"""Changes to operations that MLIR's Python bindings have no call for."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from srjit._mlir import ir
from srjit.passes.driver.registry import PassError
from srjit.program.stablehlo import operations


def constant(value: int) -> Any:
    """A ``tensor<ui32>`` constant at the insertion point."""
    unsigned = ir.IntegerType.get_unsigned(32)
    array: Any = np.asarray(value, np.uint32)
    attribute = ir.DenseElementsAttr.get(array, type=unsigned)
    kind = ir.RankedTensorType.get([], unsigned)
    return create("stablehlo.constant", [kind], [], {"value": attribute})[0]


def create(
    name: str,
    results: Sequence[Any],
    operands: Sequence[Any],
    attributes: dict[str, Any] | None = None,
) -> list[Any]:
    """The results of a new operation at the insertion point."""
    op = ir.Operation.create(
        name, results=list(results), operands=list(operands), attributes=attributes or {}
    )
    return list(op.results)


def call(symbol: str, results: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    """The results of a call at the insertion point."""
    return create("func.call", results, operands, {"callee": ir.FlatSymbolRefAttr.get(symbol)})


def binary(name: str, left: Any, right: Any) -> Any:
    """``stablehlo.<name>`` of two values of one type."""
    return create(f"stablehlo.{name}", [left.type], [left, right])[0]


def attributes_of(op: Any) -> dict[str, Any]:
    """The attributes of an operation, as a dictionary of its own.

    Raises:
      PassError: one of them is nothing that MLIR's bindings can hand on.
    """
    found = {name: operations.attribute_of(op, name) for name in op.attributes}
    for name, value in found.items():
        if isinstance(value, str):
            raise PassError(op, f"MLIR's Python bindings cannot copy attribute {name!r}: {value}")
    return found


def recreated(
    op: ir.Operation,
    operands: Iterable[ir.Value[Any]],
    results: Iterable[ir.Type],
    **attributes: ir.Attribute,
) -> ir.Operation:
    """A new operation before ``op`` with its name, attributes and regions, which move over.

    Args:
      op: the old operation, which stays.
      operands: of the new one.
      results: types of its results.
      **attributes: that change.
    """
    with ir.InsertionPoint(op), op.location:
        new = ir.Operation.create(
            op.name,
            results=list(results),
            operands=list(operands),
            attributes=attributes_of(op) | attributes,
            regions=len(op.regions),
        )
    for old_region, new_region in zip(op.regions, new.regions, strict=True):
        for block in list(old_region.blocks):
            block.append_to(new_region)
    return new


def remade(
    op: ir.Operation,
    operands: Iterable[ir.Value[Any]],
    results: Iterable[ir.Type],
    **attributes: ir.Attribute,
) -> ir.Operation:
    """Does as ``recreated``; ``results`` follow those of ``op``, which are not used any more."""
    new = recreated(op, operands, [*(r.type for r in op.results), *results], **attributes)
    for old, result in zip(op.results, new.results, strict=False):
        old.replace_all_uses_with(result)
    return new


def replace(op: ir.Operation, values: Iterable[ir.Value[Any]]) -> None:
    """Erases an operation, in place of whose results others are used."""
    for result, value in zip(op.results, values, strict=True):
        result.replace_all_uses_with(value)
    op.erase()


def return_instead(block: ir.Block, values: Iterable[ir.Value[Any]]) -> None:
    """Lets a block return other values."""
    last = operations.terminator(block)
    recreated(last, values, [])
    last.erase()


def return_more(block: ir.Block, values: Sequence[ir.Value[Any]]) -> None:
    """Lets a block return some values more."""
    return_instead(block, [*operations.terminator(block).operands, *values])


def free_symbol(name: str, taken: set[str]) -> str:
    """A symbol like ``name`` that is not taken, and now is."""
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    found = next(symbol for symbol in itertools.chain([name], numbered) if symbol not in taken)
    taken.add(found)
    return found


def clone_function(function: ir.Operation, name: str) -> ir.Operation:
    """A private copy of a function behind it."""
    with ir.InsertionPoint(function):
        new = function.clone().operation  # of a function's view, `name` is the symbol
    new.move_after(function)
    new.attributes["sym_name"] = ir.StringAttr.get(name)
    new.attributes["sym_visibility"] = ir.StringAttr.get("private")
    return new


def carry_more(
    loop: Any, initial: Sequence[Any], update: Callable[[list[Any]], Sequence[Any]]
) -> Any:
    """A ``stablehlo.while`` that carries some values more, remade as ``remade`` does it.

    Args:
      loop: the old one.
      initial: the values on the first trip.
      update: of these values on one trip, makes those of the next, at the end of the body.
    """
    types = [v.type for v in initial]
    new = remade(loop, [*loop.operands, *initial], types)
    for region in new.regions:
        for kind in types:
            region.blocks[0].add_argument(kind, new.location)
    body = new.regions[1].blocks[0]
    with ir.InsertionPoint(operations.terminator(body)), new.location:
        updated = update(list(body.arguments)[-len(initial) :])
    return_more(body, updated)
    return new


def add_arguments(
    function: ir.Operation, types: Sequence[ir.Type], attributes: Iterable[ir.Attribute] = ()
) -> list[Any]:
    """New last arguments of a function; callers have to be changed too.

    Args:
      function: a ``func.func`` with a body.
      types: of the arguments.
      attributes: a dictionary attribute for each; none for empty ones.
    """
    _lengthen(function, "arg_attrs", types, attributes)
    block = operations.body_of(function)
    return [block.add_argument(t, function.location) for t in types]


def add_results(
    function: ir.Operation, values: Sequence[Any], attributes: Iterable[ir.Attribute] = ()
) -> None:
    """New last results of a function; callers have to be changed too."""
    if values:
        _lengthen(function, "res_attrs", [v.type for v in values], attributes)
        return_more(operations.body_of(function), values)


def _lengthen(
    function: ir.Operation, which: str, types: Sequence[ir.Type], attributes: Iterable[ir.Attribute]
) -> None:
    """Writes more arguments (``arg_attrs``) or results into a function's type and attributes."""
    if not types:
        return
    inputs, outputs = operations.types_of(function)
    known = inputs if which == "arg_attrs" else outputs
    empty = ir.DictAttr.get({})
    old: Iterable[ir.Attribute] = [empty] * len(known)
    if which in function.attributes:
        old = ir.ArrayAttr(function.attributes[which])
    given = [*old, *(list(attributes) or [empty] * len(types))]
    known += types
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, outputs))
    if which in function.attributes or any(len(ir.DictAttr(a)) for a in given):
        function.attributes[which] = ir.ArrayAttr.get(given)


def erase_unused_functions(module: ir.Operation, names: Iterable[str]) -> None:
    """Erases those private functions, and what only they use, that nothing mentions any more."""
    pending = list(names)
    if not pending:
        return
    known = operations.functions(module)
    mentions = collections.Counter(
        symbol for op in operations.top_level(module) for symbol in operations.used(op)
    )
    while pending:
        name = pending.pop()
        function = known.get(name)
        if function is None or mentions[name] or operations.is_public(function):
            continue
        inside = operations.used(function)
        mentions.subtract(inside)
        pending += inside
        del known[name]
        function.erase()
