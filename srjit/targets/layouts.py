"""Layouts of operands in memory and over devices: orders that chips want, axes of meshes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from srjit.products.dot import DotProduct

# Of both operands: N where the contraction is where a plain matrix product has it (the last
# dimensions of the left operand, the first of the right), T where it is at the other end.
Order = Literal["NN", "NT", "TN", "TT"]


def order_of(product: DotProduct) -> Order | None:
    """The order of both operands' dimensions; None where the contraction is at neither end."""
    found = ""
    for side, labels in enumerate((product.lhs, product.rhs)):
        batch, free, summed = product.groups(side)
        ends = labels == batch + free + summed, labels == batch + summed + free
        if not summed or not any(ends):
            return None
        found += "N" if ends[side] else "T"
    return found  # type: ignore[return-value]


def pinned(x: jax.Array) -> jax.Array:
    """x with its dimensions in memory in their own order, whatever else XLA would choose."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def turn(product: DotProduct, side: int) -> tuple[DotProduct, tuple[int, ...]]:
    """One operand's contraction at the other end of its dimensions, after those of a batch.

    Args:
      product: of the operands as they are.
      side: which operand.

    Returns:
      The product of a transposed copy, and the permutation that makes the copy.
    """
    labels = product.lhs if side == 0 else product.rhs
    batch, free, summed = product.groups(side)
    is_last = tuple(d for d in labels if d not in batch) == free + summed
    order = batch + (summed + free if is_last else free + summed)
    turned = dataclasses.replace(product, **{("lhs", "rhs")[side]: order})
    return turned, tuple(labels.index(d) for d in order)


def mesh_axes(spec: PartitionSpec, ndim: int) -> list[tuple[str, ...]]:
    """Names of the mesh axes that shard each dimension."""
    entries: list[Any] = [*spec, *[None] * (ndim - len(spec))]
    return [() if e is None else e if isinstance(e, tuple) else (e,) for e in entries]


def placed(mesh: Mesh | AbstractMesh, axes: Sequence[tuple[str, ...]]) -> NamedSharding:
    """The sharding of dimensions over these axes of a mesh."""
    return NamedSharding(mesh, PartitionSpec(*(names or None for names in axes)))
