"""Rounding to a grid, to nearest and stochastically, exactly.

With t = |y| / step(y), step(y) = 2^(max(floor(log2|y|), e_min) - m), and k the upper 24 bits of
the noise:

  nearest:     round-half-even(t) * step
  stochastic:  (floor(t) + [u < t - floor(t)]) * step,   u = 1 - (k + 1) / 2^24
  integers:    floor((n + k) / 2^24),                    n = round-half-even(y * 2^24)

The step is a power of two, so t is exact; u, uniform on the multiples of 2^-24 in [0, 1), is
compared, never added, because floor(t + u) rounds. n is an integer, so adding to it is exact: it
takes half of the operations, and its probabilities differ from fractions by 2^-25 at most.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics.elements import Element

# float dtype of the work -> (its unsigned integer, mantissa bits, exponent bias)
LAYOUTS: dict[Any, tuple[Any, int, int]] = {
    jnp.dtype(jnp.float32): (jnp.uint32, 23, 127),
    jnp.dtype(jnp.float64): (jnp.uint64, 52, 1023),
}
NOISE_BITS = 24  # that an element gets: probabilities are multiples of 2^-24
_TIES_TO_EVEN = lax.RoundingMethod.TO_NEAREST_EVEN


def working_dtype(dtype: Any) -> Any:
    """float64 for float64, else float32, in which every smaller float is exact."""
    wide = jnp.dtype(dtype) == jnp.dtype(jnp.float64)
    return jnp.dtype(jnp.float64) if wide else jnp.dtype(jnp.float32)


def uniform(bits: jax.Array, dtype: Any) -> jax.Array:
    """uint32 bits as multiples of 2^-24 in [0, 1): u."""
    # Through int32: on CPU its conversion is one instruction, uint32's is several.
    return lax.convert_element_type((~bits >> 8).astype(jnp.int32), dtype) * dtype.type(2.0**-24)


def _round_units(t: jax.Array, bits: jax.Array) -> jax.Array:
    """t >= 0 to an integer, up with the probability of its fraction."""
    down = jnp.floor(t)
    return down + (uniform(bits, t.dtype) < t - down).astype(t.dtype)


def round_to_integer(y: jax.Array, bits: jax.Array) -> jax.Array:
    """|y| <= 127 to an int32, up with the probability of its fraction."""
    n = lax.round(y * y.dtype.type(2.0**24), _TIES_TO_EVEN).astype(jnp.int32)
    return n + lax.bitcast_convert_type(bits >> 8, jnp.int32) >> 24


def round_to_grid(y: jax.Array, element: Element, bits: jax.Array | None = None) -> jax.Array:
    """Rounds ``y`` to ``element``'s grid.

    Args:
      y: float32 or float64 of any shape, already scaled.
      element: the grid.
      bits: uint32 noise of y's shape for stochastic rounding; None rounds to nearest even.

    Returns:
      Values of the grid in y's dtype and shape. Magnitudes beyond ``element.max`` saturate. NaN
      stays NaN and zero keeps its sign, but noise makes both 0 on grids of integers.
    """
    if element.min_exponent == jnp.finfo(y.dtype).minexp:
        return _round_bits(y, element, bits)
    if bits is None:
        return _nearest(y, element)
    # Capped first: M is of the grid, so nothing is rounded beyond it, and Inf is in no product.
    limit = y.dtype.type(element.max)
    if element.is_integer:
        return round_to_integer(lax.clamp(-limit, y, limit), bits).astype(y.dtype)
    magnitude = jnp.minimum(jnp.abs(y), limit)
    unsigned, mantissa, bias = LAYOUTS[jnp.dtype(y.dtype)]
    # The exponent field alone is 2^floor(log2|y|); the step's reciprocal is exact bit work.
    field = lax.bitcast_convert_type(magnitude, unsigned) & unsigned(2 * bias + 1 << mantissa)
    smallest = unsigned(element.min_exponent + bias << mantissa)
    field = jnp.maximum(field, smallest)
    m = element.mantissa_bits or 0
    step = lax.bitcast_convert_type(field - unsigned(m << mantissa), y.dtype)
    per_step = lax.bitcast_convert_type(unsigned(2 * bias + m << mantissa) - field, y.dtype)
    return _round_units(magnitude * per_step, bits) * step * lax.sign(y)


def _nearest(y: jax.Array, element: Element) -> jax.Array:
    """To nearest even, in the fewest operations."""
    limit = y.dtype.type(element.max)
    if element.is_integer:
        return lax.clamp(-limit, lax.round(y, _TIES_TO_EVEN), limit)
    y = lax.clamp(-limit, y, limit)
    m = element.mantissa_bits or 0
    normal = lax.reduce_precision(y, jnp.finfo(y.dtype).nexp, m)
    step = y.dtype.type(2.0 ** (element.min_exponent - m))  # of the subnormal numbers
    subnormal = lax.round(y * (1 / step), _TIES_TO_EVEN) * step
    return jnp.where(jnp.abs(y) < y.dtype.type(2.0**element.min_exponent), subnormal, normal)


def _round_bits(y: jax.Array, element: Element, bits: jax.Array | None) -> jax.Array:
    """The same rounding where grid and work share their exponents (bfloat16 from float32).

    Bit patterns are then linear in t, and integers do not flush subnormal steps as CPUs' floats do.
    """
    unsigned, mantissa, _ = LAYOUTS[jnp.dtype(y.dtype)]
    drop = mantissa - (element.mantissa_bits or 0)
    word = lax.bitcast_convert_type(y, unsigned)
    sign = word & unsigned(1 << (jnp.finfo(y.dtype).bits - 1))
    magnitude = word ^ sign
    if bits is None:
        odd = (magnitude >> unsigned(drop)) & unsigned(1)
        added = odd + unsigned((1 << (drop - 1)) - 1)
    else:
        added = (bits >> (32 - drop)).astype(unsigned)
    rounded = magnitude + added & unsigned(2**32 - 2**drop)
    largest = lax.bitcast_convert_type(y.dtype.type(element.max), unsigned)
    saturated = lax.bitcast_convert_type(jnp.minimum(rounded, largest) | sign, y.dtype)
    return jnp.where(jnp.isnan(y), y, saturated)
