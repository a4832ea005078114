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
HALVES = (1, 2, 4, 8)  # how far apart the two stand that a step adds and subtracts, in order
SIGNS = np.array([1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1], np.float32)


def matrix() -> np.ndarray:
    """The (16, 16) orthonormal matrix diag(signs) @ H / 4, float32."""
    h = np.ones((1, 1), np.float32)
    while len(h) < SIZE:
        h = np.block([[h, h], [h, -h]])
    return SIGNS[:, None] * h / 4


def transform(x: jax.Array, axis: int) -> jax.Array:
    """x with each 16 elements along ``axis`` transformed; zeros pad the axis to a multiple of 16.

    Args:
      x: float32 or float64.
      axis: the contraction; one dimension.

    Returns:
      x's dtype, of x's shape but for ``axis``, rounded to bfloat16 values as NVIDIA's recipe does.
      Sums are those of butterflies in the order of ``HALVES``, each rounded to x's dtype: of a
      matrix product nobody says in which order it adds.
    """
    axis %= x.ndim
    x = pad_to_multiple(x, axis, SIZE)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    count = x.shape[axis] // SIZE
    signs = jnp.asarray(np.tile(SIGNS, count), x.dtype)
    mixed = x * signs.reshape(-1, *(1 for _ in after))
    for half in HALVES:
        pairs = mixed.reshape(*before, -1, 2, half, *after)
        sign = jnp.asarray([1, -1], x.dtype).reshape(2, *(1 for _ in (half, *after)))
        mixed = lax.rev(pairs, (axis + 1,)) + pairs * sign
    mixed = mixed.reshape(x.shape) * x.dtype.type(0.25)
    return lax.reduce_precision(mixed, exponent_bits=8, mantissa_bits=7)


def pad_to_multiple(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """x with zeros after it along ``axis``, up to a multiple of ``multiple``."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    config = [(0, missing * (d == axis), 0) for d in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)
