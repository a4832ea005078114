"""Products of quantized operands: codes multiplied, scales applied where they factor out."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics.formats import Format, get_format
from srjit.numerics.products import DotProduct, Product
from srjit.numerics.quantization import QuantizedArray, aligned, expanded_scale

Operand = jax.Array | QuantizedArray


class Multiply(Protocol):
    """How a target multiplies two arrays of codes."""

    def __call__(
        self, product: Product, lhs: jax.Array, rhs: jax.Array, *extras: jax.Array, integer: bool
    ) -> jax.Array:
        """``product(lhs, rhs)``; exact in int32 semantics where both hold integers to 127."""
        ...


def multiply_codes(
    product: Product, lhs: jax.Array, rhs: jax.Array, *extras: jax.Array, integer: bool
) -> jax.Array:
    """The portable Multiply: integers accumulate in int32, the rest in float32."""
    dtype = jnp.float64 if jnp.float64 in (lhs.dtype, rhs.dtype) else jnp.float32
    if not isinstance(product, DotProduct):
        return product(lhs.astype(dtype), rhs.astype(dtype), *extras, dtype=dtype)
    if integer:
        codes = dataclasses.replace(product, precision=None)
        return codes(lhs.astype(jnp.int8), rhs.astype(jnp.int8), *extras, dtype=jnp.int32)
    if lhs.dtype == rhs.dtype == jnp.bfloat16:
        return dataclasses.replace(product, precision=None)(lhs, rhs, *extras, dtype=dtype)
    exact = dataclasses.replace(product, precision=lax.Precision.HIGHEST)
    return exact(lhs.astype(dtype), rhs.astype(dtype), *extras, dtype=dtype)


def scaled_dot(
    product: Product,
    lhs: Operand,
    rhs: Operand,
    *extras: jax.Array,
    dtype: Any,
    multiply: Multiply = multiply_codes,
) -> jax.Array:
    """The product of two operands, each quantized or in high precision.

    Args:
      product: what is multiplied how.
      lhs, rhs: a QuantizedArray (codes of any dtype that holds them) or a float array.
      *extras: group sizes of a ragged product.
      dtype: of the result.
      multiply: the target's way to multiply codes.
    """
    (a, a_scale), (b, b_scale) = _factored(product, 0, lhs), _factored(product, 1, rhs)
    integer = all(_is_integer(o, c) for o, c in ((lhs, a), (rhs, b)))
    out = multiply(product, a, b, *extras, integer=integer)
    work = jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
    out = out.astype(work)
    if a_scale is not None and b_scale is not None:
        out = out * (a_scale * b_scale).astype(work)
    elif a_scale is not None or b_scale is not None:
        out = out * (a_scale if b_scale is None else b_scale).astype(work)
    return out.astype(dtype)


def _is_integer(operand: Operand, multiplied: jax.Array) -> bool:
    """Whether what is multiplied are bare integer codes."""
    return (
        isinstance(operand, QuantizedArray)
        and multiplied is operand.codes
        and get_format(operand.spec.format).element.is_integer
    )


def _factored(product: Product, side: int, operand: Operand) -> tuple[jax.Array, jax.Array | None]:
    """What to multiply, and the scale of the result: a scalar, or of the result's rank."""
    if not isinstance(operand, QuantizedArray):
        return operand, None
    fmt = get_format(operand.spec.format)
    codes = operand.codes
    if fmt.scale == "none":
        return codes, None
    if operand.spec.shared in ("tensor", "channel"):
        scale = aligned(operand.scale, codes.ndim)
        out_scale = _in_result(product, side, scale)
        if out_scale is not None:
            return codes, out_scale
        return codes.astype(scale.dtype) * scale, None
    values = codes.astype(jnp.float32) * expanded_scale(operand, jnp.float32)
    values = values.astype(jnp.bfloat16 if _exact_in_bfloat16(fmt, codes) else _float_of(codes))
    if operand.tensor_scale is None:
        return values, None
    scale = aligned(operand.tensor_scale, codes.ndim)
    out_scale = _in_result(product, side, scale)
    if out_scale is not None:
        return values, out_scale
    return values.astype(jnp.float32) * scale, None


def _exact_in_bfloat16(fmt: Format, codes: jax.Array) -> bool:
    """Whether code times block scale has at most 8 significant bits."""
    return fmt.scale in ("e8m0", "e4m3") and codes.dtype != jnp.float64


def _float_of(codes: jax.Array) -> Any:
    return jnp.float64 if codes.dtype == jnp.float64 else jnp.float32


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
    names = [labels[d] for d in kept]
    order = sorted(range(len(kept)), key=lambda i: product.out.index(names[i]))
    squeezed = lax.transpose(lax.squeeze(scale, summed), order)
    positions = [product.out.index(names[i]) for i in order]
    shape = [1] * len(product.out)
    for d, position in enumerate(positions):
        shape[position] = squeezed.shape[d]
    return squeezed.reshape(shape)
