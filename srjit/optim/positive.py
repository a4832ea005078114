"""Arrays of positive numbers as bytes, on a grid that never reaches zero.

Adam divides by the root of its second moment: one that is rounded to zero, beside a first moment
that is not, makes a step of any size. The grid is that of a float of 4 exponent and 4 mantissa bits
without a sign, subnormal numbers or zero, under a float32 scale for each block:

  code c stands for  g(c) / g(255) * scale,   g(c) = 2^floor(c / 16) * (1 + (c mod 16) / 16)

and the scale is the largest number of its block. So neighbours are 3 to 6 % apart, over 16 binades.
What is below them becomes the smallest.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from srjit.choices import Rng
from srjit.numerics.blocks import BlockView, spread_blocks
from srjit.numerics.elements import Element
from srjit.numerics.random_bits import Key, random_bits
from srjit.numerics.rounding import round_to_grid

_GRID = Element("ue4m4", 4, -15, 1.9375)
_FIRST = 127 + _GRID.min_exponent << 4  # the upper 13 bits of the float32 of code 0
_SHIFT = 23 - 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PositiveArray:
    """Numbers that are not negative, as bytes with scales; a pytree.

    Attributes:
      codes: uint8, of the array's shape.
      scale: float32, of every block, whose dimension has ceil(n / block); 0 of a block of zeros.
      axis: the dimension that blocks run along.
      block: elements that share a scale.
    """

    codes: jax.Array
    scale: jax.Array
    axis: int = dataclasses.field(metadata={"static": True})
    block: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, x: jax.Array, axis: int, block: int, key: Key, rng: Rng = "hash") -> PositiveArray:
        """x, rounded stochastically.

        Args:
          x: float32, not negative. NaN and Inf make their block's scale so.
          axis, block: as of the attributes.
          key: two uint32 scalars.
          rng: ``hash`` or ``threefry``.
        """
        view = BlockView.of(x.shape, "block", block, (axis,))
        blocks, noise = view.split(x), view.split(random_bits(key, x, rng))
        amax = view.amax(blocks)
        # Not divided by amax / M, which could be subnormal.
        ratio = blocks / view.spread(jnp.where(amax == 0, 1, amax)) * jnp.float32(_GRID.max)
        floor = jnp.float32(2.0**_GRID.min_exponent)
        rounded = round_to_grid(jnp.maximum(ratio, floor), _GRID, noise)
        word = lax.bitcast_convert_type(view.merge(rounded), jnp.uint32)
        codes = (word >> _SHIFT) - jnp.uint32(_FIRST)
        return cls(codes.astype(jnp.uint8), amax, axis, block)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes."""
        return self.codes.shape

    def dequantize(self, dtype: Any = jnp.float32) -> jax.Array:
        """The numbers that codes and scales stand for, as ``dtype``."""
        word = (self.codes.astype(jnp.uint32) + jnp.uint32(_FIRST)) << _SHIFT
        values = lax.bitcast_convert_type(word, jnp.float32) * jnp.float32(1 / _GRID.max)
        scale = spread_blocks(self.scale, self.block, self.shape, (self.axis,))
        return (values * scale).astype(dtype)
