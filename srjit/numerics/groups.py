"""Rows in groups, such as the tokens of experts: what shares a scale stays within one group.

A number of each group stands along the rows' dimension, in place of the rows.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics import scaling
from srjit.numerics.blocks import BlockView
from srjit.numerics.symbolic import check_known


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups that the rows of an array stand in.

    Attributes:
      ids: int32, the group of each row; ``count`` past all groups. Of the array's rank, with size 1
        where rows of one index stand in one group.
      count: how many groups there are.
      dim: the dimension of the rows, counted from the end.
    """

    ids: jax.Array
    count: int = dataclasses.field(metadata={"static": True})
    dim: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls, sizes: jax.Array, rows: int, ndim: int, dim: int, before: tuple[int, ...]
    ) -> Groups:
        """The groups of rows that stand one group after the other.

        Args:
          sizes: of the groups, along the last dimension.
          rows: how many there are, be they in a group or past all of them.
          ndim: the array's rank.
          dim: its dimension of the rows.
          before: its dimensions for those of ``sizes`` before the last, if there are any.
        """
        ends = jnp.cumsum(sizes.astype(jnp.int32), axis=-1)
        ids = _reached(ends, lax.iota(jnp.int32, rows), -1)
        dims = (*before[: sizes.ndim - 1], dim)
        in_order = sorted(range(len(dims)), key=dims.__getitem__)
        others = [d for d in range(ndim) if d not in dims]
        ids = jnp.expand_dims(lax.transpose(ids, in_order), others)
        return cls(ids, sizes.shape[-1], dim - ndim)

    @property
    def axis(self) -> int:
        """The dimension of the rows."""
        return self.dim + self.ids.ndim

    @property
    def inside(self) -> jax.Array:
        """True if a row stands in a group."""
        return self.ids < self.count

    def take(self, values: jax.Array) -> jax.Array:
        """One number a group as one a row, 0 past all groups."""
        found = jnp.where(self._hits(), jnp.expand_dims(values, self.axis + 1), 0)
        return jnp.sum(found, axis=self.axis, dtype=values.dtype)

    def amax(self, values: jax.Array, shared: tuple[int, ...] | None = None) -> jax.Array:
        """max|values| of every group, 0 of an empty one, along ``shared`` dimensions, which stay.

        Args:
          values: numbers of rows.
          shared: the dimensions; None: all. That of the rows is one of them.
        """
        axes = [d for d in range(values.ndim) if shared is None or d in shared]
        alike = tuple(d for d in axes if d != self.axis and self.ids.shape[d] == 1)
        of_rows = scaling.amax(values, alike, keepdims=True)
        own = jnp.where(self._hits(), jnp.expand_dims(of_rows, self.axis), 0)
        found = scaling.amax(own, (self.axis + 1,))
        rest = tuple(d for d in axes if d not in (*alike, self.axis))
        return scaling.amax(found, rest, keepdims=True)

    def sizes(self) -> jax.Array:
        """The number of rows of each group: int32, with the dimensions of ``ids``."""
        return jnp.sum(self._hits(), axis=self.axis + 1, dtype=jnp.int32)

    def _hits(self) -> jax.Array:
        """True if a row stands in a group: the groups, then the rows along dimensions of theirs."""
        shape = [1] * (self.ids.ndim + 1)
        shape[self.axis] = self.count
        each = lax.broadcasted_iota(jnp.int32, tuple(shape), self.axis)
        return jnp.expand_dims(self.ids, self.axis) == each


