"""Plain JAX: jax.example_libraries.stax, and models written out by hand."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.example_libraries import stax

from ..catalogue import (
    Case,
    cross_entropy,
    integers,
    mean_squared,
    model,
    normal,
    optax_case,
    random_weights,
    sgd,
    sgd_case,
)


def _stax_case(net: Any, inputs: jax.Array, classes: int = 10) -> Case:
    """A classifier from stax, with its own initialisers."""
    init, apply = net
    params = random_weights(lambda key: init(key, inputs.shape)[1], jax.random.key(0))

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(apply(params, x), y)

    return sgd_case(loss, params, inputs, integers(classes, inputs.shape[0]))


@model("jax", "stax MLP", runs=True)
def stax_mlp() -> Case:
    """The network of JAX's MNIST example, narrower."""
    layers = [stax.Dense(256), stax.Relu, stax.Dense(128), stax.Relu, stax.Dense(10)]
    return _stax_case(stax.serial(*layers), normal(64, 784))


def _residual(channels: int, strides: tuple[int, int]) -> Any:
    """A bottleneck of JAX's ResNet example, which projects its shortcut."""
    main = stax.serial(
        stax.Conv(channels, (1, 1), strides),
        stax.BatchNorm(),
        stax.Relu,
        stax.Conv(channels, (3, 3), padding="SAME"),
        stax.BatchNorm(),
        stax.Relu,
        stax.Conv(4 * channels, (1, 1)),
        stax.BatchNorm(),
    )
    shortcut = stax.serial(stax.Conv(4 * channels, (1, 1), strides), stax.BatchNorm())
    both = stax.serial(stax.FanOut(2), stax.parallel(main, shortcut), stax.FanInSum, stax.Relu)
    return both


@model("jax", "stax ResNet")
def stax_resnet() -> Case:
    """Bottlenecks with strides and projections."""
    net = stax.serial(
        stax.Conv(16, (7, 7), (2, 2), "SAME"),
        stax.BatchNorm(),
        stax.Relu,
        stax.MaxPool((3, 3), strides=(2, 2)),
        _residual(8, (1, 1)),
        _residual(16, (2, 2)),
        stax.Flatten,
        stax.Dense(10),
    )
    return _stax_case(net, normal(4, 32, 32, 3))


@model("jax", "stax autoencoder")
def stax_autoencoder() -> Case:
    """A convolutional encoder and a transposed-convolution decoder."""
    init, apply = stax.serial(
        stax.Conv(8, (3, 3), (2, 2), "SAME"),
        stax.Gelu,
        stax.Conv(16, (3, 3), (2, 2), "SAME"),
        stax.Gelu,
        stax.ConvTranspose(8, (3, 3), (2, 2), "SAME"),
        stax.Gelu,
        stax.ConvTranspose(1, (3, 3), (2, 2), "SAME"),
    )
    images = normal(4, 16, 16, 1)
    params = random_weights(lambda key: init(key, images.shape)[1], jax.random.key(0))
    return sgd_case(lambda params, x: mean_squared(apply(params, x), x), params, images)


# ---------------------------------------------------------------------------------------------
# A decoder-only transformer: layers scanned, each recomputed, the embedding tied to the head


def _weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """Normal weights, scaled by the length of the sums they enter."""
    return {
        name: normal(*shape, seed=seed) / math.sqrt(shape[-2])
        for seed, (name, shape) in enumerate(shapes.items())
    }


