"""Shardings of a module's values, by Shardy's propagation: the one that XLA's compilers run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from srjit._mlir import func, ir, passmanager, sdy
from srjit.passes.driver import diagnostics
from srjit.passes.inline_calls import inline
from srjit.passes.mlir import editing
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.meshes import Spec, mesh_named_by

_SHARDING, _NUMBER = "sdy.sharding", "srjit.number"


def are_given(function: ir.Operation) -> bool:
    """True if a function says how any of its arguments is sharded."""
    return any(_SHARDING in given for given in _given(function))


def _given(function: ir.Operation) -> list[ir.DictAttr]:
    """The attributes of each argument of a function; none if it has no list of them."""
    if "arg_attrs" not in function.attributes:
        return []
    return [ir.DictAttr(each) for each in ir.ArrayAttr(function.attributes["arg_attrs"])]


def propagated(
    module: ir.Operation, asked: Sequence[Any], returned: Sequence[Any] | None = None
) -> tuple[ir.Operation, list[list[Any]]]:
    """A copy of a module in which every operation says how its results are sharded.

    Args:
      module: with shardings of ``@main``'s arguments.
      asked: operations of it that are to be found again: calls, whose functions are not there any
        more, as two operations that return their arguments and their results.
      returned: the values that ``@main`` is to return in the copy, if it is still being written.

    Returns:
      The copy, and for each operation the ones that it has become: one for each call of a function.

    Raises:
      ir.MLIRError: it does not verify, or Shardy cannot do it.
    """
    for number, op in enumerate(asked):
        op.attributes[_NUMBER] = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), number)
    copy = module.clone(ip=False).operation
    for op in asked:
        del op.attributes[_NUMBER]
    with copy.context, ir.Location.unknown():
        if returned is not None:
            _finish(operations.main_of(module), operations.main_of(copy), returned)
            # As JAX does at the end of its own lowering.
            _run("sdy-lift-inlined-meshes", copy)
        for call in list(operations.inside(copy)):
            if call.name == "func.call" and _NUMBER in call.attributes:
                _mark(call)
        # As XLA does, or nothing would enter a function from the gradients of a loop.
        with diagnostics.going_to(lambda _: None, copy.context):  # not every one can be
            inlined = inline(copy, lambda name: name != operations.entry_of(copy))
        editing.erase_unused_functions(copy, inlined)
        _run("sdy-propagation-pipeline", copy)
    found: list[list[Any]] = [[] for _ in asked]
    for op in operations.inside(copy):
        if _NUMBER in op.attributes:
            found[ir.IntegerAttr(op.attributes[_NUMBER]).value].append(op)
    return copy, found


def _mark(call: Any) -> None:
    """Lets a call's arguments, and its results, pass operations that have the call's number."""
    said = {_NUMBER: call.attributes[_NUMBER]}
    for name in (_NUMBER, "mhlo.frontend_attributes"):
        del call.attributes[name]

    def passed(values: list[Any]) -> list[Any]:
        return editing.create(
            "stablehlo.optimization_barrier", [value.type for value in values], values, said
        )

    with ir.InsertionPoint(call), call.location:
        for i, value in enumerate(passed(list(call.operands))):
            call.operands[i] = value
        results = passed(list(call.results))
    barrier = operations.owner(results[0])
    assert barrier is not None
    barrier.move_after(call)
    for old, new in zip(call.results, results, strict=True):
        old.replace_all_uses_except(new, barrier)


def _run(step: str, module: ir.Operation) -> None:
    passmanager.PassManager.parse(f"builtin.module({step})").run(module)


def _finish(unfinished: ir.Operation, main: ir.Operation, returned: Sequence[Any]) -> None:
    """Lets a copy of an unfinished function return the copies of some values."""
    old, block = operations.body_of(unfinished), operations.body_of(main)
    copies: dict[Any, Any] = dict(zip(old.arguments, block.arguments, strict=True))
    for op, copied in zip(old.operations, block.operations, strict=True):
        copies.update(zip(op.operation.results, copied.operation.results, strict=True))
    values = [copies[value] for value in returned]
    func.ReturnOp(values, ip=ir.InsertionPoint(block))
    types = [argument.type for argument in block.arguments], [value.type for value in values]
    main.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(*types))
    if "res_attrs" in main.attributes:
        del main.attributes["res_attrs"]


def axes_of(value: Any) -> list[set[str]] | None:
    """The mesh axes over which each dimension of a value is sharded; None: it is not known.

    Args:
      value: of a module of ``propagated``. Inside of a manual region, axes that are not manual.
    """
    owner = value.owner
    if isinstance(owner, ir.Block):
        return _axes_of_argument(owner.owner.operation, ir.BlockArgument(value).arg_number)
    if owner.operation.name in ("sdy.sharding_constraint", "sdy.reshard"):
        return _axes(owner.operation.attributes["sharding"])
    found = _per_value(owner.operation, _SHARDING)
    return _axes(found[ir.OpResult(value).result_number]) if found else None


def without(value: Any, axes: set[str], module: ir.Operation) -> Any:
    """The sharding of a result without some axes; None if it has none of them.

    Args:
      value: of a module of ``propagated``.
      axes: of the mesh.
      module: that the sharding is for, which may not have the meshes of the copy.
    """
    sharding = _of_result(value)
    if sharding is None:
        return None
    dims = [sdy.DimensionShardingAttr(dim) for dim in sharding.dimension_shardings]
    if not any(_name(axis) in axes for dim in dims for axis in dim.axes):
        return None
    left = [
        sdy.DimensionShardingAttr.get([a for a in dim.axes if _name(a) not in axes], is_closed=True)
        for dim in dims
    ]
    mesh, symbol = sharding.mesh_or_ref, mesh_named_by(sharding)
    known = {operations.text(op, "sym_name") for op in _meshes(module)}
    if symbol and symbol not in known:  # it is lifted later
        root = operations.root_of(value.owner.operation)
        mesh = next(
            op.attributes["mesh"]
            for op in _meshes(root)
            if operations.text(op, "sym_name") == symbol
        )
    return sdy.TensorShardingAttr.get(mesh, left)


def spec_of(value: Any) -> Spec | None:
    """The axes that shard each dimension of a result, in order; None if they are parts of axes.

    Args:
      value: of a module of ``propagated``, which does not say what every device has a copy of.
    """
    sharding = _of_result(value)
    if sharding is None:
        return ((),) * ir.RankedTensorType(value.type).rank
    dims = [sdy.DimensionShardingAttr(dim).axes for dim in sharding.dimension_shardings]
    axes = [[sdy.AxisRefAttr(axis) for axis in dim] for dim in dims]
    if any(axis.sub_axis_info is not None for dim in axes for axis in dim):
        return None
    return tuple(tuple(axis.name for axis in dim) for dim in axes)


def mesh_of(value: Any, copy: ir.Operation) -> Any:
    """The mesh that a result is sharded over; any, of what all have copies; None if there is none.

    None has devices out of order: which places these have on its axes, nobody can tell.
    """
    sharding = _of_result(value)
    given = {operations.text(op, "sym_name"): op.attributes["mesh"] for op in _meshes(copy)}
    if sharding is None:
        meshes = list(given.values())
    else:
        symbol = mesh_named_by(sharding)
        meshes = [given[symbol] if symbol else sharding.mesh_or_ref]
    known = map(sdy.MeshAttr, meshes)
    return next((mesh for mesh in known if len(mesh.axes) and not mesh.device_ids), None)


def sizes_of(mesh: Any) -> dict[str, int]:
    """The sizes of a mesh's axes."""
    return {axis.name: axis.size for axis in map(sdy.MeshAxisAttr, sdy.MeshAttr(mesh).axes)}


