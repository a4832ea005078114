"""Products of quantized operands: values multiplied, scales applied where they factor out."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics.products import DotProduct, Product
from srjit.numerics.quantization import ScaledValues, aligned

Turned = tuple[jax.Array | None, jax.Array | None]


class Multiply(Protocol):
    """How a target multiplies two arrays of values."""

    def __call__(
        self,
        product: Product,
        lhs: jax.Array,
        rhs: jax.Array,
        *extras: jax.Array,
        integer: bool,
        turned: Turned = (None, None),
    ) -> jax.Array:
        """``product(lhs, rhs)``.

        Args:
          product, lhs, rhs, *extras: what is multiplied.
          integer: whether both hold integers to 127, whose sum is to be exact.
          turned: the operands with their last dimension first, where they are there.
        """
        ...


def multiply_values(
    product: Product,
    lhs: jax.Array,
    rhs: jax.Array,
    *extras: jax.Array,
    integer: bool,
    turned: Turned = (None, None),
) -> jax.Array:
    """The portable Multiply: integers accumulate in int32, the rest in float32."""
    dtype = jnp.float64 if jnp.float64 in (lhs.dtype, rhs.dtype) else jnp.float32
    if not isinstance(product, DotProduct):
        return product(lhs.astype(dtype), rhs.astype(dtype), *extras, dtype=dtype)
    if integer:
        plain = dataclasses.replace(product, precision=None)
        return plain(lhs.astype(jnp.int8), rhs.astype(jnp.int8), dtype=jnp.int32)
    if lhs.dtype == rhs.dtype == jnp.bfloat16:
        return dataclasses.replace(product, precision=None)(lhs, rhs, dtype=dtype)
    exact = dataclasses.replace(product, precision=lax.Precision.HIGHEST)
    return exact(lhs.astype(dtype), rhs.astype(dtype), dtype=dtype)


def scaled_dot(
    product: Product,
    lhs: jax.Array | ScaledValues,
    rhs: jax.Array | ScaledValues,
    *extras: jax.Array,
    dtype: Any,
    multiply: Multiply = multiply_values,
) -> jax.Array:
    """The product of two operands, each quantized or in high precision.

    Args:
      product: what is multiplied how.
      lhs, rhs: a quantized operand or a float array.
      *extras: group sizes of a ragged product.
      dtype: of the result.
      multiply: the target's way to multiply values.
    """
    (a, a_scale), (b, b_scale) = _factored(product, 0, lhs), _factored(product, 1, rhs)
    integer = all(
        isinstance(o, ScaledValues) and o.is_integer and v is o.values
        for o, v in ((lhs, a), (rhs, b))
    )
    turned = _turned(lhs, a), _turned(rhs, b)
    out = multiply(product, a, b, *extras, integer=integer, turned=turned)
    out = out.astype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)
    scales = [s for s in (a_scale, b_scale) if s is not None]
    if scales:
        out = out * (scales[0] if len(scales) == 1 else scales[0] * scales[1]).astype(out.dtype)
    return out.astype(dtype)


def _factored(
    product: Product, side: int, operand: jax.Array | ScaledValues
) -> tuple[jax.Array, jax.Array | None]:
    """What to multiply, and the scale of the result: a scalar, or of the result's rank."""
    if not isinstance(operand, ScaledValues):
        return operand, None
    if operand.scale is None:
        return operand.values, None
    scale = aligned(operand.scale, operand.values.ndim)
    of_result = _in_result(product, side, scale)
    if of_result is not None:
        return operand.values, of_result
    return operand.values.astype(scale.dtype) * scale, None


def _turned(operand: jax.Array | ScaledValues, values: jax.Array) -> jax.Array | None:
    """The copy of an operand, if it is one of the values that are multiplied."""
    if isinstance(operand, ScaledValues) and values is operand.values:
        return operand.turned
    return None


def _in_result(product: Product, side: int, scale: jax.Array) -> jax.Array | None:
    """A scale (of its operand's rank) as a factor of the result; None where it varies in a sum."""
    if scale.size == 1:
        return lax.reshape(scale, ())
    if not isinstance(product, DotProduct):
        return None
    labels = product.lhs if side == 0 else product.rhs
    summed = [d for d, label in enumerate(labels) if label not in product.out]
    if any(scale.shape[d] != 1 for d in summed):
        return None
    kept = [d for d in range(scale.ndim) if d not in summed]
    in_order = sorted(kept, key=lambda d: product.out.index(labels[d]))
    scale = lax.transpose(lax.squeeze(scale, summed), [kept.index(d) for d in in_order])
    sizes = {labels[d]: n for d, n in zip(in_order, scale.shape, strict=True)}
    return scale.reshape([sizes.get(label, 1) for label in product.out])
