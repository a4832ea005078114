"""Flax Linen: stacks of its layers."""

from __future__ import annotations

from typing import Any

import jax

from ..catalogue import (
    Case,
    mean_squared,
    model,
    normal,
    random_weights,
    sgd_case,
)


def _params(module: Any, *inputs: Any, **rngs: Any) -> Any:
    """Random parameters of a module."""
    keys = {"params": jax.random.key(0), **rngs}
    return random_weights(lambda: module.init(keys, *inputs))["params"]


def _encoder_block(linen: Any) -> Any:
    """A pre-norm block of Linen's own layers, for linen.scan."""

    class Block(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array, _: Any) -> Any:
            attention = linen.MultiHeadDotProductAttention(num_heads=4)
            x = x + attention(linen.LayerNorm()(x))
            h = linen.gelu(linen.Dense(128)(linen.LayerNorm()(x)))
            return x + linen.Dense(x.shape[-1])(h), None

    return Block


@model("flax.linen", "scanned encoder with remat")
def scanned_encoder() -> Case:
    """linen.scan over linen.remat."""
    from flax import linen

    layers = linen.scan(
        linen.remat(_encoder_block(linen), prevent_cse=False),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=3,
    )
    net, x = layers(), normal(4, 10, 32)
    params = _params(net, x, None)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_squared(net.apply({"params": params}, x, None)[0], y)

    return sgd_case(loss, params, x, normal(4, 10, 32, seed=1))
