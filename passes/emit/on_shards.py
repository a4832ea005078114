"""Kernels on the shards of what is quantized, in place of formulas on the whole of it.

Kernels do not partition. So each runs in a manual computation over all axes of the mesh, on the
shards that Shardy's propagation gives its argument: then nothing is sent that was not sent before.
"""

from __future__ import annotations

import math
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
      found: of each, operations in the copy whose first result is its first argument.
    """
    library = Library(module)
    for call, ops in zip(calls, found, strict=True):
        # In a region that is manual already, or in one of whose shardings nothing is known.
        axes = {shardings.spec_of(op.results[0]) for op in ops if not _is_manual(op)}
        mesh = shardings.mesh_of(ops[0].results[0], copy) if len(axes) == len(ops) == 1 else None
        if mesh is not None and (spec := axes.pop()) is not None:
            _place(library, call, spec, mesh)


def _is_manual(op: ir.Operation | None) -> bool:
    while op is not None and op.name != "sdy.manual_computation":
        op = op.parent.operation if op.parent is not None else None
    return op is not None


def _place(library: Library, call: Any, axes: Spec, mesh: Any) -> None:
    from srjit.targets.kernel_call import numbered

    known, signature = numbered(said(call)), signature_of(list(call.operands))
    sizes = shardings.sizes_of(mesh)
    shape = signature[0][0]
    cut = (math.prod(sizes[name] for name in names) for names in axes)
    if known is None or any(n % parts for n, parts in zip(shape, cut, strict=True)):
        return
    rule, platform = known
    placed = rule(shape, axes, sizes)
    if placed is None:
        return
    run, out_specs = placed
    whole = [PartitionSpec()] * (len(signature) - 1)
    axis_types = (AxisType.Auto,) * len(sizes)
    over = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types)
    fun = jax.shard_map(
        run,
        mesh=over,
        in_specs=(PartitionSpec(*axes), *whole),
        out_specs=out_specs,
        check_vma=False,
    )
    key = rule, axes, tuple(sizes.items())
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
