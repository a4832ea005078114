"""Kernels run on any machine: interpreted, with models of the instructions that only chips have.

Of ``cvt.rs``, the model is what ``srjit.targets.gpu.ptx`` says is published and assumed of it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from srjit.numerics.elements import ELEMENTS, Element
from srjit.numerics.rounding import round_to_grid
from srjit.targets.codes import float_code, word_of
from srjit.targets.gpu import matrices, ptx


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Runs kernels that are traced here on any machine."""
    models = {"divide": divide, "narrow": round_to_grid, "nearest": nearest}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
        patch.setattr(pltpu, "stochastic_round", _tpu_stochastic_round)
        patch.setattr(matrices, "reinterpreted", _reinterpreted)
        for name, model in (models | {"stochastic": stochastic}).items():
            patch.setattr(ptx, name, model)
        yield


def _reinterpreted(fun, types, *args):
    return [_as_type(out, wanted) for out, wanted in zip(fun(*args), types, strict=True)]


def _as_type(words, wanted):
    if words.dtype != wanted.dtype:
        words = lax.bitcast_convert_type(words, wanted.dtype)
    return words.reshape(wanted.shape)


def _tpu_stochastic_round(y, bits, *, target_dtype):
    element = ELEMENTS[jnp.dtype(target_dtype).name]
    return tpu_stochastic_round(y, bits, element).astype(target_dtype)


def tpu_stochastic_round(y: jax.Array, bits: jax.Array, element: Element) -> jax.Array:
    """``pltpu.stochastic_round``, as it is understood, bit for bit, in integer arithmetic.

    The upper bits of the noise, as many as y has below the last one that is kept, are added there
    to |y|, whatever carries into those that are kept stays, and the rest is cut off. Nothing that
    is published says so: which bits a chip reads decides between equally distributed results.

    Args:
      y: float32, of a magnitude of ``element.max`` at most.
      bits: uint32 noise.
      element: a float format of at least 8 bits.
    """
    assert element.mantissa_bits is not None
    word = word_of(y) & 0x7FFFFFFF
    dropped = 23 - element.mantissa_bits
    noise = lax.bitcast_convert_type(bits >> (32 - dropped), jnp.int32)
    normal = lax.bitcast_convert_type((word + noise) & (-1 << dropped), jnp.float32)
    # Below the smallest normal number the last bit that is kept stands still; 24 bits below it.
    step = np.float32(2.0 ** (element.min_exponent - element.mantissa_bits))
    units = lax.bitcast_convert_type(word, jnp.float32) / step
    fixed = jnp.ceil(jnp.minimum(units, 2.0**6) * np.float32(2**24)).astype(jnp.int32)
    carried = fixed + lax.bitcast_convert_type(bits >> 8, jnp.int32) >> 24
    is_normal = word >= element.min_exponent + 127 << 23
    magnitude = jnp.where(is_normal, normal, carried.astype(jnp.float32) * step)
    return jnp.where(word_of(y) < 0, -magnitude, magnitude)


# ------------------------------------------------------------------------ instructions of GPUs


def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    return a / jnp.where(jnp.isnan(a), a, b)  # by a constant, XLA would multiply


def nearest(values: Sequence[jax.Array], conversion: ptx.Conversion) -> jax.Array:
    element = conversion.element
    codes = [_or_nan(y, float_code(y, element, None), element) for y in values]
    return ptx.packed(codes, conversion)


def stochastic(
    values: Sequence[jax.Array], conversion: ptx.Conversion, noise: Sequence[jax.Array]
) -> jax.Array:
    element = conversion.element
    fields = [field for word in noise for field in noise_fields(word, element)]
    codes = [
        _or_nan(y, carried_code(y, field, element), element)
        for y, field in zip(values, fields, strict=True)
    ]
    return ptx.packed(codes, conversion)


def _or_nan(y: jax.Array, code: jax.Array, element: Element) -> jax.Array:
    nan = (1 << ptx._BITS[element.name] - 1) - 1  # E2M1 has none: it saturates
    return jnp.where(jnp.isnan(y), nan, ptx.signed(y, code, element))


def noise_fields(word: jax.Array, element: Element) -> list[jax.Array]:
    """The 16 bits that each of four values takes of an int32 word of noise, as int32.

    The values are in the order in which memory has their codes: the reverse of the operands'.
    """
    if ptx._BITS[element.name] == 8:
        low, high = word & 0xFFFF, word >> 16 & 0xFFFF
    else:
        low, high = (word >> 8 & 0xFF00 | word & 0xFF), (word >> 16 & 0xFF00 | word >> 8 & 0xFF)
    return [low, _reversed(low), high, _reversed(high)]


def _reversed(field: jax.Array) -> jax.Array:
    for shift, mask in ((1, 0x5555), (2, 0x3333), (4, 0x0F0F), (8, 0x00FF)):
        field = (field >> shift & mask) | (field & mask) << shift
    return field


def carried_code(y: jax.Array, field: jax.Array, element: Element) -> jax.Array:
    """The code, without its sign, that 16 bits of noise give: up if adding them carries.

    Args:
      y: float32; NaN is none of this function's.
      field: int32.
      element: the grid.
    """
    m = element.mantissa_bits
    assert m is not None
    word = word_of(y) & 0x7FFFFFFF
    smallest = element.min_exponent + 127
    exponent = word >> 23
    base = jnp.maximum(exponent, smallest)
    significand = jnp.where(exponent > 0, word & 0x7FFFFF | 0x800000, 0)
    units = significand >> jnp.minimum(7 - m + base - exponent, 31)  # of 2^-16 of a step
    code = (base - smallest << m) + (units + field >> 16)
    largest = float_code(jnp.float32(element.max), element, None)
    return jnp.where(exponent >= element.max_exponent + 128, largest, jnp.minimum(code, largest))
