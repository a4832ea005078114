"""The 16-point Hadamard transform along a contraction: spreads outliers before 4-bit rounding.

Applied to both operands of a product along the contraction it cancels, H being orthonormal:
(x H)(g H)^T = x g^T. The random signs are those of one fixed draw, the same for every tensor.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIZE = 16
_SIGNS = np.array([1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1], np.float32)


def matrix() -> np.ndarray:
    """The (16, 16) orthonormal matrix diag(signs) @ H / 4, float32."""
    h = np.ones((1, 1), np.float32)
    while len(h) < SIZE:
        h = np.block([[h, h], [h, -h]])
    return _SIGNS[:, None] * h / 4


def transform(x: jax.Array, axis: int) -> jax.Array:
    """x with each 16 elements along ``axis`` transformed; zeros pad the axis to a multiple of 16.

    Args:
      x: float32 or float64.
      axis: the contraction; one dimension.

    Returns:
      x's dtype, of x's shape but for ``axis``, rounded to bfloat16 values as NVIDIA's recipe does.
    """
    axis %= x.ndim
    x = pad_to_multiple(x, axis, SIZE)
    blocks = x.reshape(*x.shape[:axis], x.shape[axis] // SIZE, SIZE, *x.shape[axis + 1 :])
    h = jnp.asarray(matrix(), x.dtype)
    mixed = lax.dot_general(
        blocks, h, (((axis + 1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST
    )
    mixed = jnp.moveaxis(mixed, -1, axis + 1).reshape(x.shape)
    return lax.reduce_precision(mixed, exponent_bits=8, mantissa_bits=7)


def pad_to_multiple(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """x with zeros after it along ``axis``, up to a multiple of ``multiple``."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    config = [(0, missing * (d == axis), 0) for d in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)
