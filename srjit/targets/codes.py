"""Codes of floats by integer arithmetic, which every compiler of kernels has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from srjit.numerics.elements import Element


def word_of(x: jax.Array) -> jax.Array:
    """A float32's bits as an int32. Of magnitudes NaN's is the largest."""
    return lax.bitcast_convert_type(x, jnp.int32)


def float_of(word: jax.Array) -> jax.Array:
    """The float32 of such bits."""
    return lax.bitcast_convert_type(word, jnp.float32)


def float_code(y: jax.Array, element: Element, bits: jax.Array | None) -> jax.Array:
    """``round_to_grid(y)`` as int32 codes without their sign, in fewer operations.

    A float's code counts the steps from 0: those below its binade, and those in it.

    Args:
      y: float32; of NaN the code is any.
      element: a float format of at most 8 bits.
      bits: uint32 noise; None: to nearest even.
    """
    m = element.mantissa_bits
    assert m is not None
    magnitude = jnp.minimum(jnp.abs(y), jnp.float32(element.max))
    smallest = element.min_exponent + 127 << 23
    power = jnp.maximum(word_of(magnitude) & 0x7F800000, smallest)
    twice_reciprocal = lax.bitcast_convert_type(power ^ 0x7F800000, jnp.float32)
    steps = _round_units(magnitude * twice_reciprocal, bits, 2.0 ** (m - 1))
    return (power - smallest >> 23 - m) + steps


def _round_units(x: jax.Array, bits: jax.Array | None, factor: float) -> jax.Array:
    """0 <= t = x * factor < 128 to an int32, as ``round_to_grid`` does, in fewer operations.

    With k the upper 24 bits and C = ceil(t * 2^24), both exact, u is less than the fraction of t
    if and only if (k + C) >> 24 is one more than floor(t). To nearest, k is a half, or next to
    nothing less where floor(t) is even; where C is not exact, t is less than 1, and no tie.
    """
    ceiling = jnp.ceil(x * np.float32(factor * 2**24)).astype(jnp.int32)
    if bits is None:
        return 0x7FFFFF + (ceiling >> 24 & 1) + ceiling >> 24
    return lax.bitcast_convert_type(bits >> 8, jnp.int32) + ceiling >> 24
