"""Parts of a tensor that share a scale: the tensor, channels, blocks or squares."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics import scaling
from srjit.numerics.symbolic import check_known

Granularity = Literal["tensor", "channel", "block", "square"]


@dataclasses.dataclass(frozen=True)
class BlockView:
    """A tensor seen with its blocked dimensions d split in two, (ceil(n_d / B), B).

    Attributes:
      shape: of the tensor.
      dims: its blocked dimensions, ascending.
      block: B.
      shared: dimensions of the view that share a scale; None: all.
      keepdims: whether scales have dimensions of size 1 for those.
      apart: dimensions of the tensor whose entries have no scale in common.
    """

    shape: tuple[int, ...]
    dims: tuple[int, ...]
    block: int
    shared: tuple[int, ...] | None
    keepdims: bool
    apart: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        kind: Granularity,
        block: int,
        axes: tuple[int, ...],
        apart: tuple[int, ...] = (),
    ) -> BlockView:
        """The view of a tensor that a product contracts along ``axes``."""
        ndim, keepdims = len(shape), kind == "channel"
        if kind == "tensor" and apart:
            return cls(shape, (), 1, tuple(d for d in range(ndim) if d not in apart), True, apart)
        if kind == "tensor" or not axes:
            return cls(shape, (), 1, None, keepdims)
        if kind == "channel":
            return cls(shape, (), 1, axes, keepdims)
        dims = {axes[-1]} if kind == "block" else set(axes[-2:])
        if kind == "square" and len(axes) == 1:
            dims |= {max((d for d in range(ndim) if d not in axes), default=axes[0])}
        ordered = tuple(sorted(dims))
        shared = tuple(d + i + 1 for i, d in enumerate(ordered))
        return cls(shape, ordered, block, shared, keepdims, apart)

    def split(self, x: jax.Array) -> jax.Array:
        """x as the view, padded with zeros."""
        shape: list[int] = []
        for d, n in enumerate(self.shape):
            if d in self.dims:
                check_known(self.shape, d, f"blocks of {self.block} elements run")
                x = pad_to_multiple(x, d, self.block)
                shape += [x.shape[d] // self.block, self.block]
            else:
                shape.append(n)
        return x.reshape(shape) if self.dims else x

    def merge(self, view: jax.Array) -> jax.Array:
        """The view as x's shape, without the padding."""
        if not self.dims:
            return view
        padded = [n + (-n % self.block) * (d in self.dims) for d, n in enumerate(self.shape)]
        return lax.slice(view.reshape(padded), [0] * len(padded), self.shape)

    def amax(self, view: jax.Array) -> jax.Array:
        """max|x| of everything that shares a scale."""
        return scaling.amax(view, self.shared, keepdims=self.keepdims)

    def spread(self, scale: jax.Array) -> jax.Array:
        """One scale a block, with dimensions of size 1 for the elements of the blocks."""
        return jnp.expand_dims(scale, self.shared) if self.dims and self.shared else scale

    def overall(self, per_block: jax.Array) -> jax.Array:
        """The largest of all blocks' numbers; one for every entry ``apart``, at their rank."""
        if not self.apart:
            return scaling.amax(per_block)
        axes = tuple(d for d in range(per_block.ndim) if d not in self.apart)
        return scaling.amax(per_block, axes, keepdims=True)

    def beside(self, overall: jax.Array) -> jax.Array:
        """The result of ``overall``, as it broadcasts against numbers of blocks."""
        return overall

    def by_rows(self, scale: jax.Array) -> jax.Array:
        """Scales with one for each row in place of one for each group, or block, of rows."""
        return scale

    def over_groups(self, per_block: jax.Array, count: int) -> jax.Array:
        """Numbers of blocks along one dimension, summed over each ``count`` of them."""
        (d,) = self.dims
        shape = per_block.shape
        groups = per_block.reshape(*shape[:d], shape[d] // count, count, *shape[d + 1 :])
        sums = jnp.sum(groups, axis=d + 1, keepdims=True)
        return jnp.broadcast_to(sums, groups.shape).reshape(shape)


def spread_blocks(
    scale: jax.Array, block: int, shape: tuple[int, ...], dims: Iterable[int]
) -> jax.Array:
    """Scales of blocks, repeated for every element along some dimensions.

    Args:
      scale: of the rank of ``shape``.
      block: how many elements share a scale.
      shape: the tensor's.
      dims: some of its blocked dimensions.
    """
    for d in dims:
        if scale.shape[d] == shape[d]:
            continue
        repeated = jnp.repeat(scale, block, axis=d, total_repeat_length=None)
        scale = lax.slice_in_dim(repeated, 0, shape[d], axis=d)
    return scale


def aligned(scale: jax.Array, ndim: int) -> jax.Array:
    """A scale whose dimensions, if any, are leading ones (of vmap), at the codes' rank."""
    return scale.reshape(scale.shape + (1,) * (ndim - scale.ndim))


def pad_to_multiple(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """x with zeros after it along ``axis``, up to a multiple of ``multiple``."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    config = [(0, missing * (d == axis), 0) for d in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)