def over(mesh: Any, given: Any) -> Any:
    """The shardings of several values over another mesh with the same axes."""
    found = map(sdy.TensorShardingAttr, sdy.TensorShardingPerValueAttr(given).shardings)
    return sdy.TensorShardingPerValueAttr.get(
        [sdy.TensorShardingAttr.get(mesh, list(each.dimension_shardings)) for each in found]
    )


def _of_result(value: Any) -> Any:
    """The sharding that an operation states for one of its results; None if it states none."""
    found = _per_value(value.owner.operation, _SHARDING)
    if not found:
        return None
    return sdy.TensorShardingAttr(found[ir.OpResult(value).result_number])


def _meshes(module: ir.Operation) -> list[ir.Operation]:
    return [op for op in operations.top_level(module) if op.name == "sdy.mesh"]


def _axes_of_argument(op: ir.Operation, number: int) -> list[set[str]] | None:
    """The mesh axes of each dimension of an argument of a region; None if nothing says them."""
    if op.name == "func.func":
        said = dict(enumerate(_given(op))).get(number, {})
        return _axes(said[_SHARDING]) if _SHARDING in said else None
    if op.name == "stablehlo.while":
        found = _per_value(op, _SHARDING)
        return _axes(found[number]) if found else None
    if op.name == "sdy.manual_computation":
        manual = {str(axis).strip('"') for axis in sdy.ManualAxesAttr(op.attributes["manual_axes"])}
        whole = _axes(_per_value(op, "in_shardings")[number])
        return [axes - manual for axes in whole]
    return None


def _per_value(op: ir.Operation, name: str) -> list[Any]:
    if name not in op.attributes:
        return []
    return list(sdy.TensorShardingPerValueAttr(op.attributes[name]).shardings)


def _axes(sharding: Any) -> list[set[str]]:
    dims = sdy.TensorShardingAttr(sharding).dimension_shardings
    return [{_name(axis) for axis in sdy.DimensionShardingAttr(dim).axes} for dim in dims]


def _name(axis: Any) -> str:
    return sdy.AxisRefAttr(axis).name
