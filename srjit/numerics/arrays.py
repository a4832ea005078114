"""Quantized arrays: codes with their scales, what they stand for, and how files have them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics.blocks import aligned, spread_blocks
from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.numerics.rounding import working_dtype
from srjit.numerics.scale_layouts import NO_SCALES
from srjit.numerics.storage import as_bytes

Packed = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedArray:
    """Codes with their scales; a pytree.

    Attributes:
      codes: the element dtype, of the quantized array's shape.
      scale: float32 (a scalar, or one per channel or int4 block), float8_e8m0fnu (MX) or
        float8_e4m3fn (NVFP4); dimensions that share a scale have size 1, blocked ones ceil(n / B).
      tensor_scale: NVFP4's float32 second level, else None.
      spec: the Quantization it came from.
    """

    codes: jax.Array
    scale: jax.Array
    tensor_scale: jax.Array | None
    spec: Quantization = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes."""
        return self.codes.shape

    def dequantize(self, dtype: Any = jnp.float32) -> jax.Array:
        """codes * scale * tensor_scale, as ``dtype``."""
        return dequantize(self, dtype)


# One program where nothing is traced, and otherwise the operations themselves.
@functools.partial(jax.jit, static_argnames="dtype", inline=True)
def dequantize(q: QuantizedArray, dtype: Any = jnp.float32) -> jax.Array:
    """codes * scale * tensor_scale, as ``dtype``, of the codes' shape."""
    shape = q.codes.shape

    def expand(scale: jax.Array) -> jax.Array:
        spread = spread_blocks(scale, q.spec.block_size, shape, q.spec.blocked_dims(shape))
        return aligned(spread, len(shape))

    codes = q.codes.astype(working_dtype(dtype))
    scales = get_format(q.spec.format).scales
    return scales.decode(codes, q.scale, q.tensor_scale, expand).astype(dtype)


def pack(q: QuantizedArray) -> Packed:
    """A quantized array as a dict of arrays of dtypes that all formats of files know.

    Args:
      q: what ``encode`` or ``quantize`` returned.

    Returns:
      ``codes``: as of ``Storage.pack``. ``scale``, unless the format has none: float32 (float64 of
      float64), or uint8, the bits of E4M3 or E8M0. ``tensor_scale``, float32, where there is one.
    """
    fmt = get_format(q.spec.format)
    parts: Packed = {"codes": fmt.storage.pack(q.codes)}
    if fmt.scales is not NO_SCALES:
        parts["scale"] = as_bytes(q.scale)
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
    codes = fmt.storage.unpack(parts["codes"], shape).astype(jnp.dtype(work))
    scale = parts.get("scale", jnp.ones((), codes.dtype))
    if fmt.scales.dtype is not None:
        scale = lax.bitcast_convert_type(scale, fmt.scales.dtype)
    return QuantizedArray(codes, scale, parts.get("tensor_scale"), spec)
