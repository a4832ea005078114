"""Shardings of a module's values, by Shardy's propagation: the one that XLA's compilers run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from srjit._mlir import func, ir, passmanager, sdy
from srjit.passes.driver import diagnostics
from srjit.passes.inline_calls import inline
from srjit.passes.mlir import editing
from srjit.program.stablehlo import operations

_SHARDING = "sdy.sharding"


def are_given(function: ir.Operation) -> bool:
    """Whether a function says how any of its arguments is sharded."""
    return any(_SHARDING in given for given in _given(function))


def _given(function: ir.Operation) -> list[ir.DictAttr]:
    """The attributes of each argument of a function; none if it has no list of them."""
    if "arg_attrs" not in function.attributes:
        return []
    return [ir.DictAttr(each) for each in ir.ArrayAttr(function.attributes["arg_attrs"])]


def propagated(module: ir.Operation, returned: Sequence[Any] | None = None) -> ir.Operation:
    """A copy of a module in which every operation says how its results are sharded.

    Args:
      module: with shardings of ``@main``'s arguments.
      returned: the values that ``@main`` is to return in the copy, if it is still being written.

    Raises:
      ir.MLIRError: it does not verify, or Shardy cannot do it.
    """
    copy = module.clone(ip=False).operation
    with copy.context, ir.Location.unknown():
        if returned is not None:
            _finish(operations.main_of(module), operations.main_of(copy), returned)
            # As JAX does at the end of its own lowering.
            _run("sdy-lift-inlined-meshes", copy)
        # As XLA does, or nothing would enter a function from the gradients of a loop.
        with diagnostics.going_to(lambda _: None, copy.context):  # not every one can be
            inlined = inline(copy, lambda name: name != operations.entry_of(copy))
        editing.erase_unused_functions(copy, inlined)
        _run("sdy-propagation-pipeline", copy)
    return copy


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
    found = _per_value(value.owner.operation, _SHARDING)
    if not found:
        return None
    sharding = sdy.TensorShardingAttr(found[ir.OpResult(value).result_number])
    dims = [sdy.DimensionShardingAttr(dim) for dim in sharding.dimension_shardings]
    if not any(_name(axis) in axes for dim in dims for axis in dim.axes):
        return None
    left = [
        sdy.DimensionShardingAttr.get([a for a in dim.axes if _name(a) not in axes], is_closed=True)
        for dim in dims
    ]
    mesh = sharding.mesh_or_ref
    symbol = str(mesh).removeprefix("@").strip('"') if str(mesh).startswith("@") else ""
    known = {operations.text(op, "sym_name") for op in _meshes(module)}
    if symbol and symbol not in known:  # it is lifted later
        copy = value.owner.operation
        while copy.parent is not None:
            copy = copy.parent
        mesh = next(
            op.attributes["mesh"]
            for op in _meshes(copy)
            if operations.text(op, "sym_name") == symbol
        )
    return sdy.TensorShardingAttr.get(mesh, left)


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
