"""Scales: what to multiply a tensor by so that it fits a grid, and what to multiply codes by.

Every factor is written so that XLA computes what IEEE arithmetic does: a division by a constant or
by a broadcast scalar would be turned into a multiplication by its reciprocal, which rounds twice.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from srjit.numerics.elements import ELEMENTS, Element
from srjit.numerics.rounding import LAYOUTS, round_to_grid

ScaleRounding = Literal["standard", "up", "four_over_six", "eden"]
_E4M3 = ELEMENTS["float8_e4m3fn"]
_FLT_MAX = float(np.finfo(np.float32).max)
_TIES_TO_EVEN = lax.RoundingMethod.TO_NEAREST_EVEN
# CPUs and TPUs flush subnormal floats. What is below _TINY is lifted, by a power of two, out of
# their reach; what IEEE arithmetic rounds to subnormals is then a whole number of lifted _UNITs.
_TINY = 2.0**-60
_LIFT = 2.0**64
_UNIT = 2.0**-149
LEAST_AMAX = 2.0**-112  # of NVFP4 tensors, where subnormal numbers do not count
UNSEEN = -1.0  # in place of the amax of what a step did not quantize


class Scales(NamedTuple):
    """The scales of one tensor.

    Attributes:
      encode: factor that takes the (lifted) tensor to the grid, in the shape of the amax.
      scale: factor of the codes, in the format's scale dtype (or such values in float32).
      tensor_scale: NVFP4's float32 second level, else None.
      lift: power of two by which to lift a block first, in the shape of the amax; None for 1.
      amax: the tensor's own; None where nobody wants it: of blocks, or known before.
    """

    encode: jax.Array
    scale: jax.Array
    tensor_scale: jax.Array | None = None
    lift: jax.Array | None = None
    amax: jax.Array | None = None


def _divide(x: jax.Array, constant: float) -> jax.Array:
    # The divisor depends on x so that it is as large as x, under vmap too, and no broadcast scalar.
    return x / jnp.where(jnp.isnan(x), x, x.dtype.type(constant))


def amax(x: jax.Array, axes: tuple[int, ...] | None = None, keepdims: bool = False) -> jax.Array:
    """max|x| over ``axes``, 0 of nothing; NaN if any is NaN. Of bit patterns: subnormals count."""
    initial = None if x.size else 0
    if x.dtype == jnp.float64:
        return jnp.max(jnp.abs(x), axis=axes, keepdims=keepdims, initial=initial)
    word = lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(0x7FFFFFFF)
    largest = jnp.max(word, axis=axes, keepdims=keepdims, initial=initial)
    return lax.bitcast_convert_type(largest, jnp.float32)


def float_scales(amax: jax.Array, element: Element) -> Scales:
    """scale = amax / M in amax's dtype, 1 if amax is 0; at least the smallest normal one."""
    one, least = jnp.ones_like(amax), float(np.finfo(amax.dtype).tiny)  # 2^-126 of float32
    encode = jnp.where(amax == 0, one, jnp.minimum(element.max / amax, 1 / least))
    scale = jnp.where(amax == 0, one, jnp.maximum(_divide(amax, element.max), least))
    return Scales(encode, scale)


