"""Flax NNX: models built from its layers."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..catalogue import (
    Case,
    cross_entropy,
    integers,
    mean_squared,
    model,
    normal,
    random_weights,
    sgd,
    sgd_case,
)


def _split(make: Any, kind: Any = None) -> tuple[Any, Any, Any]:
    """A module's definition, its parameters with random weights, and the rest of its state."""
    from flax import nnx

    net = nnx.eval_shape(make)
    definition, params, rest = nnx.split(net, kind or nnx.Param, ...)
    return definition, random_weights(lambda: params), random_weights(lambda: rest)


def _cnn(nnx: Any) -> Any:
    """The network of the NNX MNIST tutorial."""

    class CNN(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.conv1 = nnx.Conv(1, 16, kernel_size=(3, 3), rngs=rngs)
            self.norm1 = nnx.BatchNorm(16, rngs=rngs)
            self.dropout = nnx.Dropout(rate=0.025, rngs=rngs)
            self.conv2 = nnx.Conv(16, 32, kernel_size=(3, 3), rngs=rngs)
            self.norm2 = nnx.BatchNorm(32, rngs=rngs)
            self.pool = functools.partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
            self.linear1 = nnx.Linear(32 * 7 * 7, 64, rngs=rngs)
            self.linear2 = nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            x = self.pool(nnx.relu(self.norm1(self.dropout(self.conv1(x)))))
            x = self.pool(nnx.relu(self.norm2(self.conv2(x))))
            return self.linear2(nnx.relu(self.linear1(x.reshape(x.shape[0], -1))))

    return CNN


@model("flax.nnx", "MNIST CNN with nnx.value_and_grad")
def cnn() -> Case:
    """The step is NNX's own: modules are differentiated and updated as objects."""
    from flax import nnx

    make = _cnn(nnx)
    definition, params, rest = _split(lambda: make(nnx.Rngs(0)))
    images, labels = normal(4, 28, 28, 1), integers(10, 4)

    def objective(net: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return cross_entropy(net(images), labels)

    def step(params: Any, rest: Any, images: jax.Array, labels: jax.Array) -> Any:
        net = nnx.merge(definition, params, rest)
        value, grads = nnx.value_and_grad(objective)(net, images, labels)
        _, params, rest = nnx.split(net, nnx.Param, ...)
        return sgd(params, grads), rest, value

    def loss(params: Any, rest: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return objective(nnx.merge(definition, params, rest), images, labels)

    args = (params, rest, images, labels)
    return Case(step, args, loss, args)


def _encoder(nnx: Any) -> Any:
    """Self-attention and a gated feed-forward layer."""

    class Encoder(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.embed = nnx.Embed(50, 32, rngs=rngs)
            self.norm1 = nnx.RMSNorm(32, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)
            self.norm2 = nnx.LayerNorm(32, rngs=rngs)
            self.up = nnx.LinearGeneral(32, (2, 64), rngs=rngs)
            self.down = nnx.Einsum("blf,fd->bld", (64, 32), (32,), rngs=rngs)

        def __call__(self, tokens: jax.Array) -> jax.Array:
            x = self.embed(tokens)
            x = x + self.attention(self.norm1(x))
            gate, value = jnp.moveaxis(self.up(self.norm2(x)), -2, 0)
            x = x + self.down(nnx.silu(gate) * value)
            return self.embed.attend(x)

    return Encoder


@model("flax.nnx", "attention encoder", runs=True)
def encoder() -> Case:
    """nnx.MultiHeadAttention, LinearGeneral, Einsum and Embed.attend."""
    from flax import nnx

    make = _encoder(nnx)
    definition, params, rest = _split(lambda: make(nnx.Rngs(0)))

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return cross_entropy(nnx.merge(definition, params, rest)(tokens), tokens)

    return sgd_case(loss, params, integers(50, 4, 10))


@model("flax.nnx", "bidirectional GRU")
def bidirectional() -> Case:
    """nnx.Bidirectional over nnx.RNN."""
    from flax import nnx

    def make() -> Any:
        rngs = nnx.Rngs(0)
        return nnx.Bidirectional(
            nnx.RNN(nnx.GRUCell(12, 24, rngs=rngs)),
            nnx.RNN(nnx.GRUCell(12, 24, rngs=rngs)),
            rngs=rngs,
        )

    definition, params, rest = _split(make)

    def loss(params: Any, rest: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        net = nnx.merge(definition, params, rest, copy=True)  # its counters advance in here
        return mean_squared(net(x), y)

    return sgd_case(loss, params, rest, normal(4, 10, 12), normal(4, 10, 48))


@model("flax.nnx", "LoRA fine-tuning")
def low_rank() -> Case:
    """Only the two thin factors are trained; the wide matrix is a parameter that stays."""
    from flax import nnx

    def make() -> Any:
        rngs = nnx.Rngs(0)
        first = nnx.LoRALinear(32, 64, lora_rank=4, rngs=rngs)
        return nnx.Sequential(first, nnx.relu, nnx.LoRALinear(64, 8, lora_rank=4, rngs=rngs))

    definition, lora, base = _split(make, nnx.LoRAParam)

    def loss(lora: Any, base: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_squared(nnx.merge(definition, lora, base)(x), y)

    return sgd_case(loss, lora, base, normal(16, 32), normal(16, 8), frozen=(1,))
