"""Kernels on the shards of what is quantized, in place of formulas on the whole of it.

Kernels do not partition. So each runs in a manual computation over all axes of the mesh, on the
shards that Shardy's propagation gives its arguments: then nothing is sent that was not sent before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from srjit._mlir import inlined_func_call, ir
from srjit.passes.emit import shardings
from srjit.passes.emit.lowering import Library, signature_of
from srjit.passes.mlir import attributes, editing
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.meshes import Spec


def said(op: Any) -> str:
    """The number of the kernel that a call could call on shards; empty if it says none."""
    from srjit.targets.kernel_call import ON_SHARDS

    return attributes.frontend(op, ON_SHARDS) if op.name == "func.call" else ""


def keep_apart(module: ir.Operation) -> None:
    """Gives each call of a function that calls formulas a function of its own.

    What one call gets may be sharded otherwise than what another gets. The functions themselves
    stay as they are: JAX may still call them.
    """
    known = operations.functions(module)
    taken, has_formulas = set(known), dict[str, bool]()

    def calls_formulas(name: str) -> bool:
        if name not in has_formulas:
            has_formulas[name] = False
            inside = operations.inside(known[name])
            has_formulas[name] = any([said(op) != "" or is_meant(op) for op in inside])
        return has_formulas[name]

    def is_meant(op: Any) -> bool:
        name = operations.callee_of(op)
        return name in known and not said(op) and calls_formulas(name)

    pending = [known["main"]] if "main" in known else []
    while pending:
        for op in list(operations.inside(pending.pop())):
            if is_meant(op):
                name = operations.callee(op)
                # A name that JAX, which counts its own, does not come to.
                symbol = editing.free_symbol(f"{name}.apart", taken)
                own = editing.clone_function(known[name], symbol)
                op.attributes["callee"] = ir.FlatSymbolRefAttr.get(symbol)
                pending.append(own)


def place(
    module: ir.Operation, copy: ir.Operation, calls: Sequence[Any], found: Sequence[Sequence[Any]]
) -> None:
    """Lets calls of formulas call kernels on shards, where these give the same bits.

    Args:
      module: of all devices.
      copy: of it, with shardings.
      calls: of formulas.
      found: of each, operations in the copy that pass on its arguments, and its results.
    """
    library = Library(module)
    for call, ops in zip(calls, found, strict=True):
        # In a region that is manual already, or in one of whose shardings nothing is known.
        if len(ops) != 2 or any(map(_is_manual, ops)):
            continue
        values = [value for op in ops for value in op.results]
        meshes = [shardings.mesh_of(value, copy) for value in values]
        if meshes[0] is not None:
            _place(library, call, [*map(shardings.spec_of, values)], meshes[0])


def _axes_of(spec: PartitionSpec) -> Spec:
    return tuple((names,) if isinstance(names, str) else tuple(names or ()) for names in spec)


def _is_manual(op: ir.Operation | None) -> bool:
    while op is not None and op.name != "sdy.manual_computation":
        op = op.parent.operation if op.parent is not None else None
    return op is not None


def _place(library: Library, call: Any, axes: Sequence[Spec | None], mesh: Any) -> None:
    from srjit.targets.kernel_call import is_even, numbered

    known, signature = numbered(said(call)), signature_of(list(call.operands))
    if known is None:
        return
    rule, platform = known
    sizes = shardings.sizes_of(mesh)
    shapes = [shape for shape, _ in (*signature, *signature_of(list(call.results)))]
    placed = rule(shapes, axes, sizes)
    if placed is None or not all(
        is_even(shape, _axes_of(spec), sizes)
        for shape, spec in zip(shapes, placed[1], strict=False)
    ):
        return
    run, in_specs, out_specs = placed
    axis_types = (AxisType.Auto,) * len(sizes)
    over = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types)
    fun = jax.shard_map(
        run,
        mesh=over,
        in_specs=(*in_specs, *[PartitionSpec()] * (len(signature) - len(in_specs))),
        out_specs=out_specs,
        check_vma=False,
    )
    key = rule, tuple(axes), tuple(sizes.items())
    with jax.sharding.use_abstract_mesh(over):
        symbol, types = library.lowered("srjit_on_shards", key, fun, signature, platform)
    assert types == [result.type for result in call.results]
    function = operations.functions(library.module)[symbol]
    for op in operations.inside(function):
        if op.name == "sdy.manual_computation":
            for name in ("in_shardings", "out_shardings"):
                op.attributes[name] = shardings.over(mesh, op.attributes[name])
    if call.parent == operations.main_of(library.module):  # JAX still holds what the call returns
        call.attributes["callee"] = ir.FlatSymbolRefAttr.get(symbol)
        return
    with ir.InsertionPoint(call):  # inlined, its operations are named after the site
        values = inlined_func_call(function, list(call.operands), call.location)
    editing.replace(call, values)
