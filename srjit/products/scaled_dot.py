"""Products of quantized operands: values multiplied, scales applied where they factor out."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics.blocks import aligned
from srjit.products.dot import DotProduct
from srjit.products.product import Product
from srjit.products.scaled_values import ScaledValues

Operand = jax.Array | ScaledValues


class Multiply(Protocol):
    """How a target multiplies two operands."""

    def __call__(
        self, product: Product, lhs: Operand, rhs: Operand, *extras: jax.Array
    ) -> jax.Array:
        """``product(lhs, rhs)``, but for the operands' ``scale``; of integers, exactly.

        Args:
          product: what is multiplied how.
          lhs, rhs: codes, or a float array.
          *extras: group sizes of a ragged product.
        """
        ...


def multiply_values(product: Product, lhs: Operand, rhs: Operand, *extras: jax.Array) -> jax.Array:
    """The portable Multiply: integers accumulate in int32, the rest in float32."""
    a, b = values_of(lhs), values_of(rhs)
    dtype = jnp.float64 if jnp.float64 in (a.dtype, b.dtype) else jnp.float32
    if not isinstance(product, DotProduct):
        return product(a.astype(dtype), b.astype(dtype), *extras, dtype=dtype)
    if are_integers(lhs, rhs):
        plain = dataclasses.replace(product, precision=None)
        return plain(a.astype(jnp.int8), b.astype(jnp.int8), dtype=jnp.int32)
    if a.dtype == b.dtype == jnp.bfloat16:
        return dataclasses.replace(product, precision=None)(a, b, dtype=dtype)
    exact = dataclasses.replace(product, precision=lax.Precision.HIGHEST)
    return exact(a.astype(dtype), b.astype(dtype), dtype=dtype)


def values_of(operand: Operand) -> jax.Array:
    """The values that are multiplied, as one array."""
    return operand.merged if isinstance(operand, ScaledValues) else operand


def are_integers(lhs: Operand, rhs: Operand) -> bool:
    """Whether both operands hold integers to 127."""
    return all(isinstance(o, ScaledValues) and o.is_integer for o in (lhs, rhs))


def scaled_dot(
    product: Product,
    lhs: Operand,
    rhs: Operand,
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
    out = multiply(product, a, b, *extras)
    out = out.astype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)
    scales = [s for s in (a_scale, b_scale) if s is not None]
    if scales:
        out = out * (scales[0] if len(scales) == 1 else scales[0] * scales[1]).astype(out.dtype)
    return out.astype(dtype)


def _factored(product: Product, side: int, operand: Operand) -> tuple[Operand, jax.Array | None]:
    """The operand to multiply, and a factor of the result: a scalar, or of the result's rank."""
    if not isinstance(operand, ScaledValues) or operand.scale is None:
        return operand, None
    scale = aligned(operand.scale, operand.values.ndim)
    of_result = _in_result(product, side, scale)
    if of_result is not None:
        return operand, of_result
    return operand.merged.astype(scale.dtype) * scale, None


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
