"""Storage of an element's numbers: a dtype while programs run, their own bits when packed.

Not every grid is a dtype: ml_dtypes has no E1M2, and its E2M3 is no dtype of JAX. Arrays of such
numbers have a wider dtype that holds each of them exactly; only packed ones have their own bits.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from srjit.numerics.elements import ELEMENTS, Element


@dataclasses.dataclass(frozen=True)
class Storage:
    """The storage of an element's numbers.

    Attributes:
      element: the grid.
      dtype: of arrays of its numbers; it has all of them.
      bits: of a packed number. Fewer than 8 are two's complement, or a sign, exponent and mantissa.
    """

    element: Element
    dtype: Any
    bits: int

    @property
    def has_nan(self) -> bool:
        """True if NaN is kept; no float of fewer than 8 bits has one (OCP Microscaling v1.0)."""
        return self.bits >= 8 and not self.element.is_integer

    def cast(self, rounded: jax.Array) -> jax.Array:
        """Grid values in ``dtype``, exactly; 0 for NaN where there is none."""
        if not self.has_nan:
            rounded = jnp.where(jnp.isnan(rounded), jnp.zeros_like(rounded), rounded)
        if rounded.dtype == jnp.float64 and self.dtype == jnp.bfloat16:
            return _bfloat16_of_float64(rounded)
        return rounded.astype(self.dtype)

    def pack(self, codes: jax.Array) -> jax.Array:
        """Grid values as an array of a dtype that all formats of files know.

        safetensors 0.8 does not load floats of 8 bits or fewer as NumPy or JAX arrays: their bits
        are bytes. Numbers of fewer bits share bytes along the last dimension, padded with zeros;
        the first number has the lowest bits.
        """
        if self.bits >= 8:
            return as_bytes(self.cast(codes))
        patterns = self._patterns(jnp.where(jnp.isnan(codes), 0, codes).astype(jnp.float32))
        patterns = patterns.reshape(patterns.shape or (1,))
        count, missing = self._group, -patterns.shape[-1] % self._group
        patterns = jnp.pad(patterns, [(0, 0)] * (patterns.ndim - 1) + [(0, missing)])
        parts = [patterns[..., i::count] << i * self.bits for i in range(count)]
        word = sum(parts[1:], parts[0])
        packed = [(word >> 8 * i & 255).astype(jnp.uint8) for i in range(self._group_bytes)]
        return packed[0] if len(packed) == 1 else _interleaved(packed)

    def unpack(self, packed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The codes of ``shape`` that ``pack`` was given, in a dtype that holds them."""
        if self.bits >= 8:
            is_narrow = self.dtype.itemsize == 1 and not self.element.is_integer
            return lax.bitcast_convert_type(packed, self.dtype) if is_narrow else packed
        size = self._group_bytes
        parts = [packed[..., i::size].astype(jnp.int32) << 8 * i for i in range(size)]
        word = sum(parts[1:], parts[0])
        numbers = _interleaved(
            [word >> i * self.bits & (1 << self.bits) - 1 for i in range(self._group)]
        )
        return self._values(numbers[..., : shape[-1] if shape else 1].reshape(shape))

    @property
    def _group(self) -> int:
        """The number of elements that fill whole bytes."""
        return 8 // math.gcd(8, self.bits)

    @property
    def _group_bytes(self) -> int:
        return self._group * self.bits // 8

    def _patterns(self, codes: jax.Array) -> jax.Array:
        """float32 grid values as int32 patterns of ``bits``."""
        m = self.element.mantissa_bits
        if m is None:
            return codes.astype(jnp.int32) & (1 << self.bits) - 1
        magnitude = jnp.abs(codes)
        word = lax.bitcast_convert_type(magnitude, jnp.int32)
        normal = (word >> 23 - m) - (self.element.min_exponent + 126 << m)
        subnormal = (magnitude * np.float32(1 / self.element.smallest)).astype(jnp.int32)
        code = jnp.where(magnitude < 2.0**self.element.min_exponent, subnormal, normal)
        return code | jnp.signbit(codes).astype(jnp.int32) << self.bits - 1

    def _values(self, patterns: jax.Array) -> jax.Array:
        """The float32 values of int32 patterns; floats have a -0."""
        m, top = self.element.mantissa_bits, 1 << self.bits - 1
        if m is None:
            return ((patterns ^ top) - top).astype(jnp.float32)
        code = patterns & top - 1
        word = code + (self.element.min_exponent + 126 << m) << 23 - m
        normal = lax.bitcast_convert_type(word, jnp.float32)
        subnormal = code.astype(jnp.float32) * np.float32(self.element.smallest)
        magnitude = jnp.where(code < 1 << m, subnormal, normal)
        return jnp.where(patterns >= top, -magnitude, magnitude)


def _interleaved(parts: list[jax.Array]) -> jax.Array:
    """The first of all parts, the second of all, ... along the last dimension."""
    stacked = jnp.stack(parts, axis=-1)
    return stacked.reshape(*stacked.shape[:-2], -1)


def _bfloat16_of_float64(x: jax.Array) -> jax.Array:
    """Values of bfloat16. XLA casts by way of float32, whose subnormal numbers CPUs flush."""
    word = lax.bitcast_convert_type(x, jnp.uint64)
    units = (jnp.abs(x) * 2.0**133).astype(jnp.uint16)  # the pattern of a subnormal number
    subnormal = lax.bitcast_convert_type(
        (word >> 48).astype(jnp.uint16) & 0x8000 | units, jnp.bfloat16
    )
    return jnp.where(jnp.abs(x) < 2.0**-126, subnormal, x.astype(jnp.bfloat16))


def as_bytes(x: jax.Array) -> jax.Array:
    """x, or if it is of floats of 8 bits, these."""
    is_narrow = x.dtype.itemsize == 1 and jnp.issubdtype(x.dtype, jnp.floating)
    return lax.bitcast_convert_type(x, jnp.uint8) if is_narrow else x


def _of_dtype(element: Element) -> Storage:
    dtype = jnp.dtype(element.name)
    info = jnp.iinfo(dtype) if element.is_integer else jnp.finfo(dtype)
    return Storage(element, dtype, info.bits)


# Of the elements that are dtypes, by the dtypes' names.
STORAGES: dict[str, Storage] = {name: _of_dtype(element) for name, element in ELEMENTS.items()}
