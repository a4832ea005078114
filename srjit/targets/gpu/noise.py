"""Noise of a kernel: the bits of ``numerics.random_bits`` for the elements of a tile."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from srjit.numerics import random_bits


@dataclasses.dataclass(frozen=True)
class Places:
    """Places of a matrix's rows and columns in what the noise counts.

    Attributes:
      rows, columns: sizes and strides of the dimensions that make them, the last varying fastest.
    """

    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, shape: Sequence[int], counted: Sequence[int], split: int) -> Places:
        """Makes the places of a part of an array, seen as a matrix.

        Args:
          shape: of the part.
          counted: the shape of the whole, as the noise counts its elements.
          split: how many dimensions make the rows.
        """
        dims = list(zip(shape, random_bits.strides(counted), strict=True))
        return cls(_merged(dims[:split]), _merged(dims[split:]))

    @property
    def strides(self) -> tuple[int, int]:
        """From a row to the next, and from a column to the next, inside of a block."""
        return self.rows[-1][1], self.columns[-1][1]

    def index(self, row: jax.Array, column: jax.Array) -> jax.Array:
        """uint32 index of the elements in rows and columns."""
        return _counted(row, self.rows) + _counted(column, self.columns)


def _merged(dims: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same dimensions, fewer where one continues another."""
    found: list[tuple[int, int]] = []
    for size, stride in dims:
        if found and found[-1][1] == size * stride:
            size *= found.pop()[0]
        found.append((size, stride))
    return tuple(found) or ((1, 1),)


def _counted(position: jax.Array, dims: tuple[tuple[int, int], ...]) -> jax.Array:
    index, inner = jnp.zeros_like(position), math.prod(size for size, _ in dims)
    for d, (size, stride) in enumerate(dims):
        inner //= size
        at = position // inner if inner > 1 else position
        index += (at % size if d else at) * np.int32(np.uint32(stride % 2**32).view(np.int32))
    return lax.bitcast_convert_type(index, jnp.uint32)


@dataclasses.dataclass(frozen=True)
class TileNoise:
    """Words of noise for the elements of blocks.

    Attributes:
      first: for every block, the affine function of the index of its first element.
      step: what it grows by from one element to the next.
      upper: see ``random_bits.scrambled``.
    """

    first: jax.Array
    step: jax.Array
    upper: jax.Array

    def bits(self, element: int) -> jax.Array:
        """``random_bits.hash_bits``, uint32."""
        return random_bits.scrambled(self.first + self.step * np.uint32(element), self.upper)

    def word(self, element: int) -> jax.Array:
        """32 good bits, int32."""
        return lax.bitcast_convert_type(random_bits.whole(self.bits(element)), jnp.int32)


def noise_of(
    key: Sequence[jax.Array],
    origin: jax.Array | None,
    places: Places,
    first: tuple[jax.Array, jax.Array],
    down: bool,
) -> TileNoise:
    """The noise of blocks.

    Args:
      key: two words of it, int32.
      origin: the index of the matrix's first element; None: 0.
      places: where its rows and columns stand.
      first: rows and columns of the blocks' first elements.
      down: whether blocks run along columns.
    """
    words = tuple(lax.bitcast_convert_type(word, jnp.uint32) for word in key)
    factor, term, upper = random_bits.line((words[0], words[1]))
    index = places.index(*first)
    if origin is not None:
        index += lax.bitcast_convert_type(origin, jnp.uint32)
    stride = places.strides[0 if down else 1]
    return TileNoise(index * factor + term, factor * np.uint32(stride % 2**32), upper)
