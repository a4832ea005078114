"""Quantized arrays as they are kept: arrays of dtypes that all formats of files know.

The floats of 8 and of 4 bits are not among those (safetensors 0.8 does not load them as NumPy or
JAX arrays), so their bits are kept as bytes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics.formats import Element, get_format
from srjit.numerics.quantization import Quantization, QuantizedArray, cast

Packed = dict[str, jax.Array]
_BYTES = {"e8m0": jnp.float8_e8m0fnu, "e4m3": jnp.float8_e4m3fn}  # scales that are kept as bytes


def pack(q: QuantizedArray) -> Packed:
    """A quantized array as a dict of plain arrays.

    Args:
      q: what ``encode`` or ``quantize`` returned.

    Returns:
      ``codes``: int8, bfloat16, or uint8, which are the bits of FP8, or two codes of 4 bits, the
      first in the low ones; of those there are half as many along the last dimension, rounded up.
      ``scale``, unless the format has none: float32 (float64 of float64), or uint8, the bits of
      E4M3 or E8M0. ``tensor_scale``, float32, where there is one.
    """
    fmt = get_format(q.spec.format)
    parts: Packed = {"codes": _packed_codes(q.codes, fmt.element)}
    if fmt.scale != "none":
        parts["scale"] = _as_bytes(q.scale)
    if q.tensor_scale is not None:
        parts["tensor_scale"] = q.tensor_scale
    return parts


def unpack(parts: Packed, spec: Quantization, shape: tuple[int, ...], work: Any) -> QuantizedArray:
    """The quantized array that ``pack`` was given, with codes in a float dtype.

    Args:
      parts: what ``pack`` returned.
      spec: of the quantized array.
      shape: of its codes.
      work: the dtype for them, which holds all grids exactly: float32 or float64.
    """
    fmt = get_format(spec.format)
    codes = _unpacked_codes(parts["codes"], fmt.element, shape).astype(jnp.dtype(work))
    scale = parts.get("scale", jnp.ones((), codes.dtype))
    if fmt.scale in _BYTES:
        scale = lax.bitcast_convert_type(scale, _BYTES[fmt.scale])
    return QuantizedArray(codes, scale, parts.get("tensor_scale"), spec)


def _as_bytes(x: jax.Array) -> jax.Array:
    """x, or if it is of floats of 8 bits, these."""
    is_narrow = x.dtype.itemsize == 1 and jnp.issubdtype(x.dtype, jnp.floating)
    return lax.bitcast_convert_type(x, jnp.uint8) if is_narrow else x


def _has_4_bits(element: Element) -> bool:
    return element.name in ("int4", "float4_e2m1fn")


def _packed_codes(codes: jax.Array, element: Element) -> jax.Array:
    if not _has_4_bits(element):
        return _as_bytes(cast(codes, element))
    nibbles = _nibbles(jnp.where(jnp.isnan(codes), 0, codes).astype(jnp.float32), element)
    nibbles = nibbles.reshape(nibbles.shape or (1,))
    if nibbles.shape[-1] % 2:
        nibbles = jnp.pad(nibbles, [(0, 0)] * (nibbles.ndim - 1) + [(0, 1)])
    return nibbles[..., ::2] | nibbles[..., 1::2] << 4  # the first in the low bits


def _unpacked_codes(codes: jax.Array, element: Element, shape: tuple[int, ...]) -> jax.Array:
    if not _has_4_bits(element):
        is_narrow = element.dtype.itemsize == 1 and not element.is_integer
        return lax.bitcast_convert_type(codes, element.dtype) if is_narrow else codes
    last = shape[-1] if shape else 1
    nibbles = jnp.stack([codes & 15, codes >> 4], axis=-1)
    nibbles = nibbles.reshape(*codes.shape[:-1], 2 * codes.shape[-1])[..., :last]
    return _values(nibbles.reshape(shape), element)


def _nibbles(codes: jax.Array, element: Element) -> jax.Array:
    """Grid values as their 4 bits: two's complement, or E2M1's sign, exponent and mantissa."""
    if element.is_integer:
        return codes.astype(jnp.int32).astype(jnp.uint8) & 15
    size = jnp.abs(codes)  # 0 0.5 1 1.5 2 3 4 6
    step = jnp.where(size < 2, 2 * size, jnp.where(size < 4, size + 2, size / 2 + 4))
    return step.astype(jnp.uint8) | jnp.signbit(codes).astype(jnp.uint8) << 3


def _values(nibbles: jax.Array, element: Element) -> jax.Array:
    """The float32 values of 4 bits each; -0 is one of E2M1's."""
    if element.is_integer:
        return ((nibbles ^ 8).astype(jnp.int32) - 8).astype(jnp.float32)
    step = (nibbles & 7).astype(jnp.float32)
    size = jnp.where(step < 4, step / 2, jnp.where(step < 6, step - 2, 2 * step - 8))
    return jnp.where(nibbles > 7, -size, size)
