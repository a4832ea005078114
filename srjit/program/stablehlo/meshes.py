"""Meshes: what Shardy's attributes and the groups of collectives say in terms of their axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from srjit._mlir import ir, sdy, stablehlo
from srjit.program.stablehlo.operations import constant_integer, owner, text, top_level

# What provenance knows operations as whose results depend on other devices, or on which this is.
COLLECTIVES = {
    "stablehlo.all_gather": "all_gather",
    "stablehlo.all_reduce": "psum",
    "stablehlo.all_to_all": "all_to_all",
    "stablehlo.collective_permute": "ppermute",
    "stablehlo.partition_id": "axis_index",
    "stablehlo.reduce_scatter": "reduce_scatter",
}
_EVENING = ("stablehlo.all_gather", "stablehlo.all_reduce")  # results are alike along the axes

Meshes = dict[str, dict[str, int]]  # by name: the sizes of the axes
Spec = tuple[tuple[str, ...], ...]  # for each dimension, the axes that shard it


def meshes_of(module: ir.Operation) -> Meshes:
    """Every mesh, of devices in order, that a module declares."""
    found: Meshes = {}
    for op in top_level(module):
        if op.name == "sdy.mesh":
            mesh = sdy.MeshAttr(op.attributes["mesh"])
            if mesh.device_ids:
                continue  # which place on an axis a device has, its number does not tell
            axes = map(sdy.MeshAxisAttr, mesh.axes)
            found[text(op, "sym_name")] = {axis.name: axis.size for axis in axes}
    return found


def manual_axes_of(op: ir.Operation) -> tuple[str, ...]:
    """The axes over which a manual computation is on shards."""
    axes = sdy.ManualAxesAttr(op.attributes["manual_axes"])
    return tuple(axes[i] for i in range(len(axes)))


def shardings_of(op: ir.Operation, name: str) -> list[sdy.TensorShardingAttr]:
    """``in_shardings`` or ``out_shardings`` of a manual computation."""
    attribute = sdy.TensorShardingPerValueAttr(op.attributes[name])
    return [sdy.TensorShardingAttr(sharding) for sharding in attribute.shardings]


def mesh_named_by(sharding: sdy.TensorShardingAttr) -> str:
    """The name of the mesh that a sharding is over; empty if the mesh stands in the sharding."""
    mesh = sharding.mesh_or_ref
    return mesh.value if isinstance(mesh, ir.FlatSymbolRefAttr) else ""


def specs_of(op: ir.Operation, name: str) -> tuple[Spec, ...]:
    """The shards of a manual computation's operands (``in_shardings``) or results."""
    manual = set(manual_axes_of(op))
    return tuple(
        tuple(
            tuple(
                name
                for axis in sdy.DimensionShardingAttr(dimension).axes
                if (name := sdy.AxisRefAttr(axis).name) in manual
            )
            for dimension in sharding.dimension_shardings
        )
        for sharding in shardings_of(op, name)
    )


def with_replicated(op: ir.Operation, name: str, types: Sequence[ir.Type]) -> ir.Attribute:
    """The shardings of a manual computation with more values, of which every device has a copy."""
    given = shardings_of(op, name)
    mesh = [*given, *shardings_of(op, "in_shardings"), *shardings_of(op, "out_shardings")][0]
    whole = sdy.DimensionShardingAttr.get([], is_closed=True)
    ranks = (ir.RankedTensorType(kind).rank for kind in types)
    more = [sdy.TensorShardingAttr.get(mesh.mesh_or_ref, [whole] * rank) for rank in ranks]
    return sdy.TensorShardingPerValueAttr.get([*given, *more])


def axes_of_collective(op: Any, meshes: Meshes) -> tuple[str, ...]:
    """The axes along which devices exchange values.

    Where nobody can tell: none if the results are alike along them, and all if they are not.
    """
    unknown = () if op.name in _EVENING else tuple(a for mesh in meshes.values() for a in mesh)
    attribute = "source_target_pairs" if "permute" in op.name else "replica_groups"
    if attribute not in op.attributes:
        return unknown
    given = op.attributes[attribute]
    if stablehlo.ReplicaGroupMeshAxesAttr.isinstance(given):  # from jax 0.12 on, they are named
        axes = ir.ArrayAttr(stablehlo.ReplicaGroupMeshAxesAttr(given).axes)
        return tuple(stablehlo.AxisRefAttr(axis).name for axis in axes)
    if not isinstance(given, ir.DenseIntElementsAttr):
        return unknown
    import numpy as np

    groups = np.array(given)
    if not groups.size:
        return unknown
    groups = groups.reshape(ir.ShapedType(given.type).shape)
    if op.name != "stablehlo.collective_permute":
        groups = groups[:1]  # all are alike
    found = [_axes_of_group(group.tolist(), meshes) for group in groups]
    if None in found:
        return unknown
    return tuple(dict.fromkeys(axis for axes in found for axis in axes or ()))


def _axes_of_group(devices: list[int], meshes: Meshes) -> tuple[str, ...] | None:
    """The axes along which some devices have different places."""
    import numpy as np

    for axes in meshes.values():
        sizes = tuple(axes.values())
        if math.prod(sizes) > max(devices):
            places = np.array(np.unravel_index(devices, sizes))
            return tuple(a for a, p in zip(axes, places, strict=True) if len(set(p)) > 1)
    return None


def axis_of_index(op: Any, meshes: Meshes) -> str:
    """The axis whose index ``number of the device // stride % size`` is; nothing if none's."""
    quotient, size = owner(op.operands[0]), constant_integer(op.operands[1])
    if quotient is None or quotient.name != "stablehlo.divide":
        return ""
    number, stride = owner(quotient.operands[0]), constant_integer(quotient.operands[1])
    if number is None or number.name != "stablehlo.partition_id":
        return ""
    found = {
        name
        for axes in meshes.values()
        for name, extent in axes.items()
        if (stride_of(axes, name), extent) == (stride, size)
    }
    return found.pop() if len(found) == 1 else ""


def stride_of(axes: dict[str, int], axis: str) -> int:
    """The difference of the numbers of devices that are neighbours along an axis."""
    return math.prod(list(axes.values())[list(axes).index(axis) + 1 :])
