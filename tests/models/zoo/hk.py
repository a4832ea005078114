"""Haiku: hk.nets, and models of its layers."""

from __future__ import annotations

from collections.abc import Callable
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
    sgd_case,
    stateful_case,
)


def _case(
    forward: Callable[..., Any], objective: Callable[..., Any], inputs: jax.Array, target: Any
) -> Case:
    """A step on ``objective(forward(inputs), target)``, without state."""
    import haiku

    init, apply = haiku.without_apply_rng(haiku.transform(forward))
    params = random_weights(init, jax.random.key(0), inputs)

    def loss(params: Any, x: jax.Array, y: Any) -> jax.Array:
        return objective(apply(params, x), y)

    return sgd_case(loss, params, inputs, target)


def _stateful(forward: Callable[..., Any], inputs: jax.Array, target: Any) -> Case:
    """A classification step with the state that Haiku keeps."""
    import haiku

    init, apply = haiku.without_apply_rng(haiku.transform_with_state(forward))
    params, state = random_weights(init, jax.random.key(0), inputs)

    def loss(params: Any, state: Any, x: jax.Array, y: Any) -> Any:
        logits, state = apply(params, state, x)
        return cross_entropy(logits, y), state

    return stateful_case(loss, params, state, inputs, target)


@model("haiku", "hk.nets.MLP", runs=True)
def mlp() -> Case:
    """Three layers."""
    import haiku

    def forward(x: jax.Array) -> jax.Array:
        return haiku.nets.MLP([128, 64, 10])(x)

    return _case(forward, cross_entropy, normal(64, 64), integers(10, 64))


@model("haiku", "hk.nets.ResNet18", slow=True)
def resnet() -> Case:
    """At its full width."""
    import haiku

    def forward(x: jax.Array) -> jax.Array:
        return haiku.nets.ResNet18(10)(x, is_training=True)

    return _stateful(forward, normal(2, 32, 32, 3), integers(10, 2))


@model("haiku", "hk.nets.ResNet, version 2 with bottlenecks")
def preactivated_resnet() -> Case:
    """Normalisation before convolution."""
    import haiku

    def forward(x: jax.Array) -> jax.Array:
        channels = (16, 32, 64, 128)
        net = haiku.nets.ResNet((1, 1, 1, 1), 10, resnet_v2=True, channels_per_group=channels)
        return net(x, is_training=True)

    return _stateful(forward, normal(4, 32, 32, 3), integers(10, 4))


@model("haiku", "hk.nets.MobileNetV1")
def mobilenet() -> Case:
    """Depthwise and pointwise convolutions in turn."""
    import haiku

    def forward(x: jax.Array) -> jax.Array:
        net = haiku.nets.MobileNetV1(
            strides=(1, 2, 1, 2), channels=(16, 32, 32, 64), num_classes=10
        )
        return net(x, is_training=True)

    return _stateful(forward, normal(4, 32, 32, 3), integers(10, 4))


@model("haiku", "LSTM with hk.dynamic_unroll")
def lstm() -> Case:
    """Two LSTMs in hk.DeepRNN under a scan."""
    import haiku

    def forward(tokens: jax.Array) -> jax.Array:
        x = haiku.Embed(30, 16)(tokens)
        core = haiku.DeepRNN([haiku.LSTM(32), jax.nn.relu, haiku.LSTM(24), haiku.Linear(30)])
        outputs, _ = haiku.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
        return outputs

    tokens = integers(30, 12, 8)
    return _case(forward, cross_entropy, tokens, tokens)


@model("haiku", "convolutional LSTM")
def convolutional_lstm() -> Case:
    """hk.Conv2DLSTM under a scan: convolutions that recur."""
    import haiku

    def forward(frames: jax.Array) -> jax.Array:
        core = haiku.Conv2DLSTM((8, 8), output_channels=6, kernel_shape=3)
        outputs, _ = haiku.dynamic_unroll(core, frames, core.initial_state(frames.shape[1]))
        return outputs

    return _case(forward, mean_squared, normal(4, 2, 8, 8, 3), normal(4, 2, 8, 8, 6))


@model("haiku", "transformer of hk.MultiHeadAttention")
def transformer() -> Case:
    """The blocks of Haiku's transformer example, recomputed by hk.remat."""
    import haiku

    def block(x: jax.Array) -> jax.Array:
        normed = haiku.LayerNorm(-1, True, True)(x)
        start = haiku.initializers.VarianceScaling(1.0)
        attention = haiku.MultiHeadAttention(4, 8, w_init=start)
        mask = jnp.tril(jnp.ones((1, 1, x.shape[1], x.shape[1])))
        x = x + attention(normed, normed, normed, mask=mask)
        normed = haiku.LayerNorm(-1, True, True)(x)
        return x + haiku.nets.MLP([64, 32], activation=jax.nn.gelu)(normed)

    def forward(tokens: jax.Array) -> jax.Array:
        x = haiku.Embed(40, 32)(tokens)
        for _ in range(2):
            x = haiku.remat(block)(x)
        return haiku.Linear(40)(x)

    tokens = integers(40, 4, 10)
    return _case(forward, cross_entropy, tokens, tokens)


@model("haiku", "vector-quantised autoencoder")
def quantised_autoencoder() -> Case:
    """hk.nets.VectorQuantizer between a convolutional encoder and decoder."""
    import haiku

    def forward(x: jax.Array) -> jax.Array:
        h = jax.nn.relu(haiku.Conv2D(16, 4, stride=2)(x))
        h = haiku.Conv2D(8, 3)(h)
        found = haiku.nets.VectorQuantizer(8, 32, commitment_cost=0.25)(h, is_training=True)
        h = jax.nn.relu(haiku.Conv2D(16, 3)(found["quantize"]))
        return found["loss"], haiku.Conv2DTranspose(3, 4, stride=2)(h)

    def objective(outputs: Any, y: jax.Array) -> jax.Array:
        commitment, images = outputs
        return mean_squared(images, y) + commitment

    images = normal(4, 16, 16, 3)
    return _case(forward, objective, images, images)
