"""Writes parameters back: arithmetic in float32, then one stochastic rounding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from srjit.choices import Rng
from srjit.numerics.encode import round_with
from srjit.numerics.formats import get_storage
from srjit.numerics.random_bits import Key
from srjit.numerics.rounding import working_dtype
from srjit.planning.provenance import WRITE_BACK
from srjit.planning.sums import SCATTERED


def exactly(eqn: Any, values: Sequence[jax.Array]) -> jax.Array:
    """Returns an addition, a product or a cast of values widened to float32."""
    wide = [lax.convert_element_type(v, working_dtype(jnp.result_type(v))) for v in values]
    if eqn.primitive.name in SCATTERED:  # bound as it is, it adds in the narrow dtype
        how = {k: v for k, v in eqn.params.items() if not k.startswith("update_")}
        return lax.scatter_add(wide[0], values[1], wide[2], **how)
    if eqn.primitive.name == "convert_element_type":
        return wide[0]
    return eqn.primitive.bind(*wide, **eqn.params)


def round_write_back(dtype: str, rng: Rng, key: Key, x: jax.Array) -> jax.Array:
    """``x`` in ``dtype``, stochastically; its derivative is that of a cast."""
    return _rounder(dtype, rng)(x, key)


@functools.cache
def _rounder(dtype: str, rng: Rng) -> Callable[[jax.Array, Key], jax.Array]:
    storage = get_storage(dtype)

    @jax.custom_jvp
    def rounded(x: jax.Array, key: Key) -> jax.Array:
        # What a cast makes infinite stays visible: scaled losses look for it.
        nearest = x.astype(storage.dtype)
        return jnp.where(jnp.isinf(nearest), nearest, round_with(key, x, storage, rng))

    @rounded.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return rounded(*primals), tangents[0].astype(storage.dtype)

    def named(x: jax.Array, key: Key) -> jax.Array:
        return rounded(x, key)

    named.__name__ = named.__qualname__ = f"{WRITE_BACK}{dtype}"
    return jax.jit(named)