def _norm(x: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def _attention(layer: dict[str, jax.Array], x: jax.Array, heads: int) -> jax.Array:
    batch, length, width = x.shape
    qkv = (x @ layer["qkv"]).reshape(batch, length, 3, heads, width // heads)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(width // heads)
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
    return mixed.reshape(batch, length, width) @ layer["out"]


def _block(x: jax.Array, layer: dict[str, jax.Array], heads: int = 4) -> tuple[jax.Array, None]:
    x = x + _attention(layer, _norm(x), heads)
    return x + jax.nn.gelu(_norm(x) @ layer["up"]) @ layer["down"], None


def _transformer(layers: int, width: int, vocabulary: int) -> dict[str, Any]:
    shapes = {
        "qkv": (layers, width, 3 * width),
        "out": (layers, width, width),
        "up": (layers, width, 4 * width),
        "down": (layers, 4 * width, width),
    }
    table = _weights({"embed": (vocabulary, width)})
    return {"layers": _weights(shapes), **table}


def _language_loss(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    x = params["embed"][tokens[:, :-1]]
    x, _ = lax.scan(jax.checkpoint(_block), x, params["layers"])
    return cross_entropy(_norm(x) @ params["embed"].T, tokens[:, 1:])


@model("jax", "scanned transformer with remat", runs=True)
def scanned_transformer() -> Case:
    """Written by hand in plain JAX."""
    return sgd_case(_language_loss, _transformer(4, 64, 128), integers(128, 4, 33))


@model("jax", "unrolled transformer with remat")
def unrolled_transformer() -> Case:
    """Each layer is a checkpoint of its own; what attention gives is saved, by name."""
    policy = jax.checkpoint_policies.save_only_these_names("attended")

    def block(x: jax.Array, layer: dict[str, jax.Array]) -> jax.Array:
        x = x + checkpoint_name(_attention(layer, _norm(x), 4), "attended")
        return x + jax.nn.gelu(_norm(x) @ layer["up"]) @ layer["down"]

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["embed"][tokens[:, :-1]]
        for number in range(3):
            layer = jax.tree.map(lambda leaf, number=number: leaf[number], params["layers"])
            x = jax.checkpoint(block, policy=policy if number else None)(x, layer)
        return cross_entropy(_norm(x) @ params["embed"].T, tokens[:, 1:])

    return sgd_case(loss, _transformer(3, 32, 64), integers(64, 4, 17))


@model("jax", "transformer with gradient accumulation")
def accumulated_transformer() -> Case:
    """Gradients of four microbatches are summed in a scan, outside the differentiation."""
    params, tokens = _transformer(2, 32, 64), integers(64, 4, 2, 17)

    def step(params: Any, tokens: jax.Array) -> Any:
        def one(total: Any, micro: jax.Array) -> Any:
            value, grads = jax.value_and_grad(_language_loss)(params, micro)
            return jax.tree.map(jnp.add, total, grads), value

        zeros = jax.tree.map(jnp.zeros_like, params)
        grads, values = lax.scan(one, zeros, tokens)
        return sgd(params, grads), values.mean()

    return Case(step, (params, tokens), _language_loss, (params, tokens[0]), repeats=4)


@model("jax", "bfloat16 transformer with float32 weights, Adam")
def mixed_precision_transformer() -> Case:
    """The weights are cast where they are used."""
    import optax

    params, tokens = _transformer(2, 32, 64), integers(64, 4, 17)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        return _language_loss(half, tokens)

    return optax_case(loss, optax.adam(1e-3), params, tokens)


# ---------------------------------------------------------------------------------------------
# Mixture of experts


def _experts(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Each row goes to its best expert; rows are sorted by expert and multiplied in groups."""
    gates = jax.nn.softmax(x @ params["router"])
    chosen = jnp.argmax(gates, axis=-1)
    order = jnp.argsort(chosen)
    groups = jnp.bincount(chosen, length=gates.shape[-1])
    hidden = jax.nn.silu(lax.ragged_dot(x[order], params["up"], groups))
    mixed = lax.ragged_dot(hidden, params["down"], groups)[jnp.argsort(order)]
    return mixed * jnp.take_along_axis(gates, chosen[:, None], axis=-1)


@model("jax", "mixture of experts by ragged_dot")
def mixture_of_experts() -> Case:
    """A router, two grouped products, a head."""
    shapes = {
        "router": (32, 4),
        "up": (4, 32, 64),
        "down": (4, 64, 32),
        "head": (32, 10),
    }

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy((x + _experts(params, x)) @ params["head"], y)

    weights = _weights(shapes)
    return sgd_case(loss, weights, normal(64, 32), integers(10, 64))


@model("jax", "switch over two branches")
def switched() -> Case:
    """A layer that takes one of two paths; both hold products."""
    shapes = {"in": (16, 32), "a": (32, 32), "b": (32, 32), "out": (32, 4)}

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h = jax.nn.relu(x @ params["in"])
        paths = [lambda h: jnp.tanh(h @ params["a"]), lambda h: h + jax.nn.relu(h @ params["b"])]
        h = lax.switch((x.sum() > 0).astype(jnp.int32), paths, h)
        return mean_squared(h @ params["out"], y)

    return sgd_case(loss, _weights(shapes), normal(32, 16), normal(32, 4))