def split(scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A positive scale as rest * power * power, exactly: 1 <= rest < 4, and a power of two.

    Two scales may be so small that their product is none of the dtype's normal numbers, while that
    with codes is. Of ``rest * power`` and of ``power`` every product is normal; and a product of
    two ``rest`` rounds as the one of their scales does.
    """
    unsigned, mantissa, bias = LAYOUTS[scale.dtype]
    field = lax.bitcast_convert_type(scale, unsigned) >> mantissa
    exponent = jnp.clip(field.astype(jnp.int32), 1, 2 * bias) - bias
    half = exponent >> 1
    power, inverse = (
        lax.bitcast_convert_type((bias + n).astype(unsigned) << mantissa, scale.dtype)
        for n in (half, -half)
    )
    return scale * inverse * inverse, power


def tensor_scales(
    amax: jax.Array, known: jax.Array | float | None, element: Element, hidden: jax.Array | None
) -> Scales:
    """Scales of a tensor that has ``amax``, made of an amax that is ``known`` if it is positive.

    A scale from elsewhere must not hide NaN and Inf; the codes need not wait for that.

    Args:
      amax: the tensor's own.
      known: another one, or None; a number is one that is given once and for all.
      element: the grid.
      hidden: the amax of what may hold NaN and Inf that codes do not show; None: they do.
    """
    if known is None:
        return float_scales(amax, element)._replace(amax=amax)
    given = jnp.asarray(known, amax.dtype)
    chosen = given if isinstance(known, float) else jnp.where(given > 0, given, amax)
    scales = float_scales(chosen, element)._replace(amax=amax.astype(jnp.float32))
    if hidden is None:
        return scales
    return scales._replace(scale=jnp.where(jnp.isfinite(hidden), scales.scale, jnp.nan))


def tensor_amax(x: jax.Array) -> jax.Array:
    """max|x| in float32."""
    return amax(x.astype(jnp.float32))


def e8m0_scales(
    amax: jax.Array, element: Element, rounding: ScaleRounding, subnormal: bool
) -> Scales:
    """2^(floor(log2 amax) - emax), at least 2^-127: OCP Microscaling Formats v1.0, section 6.3.

    With ``rounding="up"`` the exponent is one higher where the largest element would be clipped.
    NaN and Inf give the NaN scale.

    Args:
      amax: of every block.
      element: the grid.
      rounding: of the scale.
      subnormal: whether elements and scales that are subnormal floats count, which takes lifted
        blocks; without it scales are at least 2^-126, the smallest that targets do not flush.
    """
    amax = amax.astype(jnp.float32)
    exponent, code = e8m0_codes(amax, element, rounding, subnormal)
    encode = lax.bitcast_convert_type((254 - exponent) << 23, jnp.float32)
    scale = lax.bitcast_convert_type(code.astype(jnp.uint8), jnp.float8_e8m0fnu)
    if not subnormal:
        return Scales(encode, scale)
    lift = _lift_where(amax < _TINY)
    return Scales(encode / lift, scale, lift=lift)


def e8m0_codes(
    amax: jax.Array, element: Element, rounding: ScaleRounding, subnormal: bool
) -> tuple[jax.Array, jax.Array]:
    """Biased exponents of ``e8m0_scales``, and their codes; both int32, arguments as there."""
    word = lax.bitcast_convert_type(amax, jnp.int32)
    exponent = (word >> 23) - element.max_exponent
    if rounding == "up":
        clipped = (word & 0x7FFFFF) > np.float32(element.max).view(np.int32) & 0x7FFFFF
        exponent = exponent + clipped.astype(jnp.int32)
    exponent = jnp.maximum(exponent, 0 if subnormal else 1)
    return exponent, jnp.where(word >= 0x7F800000, 255, exponent)


def lifted_e8m0(scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """E8M0 scales as float32, lifted where they are tiny, and the lift."""
    word = lax.bitcast_convert_type(scale, jnp.uint8).astype(jnp.int32)
    lift = word < 64
    power = lax.bitcast_convert_type((word + 64 * lift) << 23, jnp.float32)
    return jnp.where(word == 255, jnp.nan, power), _lift_where(lift)


def nvfp4_scales(
    block: jax.Array,
    tensor: jax.Array,
    rounding: ScaleRounding,
    subnormal: bool,
    top: int = 2688,
    largest: float = 6,
) -> Scales:
    """NVFP4's two levels: E4M3 per block under float32 per tensor (arXiv 2509.25149, appendix).

    S = min(2688/A, FLT_MAX), or 1 if A = 0 or S = 0; sf = e4m3(min(b * (S * (1/6)), 448));
    encode = min(1 / (sf * (1/S)), FLT_MAX); tensor_scale = A / 2688. With ``rounding="up"`` sf is
    rounded up instead of to nearest, so that no element is clipped.

    Args:
      block: float32 amax of every block.
      tensor: float32 amax of the tensor, a scalar.
      rounding: of sf.
      subnormal: whether elements, blocks and tensors down to 2^-149 count. XLA's targets flush
        subnormal floats, so that takes integers and three times the operations. Without it, A is at
        least 2^-112, and sf large enough that encode is finite: codes of such blocks are smaller
        than they could be. The others come out the same, but for sf, which stays in float32.
      top: what A becomes: 2688 = 6 * 448.
      largest: the code that b becomes, in place of the 6 above.
    """
    if subnormal:
        return _subnormal_nvfp4_scales(block, tensor, rounding, top, largest)
    # XLA stores quotients, and computes what follows them in every reader: so there is little. The
    # minimum is always the quotient; without one, XLA makes 1 / (2688 / a) another division.
    tensor = jnp.where(tensor == 0, tensor, jnp.maximum(tensor, LEAST_AMAX))
    a = jnp.where(tensor == jnp.inf, jnp.float32(top), jnp.maximum(tensor, LEAST_AMAX))
    s = jnp.minimum(top / a, _FLT_MAX)
    sf = jnp.maximum(_nvfp4_block_scale(block, s, rounding, largest), least_block_scale(s))
    d = 1.0 / jnp.where(jnp.isnan(block), block, s)  # of every block: a scalar is a kernel more
    encode = jnp.minimum(1.0 / (sf * d), _FLT_MAX)
    return Scales(encode, sf, _divide(tensor, top))


def least_block_scale(s: jax.Array) -> jax.Array:
    """The power of two for which sf / S is at least 2^-126; 0 if E4M3 has none so small.

    What is smaller would be flushed, and no float32 takes such a block to the grid.
    """
    word = lax.bitcast_convert_type(s * np.float32(2.0**-126), jnp.int32)
    power = lax.bitcast_convert_type(word + 0x7FFFFF & 0x7F800000, jnp.float32)
    return jnp.where(power < _E4M3.smallest, jnp.zeros_like(power), power)


def _nvfp4_block_scale(
    block: jax.Array, s: jax.Array, rounding: ScaleRounding, largest: float
) -> jax.Array:
    target = block * (s * np.float32(1 / largest))
    sf = round_to_grid(target, _E4M3)
    if rounding == "up":
        sf = jnp.where(sf < jnp.minimum(target, _E4M3.max), next_up(sf), sf)
    return sf


def _subnormal_nvfp4_scales(
    block: jax.Array, tensor: jax.Array, rounding: ScaleRounding, top: int, largest: float
) -> Scales:
    """``nvfp4_scales`` where any float32, D among them, may be subnormal."""
    tiny = tensor < _TINY
    lift = _lift_where(tiny)
    a, b = lifted(tensor, lift), lifted(block, lift)
    limit = _FLT_MAX / lift
    s = jnp.minimum(top / a, limit)
    s = jnp.where((a == 0) | (s == 0), jnp.float32(1), s)
    sf = _nvfp4_block_scale(b, s, rounding, largest)
    per_unit = jnp.where(tiny, jnp.float32(1 / (_UNIT * _LIFT)), jnp.float32(1))
    word = lax.bitcast_convert_type(s, jnp.int32)
    d = _in_units(per_unit / s, jnp.int32(0), word & 0x7FFFFF | 0x800000, tiny)
    product = d.astype(jnp.uint32) * (sf * 512).astype(jnp.uint32)
    decode = _in_units(sf * d, product.astype(jnp.int32), 512, tiny)
    encode = jnp.minimum(per_unit / decode, limit)
    own = _lift_where(tiny | (encode > 1 / _TINY))
    scales = sf.astype(jnp.float8_e4m3fn), _tensor_scale(a, tiny, lift, top)
    return Scales(encode * (lift / own), *scales, own)


def _tensor_scale(a: jax.Array, tiny: jax.Array, lift: jax.Array, top: int) -> jax.Array:
    """A / top from the lifted A."""
    scale = _divide(a, top)
    n = a * np.float32(1 / (_UNIT * _LIFT))  # A in units, an integer, of which int32 is the rest
    rest = (n - jnp.floor(n * np.float32(2.0**-32)) * np.float32(2.0**32)).astype(jnp.uint32)
    units = _in_units(scale * np.float32(1 / (_UNIT * _LIFT)), rest.astype(jnp.int32), top, tiny)
    subnormal = lax.bitcast_convert_type(units.astype(jnp.int32), jnp.float32)
    return jnp.where(tiny & (units < 2.0**24), subnormal, scale / lift)


def _in_units(approximation: Any, numerator: Any, denominator: Any, tiny: Any) -> jax.Array:
    """numerator / denominator as float32 has it: where it is subnormal, a whole number of units.

    Args:
      approximation: the quotient in units, rounded to 24 bits: right unless it is subnormal.
      numerator: int32, modulo 2^32.
      denominator: int32, below 2^24.
      tiny: whether ``approximation`` is in units; where not, it is the result.
    """
    near = lax.round(approximation, _TIES_TO_EVEN).astype(jnp.int32)
    twice = 2 * (numerator - near * denominator)
    odd = near & 1
    off = (twice + odd > denominator).astype(jnp.int32) - (twice - odd < -denominator)
    whole = (near + off).astype(jnp.float32)
    return jnp.where(tiny & (approximation < 2.0**23), whole, approximation)


def _lift_where(tiny: jax.Array) -> jax.Array:
    return jnp.where(tiny, jnp.float32(_LIFT), jnp.float32(1))


def next_up(sf: jax.Array) -> jax.Array:
    """The next larger E4M3 value above ``sf`` >= 0."""
    word = lax.bitcast_convert_type(sf, jnp.int32)
    normal = lax.bitcast_convert_type(word + (1 << 20), jnp.float32)
    return jnp.where(sf < 2.0**-6, sf + 2.0**-9, normal)


def multiplied(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x * scale, where the float32 scale of x, or the result, may be subnormal."""
    word = lax.bitcast_convert_type(scale, jnp.int32)
    lift = _lift_where(word < np.float32(_TINY).view(np.int32))
    return lowered(x * lifted(scale, lift).astype(x.dtype), lift)


def lifted(x: jax.Array, lift: jax.Array) -> jax.Array:
    """x * lift, for a lift of 1 or 2^64; exact also where x is subnormal and lifted."""
    if x.dtype == jnp.float64:
        return x * lift.astype(x.dtype)
    word = lax.bitcast_convert_type(x, jnp.int32)
    bits = word & jnp.int32(0x7FFFFFFF)
    subnormal = bits.astype(jnp.float32) * np.float32(_UNIT * _LIFT)
    normal = lax.bitcast_convert_type(bits, jnp.float32) * lift
    magnitude = jnp.where((bits < 0x800000) & (lift > 1), subnormal, normal)
    return jnp.where(word < 0, -magnitude, magnitude)


def lowered(x: jax.Array, lift: jax.Array) -> jax.Array:
    """x / lift, for a lift of 1 or 2^64, to nearest also where it is subnormal."""
    if x.dtype == jnp.float64:
        return x / lift.astype(x.dtype)
    units = lax.round(jnp.abs(x) * np.float32(1 / (_UNIT * _LIFT)), _TIES_TO_EVEN)
    sign = lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-(2**31))
    subnormal = lax.bitcast_convert_type(units.astype(jnp.int32) | sign, jnp.float32)
    return jnp.where((units < 2.0**23) & (lift > 1), subnormal, x / lift)
