"""What a watched program measures of a quantization, on the device.

It is of a sample of the operand: groups of whole rows along the contraction, at equal distances,
quantized again as they were in the program, with the scale of the whole tensor. What is rounded is
not what the program rounds on, so that no result changes.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics import hadamard
from srjit.numerics.blocks import pad_to_multiple
from srjit.numerics.encode import encode
from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key, mix
from srjit.numerics.rounding import working_dtype
from srjit.numerics.scaling import tensor_amax

SAMPLE = 2**12  # elements of an operand, about
_WATCHING = 0x77617463  # apart from the noise of the program
MEASURED = ("norm", "noise", "zeros", "saturated", "amax")


def measured(
    x: jax.Array, spec: Quantization, key: Key | None, before: jax.Array | None, flips: bool
) -> jax.Array:
    """float32 (5,): what ``MEASURED`` names, as of ``watching.Record``.

    Args:
      x: the operand.
      spec: how it is quantized.
      key: its noise's key; None if it draws none.
      before: the largest amax of earlier steps, for a delayed scale.
      flips: whether its signs are flipped at random first: then only norm and amax are known.
    """
    x = lax.stop_gradient(x)
    fmt = get_format(spec.format)
    amax = tensor_amax(x.astype(working_dtype(x.dtype)))  # as quantizers have it: it is found once
    part = _sample(x, spec).astype(working_dtype(x.dtype))
    rms = functools.partial(_root_mean_square, size=part.size)
    if flips or spec.rounding == "none" or not x.size:
        return jnp.stack([rms(part), 0, 0, 0, amax.astype(jnp.float32)])
    known = before
    if spec.scaling == "dynamic" and spec.shared == "tensor" and not spec.hadamard:
        known = amax  # of the tensor, not of the sample
    again = None if key is None else mix(key, _WATCHING)
    values = _rotated(part, spec) if spec.hadamard else part
    rounded = encode(values, spec.unrotated, again, before=known, subnormal=False)
    steps = dataclasses.replace(rounded, codes=jnp.ones_like(rounded.codes))
    scale = steps.dequantize(part.dtype)
    off = rounded.dequantize(part.dtype) - values
    size = jnp.abs(values)
    lost = (size > 0) & (size <= scale * (fmt.element.smallest / 2))
    count = jnp.maximum(jnp.sum(size > 0), 1)
    saturated = jnp.mean(size > scale * fmt.element.max, dtype=jnp.float32)
    found = rms(part), rms(off), jnp.sum(lost) / count, saturated, amax
    return jnp.stack([value.astype(jnp.float32) for value in found])


def _rotated(x: jax.Array, spec: Quantization) -> jax.Array:
    """The Hadamard transform as a product: the bits of ``hadamard.transform`` are not needed here.

    Of butterflies, XLA would compute each step again for each sum that is made of the result.
    """
    axis, size = spec.axes(x.ndim)[-1], spec.rotation
    rows = jnp.moveaxis(pad_to_multiple(x, axis, size), axis, -1)
    rotated = rows.reshape(-1, size) @ jnp.asarray(hadamard.matrix(size), x.dtype)
    return jnp.moveaxis(rotated.reshape(rows.shape), -1, axis)


def _root_mean_square(x: jax.Array, size: int) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x)) / max(size, 1)).astype(jnp.float32)


def _sample(x: jax.Array, spec: Quantization) -> jax.Array:
    """About ``SAMPLE`` elements: whole blocks of rows along the contraction, at equal distances."""
    square = spec.shared == "square"
    free = [0] if square and x.ndim else [d for d in range(x.ndim) if d not in spec.axes(x.ndim)]
    if not free or x.size <= SAMPLE:
        return x
    dim = max(free, key=lambda d: x.shape[d])
    group = spec.block_size if square else 1
    groups = x.shape[dim] // group
    wanted = max(1, SAMPLE * x.shape[dim] // (x.size * group))
    if wanted >= groups:
        return x
    stride = groups // wanted
    whole = lax.slice_in_dim(x, 0, wanted * stride * group, axis=dim)
    split = whole.reshape(*x.shape[:dim], wanted, stride * group, *x.shape[dim + 1 :])
    part = lax.slice_in_dim(split, 0, group, axis=dim + 1)
    return part.reshape(*x.shape[:dim], wanted * group, *x.shape[dim + 1 :])
