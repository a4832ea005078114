"""Hadamard transforms along a contraction: they spread outliers before 4-bit rounding.

Applied to both operands of a product along the contraction they cancel, H being orthonormal:
(x H)(g H)^T = x g^T. The random signs in H are those of one fixed draw, the same for every tensor.
With signs drawn for a product, D of both operands, (x D H)(g D H)^T = x g^T, too.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from srjit.choices import Rng
from srjit.numerics.blocks import pad_to_multiple
from srjit.numerics.random_bits import Key, random_bits
from srjit.numerics.symbolic import check_known

SIZE = 16
SIGNS = np.array([1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1], np.float32)


def halves(size: int = SIZE) -> tuple[int, ...]:
    """The distance of the two elements that a step adds and subtracts, step by step."""
    return tuple(1 << i for i in range(size.bit_length() - 1))


def matrix(size: int = SIZE) -> np.ndarray:
    """The (size, size) orthonormal matrix diag(signs) @ H / sqrt(size), float32."""
    h = np.ones((1, 1), np.float32)
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return np.tile(SIGNS, size // SIZE)[:, None] * h / np.float32(size**0.5)


def transform(x: jax.Array, axis: int, size: int = SIZE) -> jax.Array:
    """x with each ``size`` elements along ``axis`` transformed; zeros pad to a multiple of that.

    Args:
      x: float32 or float64.
      axis: the contraction; one dimension.
      size: 16, or a multiple of it that is a power of two.

    Returns:
      x's dtype, of x's shape but for ``axis``, rounded to bfloat16 values as NVIDIA's recipe does.
      Sums are those of butterflies in the order of ``halves``, each rounded to x's dtype: of a
      matrix product nobody says in which order it adds.
    """
    axis %= x.ndim
    check_known(x.shape, axis, f"Hadamard transforms of {size} elements run")
    x = pad_to_multiple(x, axis, size)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    signs = jnp.asarray(np.tile(SIGNS, x.shape[axis] // SIZE), x.dtype)
    signed = x * signs.reshape(-1, *(1 for _ in after))
    mixed = lax.platform_dependent(
        signed.reshape(*before, -1, size, *after),
        cpu=functools.partial(_one_by_one, axis=axis + 1),
        default=functools.partial(_together, axis=axis + 1),
    )
    mixed = mixed.reshape(x.shape) * x.dtype.type(size**-0.5)
    return lax.reduce_precision(mixed, exponent_bits=8, mantissa_bits=7)


def multiplied(x: jax.Array, axis: int, factor: Any) -> jax.Array:
    """x with each ``size`` elements along ``axis`` multiplied by a (size, size) matrix.

    With ``matrix()`` it is the transform but for its bits, and with the transposed one the inverse.
    """
    rows = jnp.moveaxis(x, axis, -1)
    mixed = (rows.reshape(-1, len(factor)) @ factor).reshape(rows.shape)
    return jnp.moveaxis(mixed, -1, axis)


def _together(x: jax.Array, axis: int) -> jax.Array:
    """Butterflies of all elements along ``axis``, which compilers fuse."""
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    for half in halves(size):
        pairs = x.reshape(*before, -1, 2, half, *after)
        sign = jnp.asarray([1, -1], x.dtype).reshape(2, *(1 for _ in (half, *after)))
        x = (lax.rev(pairs, (axis + 1,)) + pairs * sign).reshape(x.shape)
    return x


def _one_by_one(x: jax.Array, axis: int) -> jax.Array:
    """The same sums in a loop, which XLA's compiler for CPUs does not fuse.

    It would compute each of ``size`` elements again for every element that is made of it. All
    iterations are alike if sums and differences go to the two halves (M. C. Pease, "An Adaptation
    of the Fast Fourier Transform for Parallel Processing", 1968).
    """
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]

    def step(_: Any, x: jax.Array) -> jax.Array:
        pairs = x.reshape(*before, size // 2, 2, *after)
        a, b = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
        return lax.concatenate([a + b, a - b], axis)

    return lax.fori_loop(0, len(halves(size)), step, x)


def flipped(x: jax.Array, axis: int, key: Key, rng: Rng = "hash") -> jax.Array:
    """x with a random sign for every position along ``axis``.

    Args:
      x: float array.
      axis: the contraction; one dimension.
      key: two uint32 words, the same for both operands of a product.
      rng: ``hash`` or ``threefry``.
    """
    # Bits of a vector, not of x: they are the same whatever else an operand has dimensions for.
    positions = jnp.zeros(x.shape[axis], x.dtype)
    is_negative = random_bits(key, positions, rng) >> 31 == 1
    signs = jnp.where(is_negative, -1, 1).astype(x.dtype)
    return x * jnp.expand_dims(signs, [d for d in range(x.ndim) if d != axis % x.ndim])
