"""Scales: what to multiply a tensor by so that it fits a grid, and what to multiply codes by.

Every factor is written so that XLA computes what IEEE arithmetic does: a division by a constant or
by a broadcast scalar would be turned into a multiplication by its reciprocal, which rounds twice.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from srjit.numerics.formats import ELEMENTS, Element
from srjit.numerics.rounding import round_to_grid

ScaleRounding = Literal["standard", "up"]
_E4M3 = ELEMENTS["float8_e4m3fn"]
_FLT_MAX = float(np.finfo(np.float32).max)
# Tiny tensors are worked on after multiplication by 2^64: CPUs and TPUs flush subnormal floats.
_LIFT = 2.0**64
_SUBNORMAL = 2.0**-149


class Scales(NamedTuple):
    """The scales of one tensor.

    Attributes:
      encode: factor that takes the (lifted) tensor to the grid, in the shape of the amax.
      scale: factor of the codes, in the format's scale dtype.
      tensor_scale: NVFP4's float32 second level, else None.
      lift: power of two by which the tensor is to be lifted first, or None.
    """

    encode: jax.Array
    scale: jax.Array
    tensor_scale: jax.Array | None = None
    lift: jax.Array | None = None


def _divide(x: jax.Array, constant: float) -> jax.Array:
    return x / lax.optimization_barrier(jnp.full(x.shape, constant, x.dtype))


def amax(x: jax.Array, axes: tuple[int, ...] | None = None, keepdims: bool = False) -> jax.Array:
    """max|x| over ``axes``; NaN if any is NaN. Subnormals count: the maximum is of bit patterns."""
    if x.dtype == jnp.float64:
        return jnp.max(jnp.abs(x), axis=axes, keepdims=keepdims)
    word = lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(0x7FFFFFFF)
    return lax.bitcast_convert_type(jnp.max(word, axis=axes, keepdims=keepdims), jnp.float32)


def float_scales(amax: jax.Array, element: Element) -> Scales:
    """scale = amax / M in amax's dtype, 1 if amax is 0; at least 2^-126, so that it is normal."""
    one = jnp.ones_like(amax)
    encode = jnp.where(amax == 0, one, jnp.minimum(element.max / amax, 2.0**126))
    scale = jnp.where(amax == 0, one, jnp.maximum(_divide(amax, element.max), 2.0**-126))
    return Scales(encode, scale)


def e8m0_scales(amax: jax.Array, element: Element, rounding: ScaleRounding) -> Scales:
    """2^(floor(log2 amax) - emax): OCP Microscaling Formats v1.0, section 6.3.

    With ``rounding="up"`` the exponent is one higher where the largest element would be clipped.
    NaN and Inf give the NaN scale.
    """
    amax = amax.astype(jnp.float32)
    word = lax.bitcast_convert_type(amax, jnp.int32)
    exponent = (word >> 23) - element.max_exponent
    if rounding == "up":
        clipped = (word & 0x7FFFFF) > np.float32(element.max).view(np.int32) & 0x7FFFFF
        exponent = exponent + clipped.astype(jnp.int32)
    exponent = jnp.maximum(exponent, 0)
    encode = lax.bitcast_convert_type((254 - exponent) << 23, jnp.float32)
    code = jnp.where(word >= 0x7F800000, 255, exponent).astype(jnp.uint8)
    return Scales(encode, lax.bitcast_convert_type(code, jnp.float8_e8m0fnu))


def nvfp4_scales(block: jax.Array, tensor: jax.Array, rounding: ScaleRounding) -> Scales:
    """NVFP4's two levels: E4M3 per block under float32 per tensor (arXiv 2509.25149, appendix).

    S = min(2688/A, FLT_MAX), or 1 if A = 0; sf = e4m3(min(b * (S * (1/6)), 448));
    encode = min(1 / (sf * (1/S)), FLT_MAX); tensor_scale = A / 2688. With ``rounding="up"`` sf is
    rounded up instead of to nearest, so that no element is clipped.

    Args:
      block: float32 amax of every block.
      tensor: float32 amax of the tensor, a scalar.
    """
    lift = jnp.where(tensor < 2.0**-60, _LIFT, 1.0).astype(jnp.float32)
    a, b = lift_subnormals(tensor, lift), lift_subnormals(block, lift)
    limit = _FLT_MAX / lift
    s = jnp.minimum(2688.0 / a, limit)
    s = jnp.where((a == 0) | (s == 0), jnp.float32(1), s)
    target = jnp.minimum(b * (s * np.float32(1 / 6)), 448.0)
    sf = round_to_grid(target, _E4M3)
    if rounding == "up":
        sf = jnp.where(sf < target, _next_up(sf), sf)
    encode = jnp.minimum(1.0 / _as_subnormal(sf * _as_subnormal(1.0 / s, lift), lift), limit)
    return Scales(encode, sf.astype(_E4M3.dtype), _divide(tensor, 2688.0), lift)


def _as_subnormal(lifted: jax.Array, lift: jax.Array) -> jax.Array:
    """Rounds a lifted number as float32 would round it, where unlifted it is subnormal."""
    unit = np.float32(_SUBNORMAL * _LIFT)
    rounded = lax.round(lifted * np.float32(1 / unit), lax.RoundingMethod.TO_NEAREST_EVEN) * unit
    subnormal = (lift > 1) & (lifted < np.float32(2.0**-126 * _LIFT))
    return jnp.where(subnormal, rounded, lifted)


def _next_up(sf: jax.Array) -> jax.Array:
    """The next larger E4M3 value above ``sf`` >= 0."""
    word = lax.bitcast_convert_type(sf, jnp.int32)
    normal = lax.bitcast_convert_type(word + (1 << 20), jnp.float32)
    return jnp.where(sf < 2.0**-6, sf + 2.0**-9, normal)


def lift_subnormals(x: jax.Array, lift: jax.Array) -> jax.Array:
    """|x| * lift for float32 x, exact also where x is subnormal (then lift has to be 2^64)."""
    word = lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(0x7FFFFFFF)
    subnormal = word.astype(jnp.float32) * np.float32(_SUBNORMAL * _LIFT)
    magnitude = lax.bitcast_convert_type(word, jnp.float32)
    return jnp.where((word < 0x800000) & (lift > 1), subnormal, magnitude * lift)
