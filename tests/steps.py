"""Small functions that several tests decorate."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

KEY = jax.random.key(3)
W = jax.random.normal(jax.random.key(1), (16, 16))
X = jax.random.normal(jax.random.key(2), (4, 16))


def loss(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum((x @ w) ** 2)


def step(w: jax.Array, x: jax.Array) -> jax.Array:
    """Draws noise: its weight gradient is rounded stochastically."""
    return w - 0.01 * jax.grad(loss)(w, x)


def same(a: Any, b: Any) -> bool:
    """Whether two pytrees are equal bit for bit."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(bool(jnp.array_equal(p, q, equal_nan=True)) for p, q in leaves)