def _reached(ends: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """The number of ascending ``ends`` along ``axis`` that are not beyond each of the places."""
    axis %= ends.ndim
    shape = [1] * (ends.ndim + 1)
    shape[axis] = places.size
    beyond = jnp.expand_dims(ends, axis) <= places.reshape(shape)
    return jnp.sum(beyond, axis=axis + 1, dtype=jnp.int32)


class _Padding(NamedTuple):
    """Rows with zeros after each group, so that every group begins a block.

    Attributes:
      row: of each padded row, the row that stands there.
      is_row: whether one does.
      place: of each row, where it stands.
      groups: of the blocks.
    """

    row: jax.Array
    is_row: jax.Array
    place: jax.Array
    groups: Groups

    @classmethod
    def of(cls, groups: Groups, rows: int, block: int) -> _Padding:
        """The padding of so many rows; those past all groups are a group like others."""
        axis, count, without = groups.axis, groups.count + 1, groups
        groups = dataclasses.replace(groups, count=count)
        sizes = groups.sizes()
        ends = jnp.cumsum(sizes, axis=axis)
        block_ends = jnp.cumsum(-(-sizes // block), axis=axis)
        blocks = (rows + count * (block - 1)) // block
        ids = _reached(block_ends, lax.iota(jnp.int32, blocks), axis)
        of_blocks = dataclasses.replace(without, ids=ids)
        # How much farther padded rows stand than the rows themselves.
        begins = (block_ends - (-(-sizes // block))) * block
        moved = begins - (ends - sizes)
        in_blocks = dataclasses.replace(groups, ids=jnp.repeat(ids, block, axis=axis))
        shape = [1] * ids.ndim
        shape[axis] = blocks * block
        row = lax.iota(jnp.int32, blocks * block).reshape(shape) - in_blocks.take(moved)
        is_row = row < in_blocks.take(ends)
        shape[axis] = rows
        place = lax.iota(jnp.int32, rows).reshape(shape) + groups.take(moved)
        return cls(jnp.minimum(row, rows - 1), is_row, place, of_blocks)


@dataclasses.dataclass(frozen=True)
class GroupedView(BlockView):
    """A view of a tensor with rows in groups, none of whose scales is of two groups.

    Where blocks run along the rows, every group begins one: ``shape`` is that of the padded tensor.

    Attributes:
      groups: of the rows.
      padding: of the rows, if blocks run along them.
    """

    groups: Groups = dataclasses.field(kw_only=True)
    padding: _Padding | None = dataclasses.field(kw_only=True)

    @classmethod
    def over(cls, view: BlockView, groups: Groups) -> GroupedView:
        """A view with rows in groups."""
        axis, shape, padding = groups.axis, view.shape, None
        if axis in view.dims:
            check_known(shape, axis, f"blocks of {view.block} elements run")
            padding = _Padding.of(groups, shape[axis], view.block)
            padded = padding.row.shape[axis]
            shape = (*shape[:axis], padded, *shape[axis + 1 :])
        return cls(
            shape, view.dims, view.block, view.shared, view.keepdims, groups=groups, padding=padding
        )

    def split(self, x: jax.Array) -> jax.Array:
        """See BlockView."""
        if self.padding is not None:
            rows = _at(x, self.padding.row, self.groups.axis)
            x = jnp.where(self.padding.is_row, rows, jnp.zeros_like(rows))
        return super().split(x)

    def merge(self, view: jax.Array) -> jax.Array:
        """See BlockView."""
        merged = super().merge(view)
        padding = self.padding
        return merged if padding is None else _at(merged, padding.place, self.groups.axis)

    def amax(self, view: jax.Array) -> jax.Array:
        """See BlockView; of groups, but of blocks."""
        return super().amax(view) if self.dims else self.groups.amax(view, self.shared)

    def spread(self, scale: jax.Array) -> jax.Array:
        """See BlockView."""
        return super().spread(scale) if self.dims else self.groups.take(scale)

    def overall(self, per_block: jax.Array) -> jax.Array:
        """See BlockView; of every group."""
        return self._of_blocks.amax(per_block)

    def beside(self, overall: jax.Array) -> jax.Array:
        """See BlockView."""
        return self._of_blocks.take(overall)

    def by_rows(self, scale: jax.Array) -> jax.Array:
        """See BlockView."""
        if not self.dims:
            return self.groups.take(scale)
        if self.padding is None:
            return scale
        axis = self.groups.axis
        return _at(jnp.repeat(scale, self.block, axis=axis), self.padding.place, axis)

    @property
    def _of_blocks(self) -> Groups:
        return self.groups if self.padding is None else self.padding.groups


def _at(x: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    return jnp.take_along_axis(x, places, axis=axis, mode="clip")
