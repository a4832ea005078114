"""Equinox: its own layers, the vision models of equimo, the flows of flowjax."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..catalogue import (
    Case,
    cross_entropy,
    integers,
    mean_squared,
    model,
    normal,
    optax_case,
    random_weights,
    sgd_case,
    stateful_case,
)


def _made(make: Any) -> Any:
    """What ``make(key)`` gives, with random arrays of the same shapes."""
    import equinox as eqx

    made = eqx.filter_eval_shape(make, jax.random.key(0))
    shapes, rest = eqx.partition(made, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    return eqx.combine(random_weights(lambda: shapes), rest)


def _parts(make: Any) -> tuple[Any, Any]:
    """A model's random weights, and all else of it."""
    import equinox as eqx

    return eqx.partition(_made(make), eqx.is_inexact_array)


@model("equinox", "MLP", runs=True)
def mlp() -> Case:
    """eqx.nn.MLP, mapped over the batch: the weight comes first in its products."""
    import equinox as eqx

    params, rest = _parts(lambda key: eqx.nn.MLP(64, 10, 128, 3, key=key))

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(jax.vmap(eqx.combine(params, rest))(x), y)

    return sgd_case(loss, params, normal(64, 64), integers(10, 64))


@model("equinox", "MLP with eqx.filter_value_and_grad")
def filtered_mlp() -> Case:
    """The step is Equinox's own: the whole model is differentiated and updated."""
    import equinox as eqx

    params, rest = _parts(lambda key: eqx.nn.MLP(16, 4, 32, 2, use_bias=False, key=key))
    batch = (normal(32, 16), normal(32, 4))

    def objective(net: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_squared(jax.vmap(net)(x), y)

    def step(params: Any, x: jax.Array, y: jax.Array) -> Any:
        net = eqx.combine(params, rest)
        value, grads = eqx.filter_value_and_grad(objective)(net, x, y)
        updates = jax.tree.map(lambda g: -0.01 * g, grads)
        return eqx.filter(eqx.apply_updates(net, updates), eqx.is_array), value

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return objective(eqx.combine(params, rest), x, y)

    args = (params, *batch)
    return Case(step, args, loss, args)


def _recurrent(eqx: Any, cell: Any) -> Any:
    """The classifier of Equinox's RNN example."""

    class Classifier(eqx.Module):
        cell: Any
        head: Any

        def __init__(self, key: jax.Array) -> None:
            first, second = jax.random.split(key)
            self.cell = cell(8, 32, key=first)
            self.head = eqx.nn.Linear(32, 2, key=second)

        def __call__(self, xs: jax.Array) -> jax.Array:
            zeros = jnp.zeros((self.cell.hidden_size,))
            start = (zeros, zeros) if cell is eqx.nn.LSTMCell else zeros
            state, _ = lax.scan(lambda state, x: (self.cell(x, state), None), start, xs)
            return self.head(state[0] if isinstance(state, tuple) else state)

    return Classifier


def _recurrent_case(kind: str) -> Case:
    import equinox as eqx

    params, rest = _parts(_recurrent(eqx, getattr(eqx.nn, kind)))

    def loss(params: Any, xs: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(jax.vmap(eqx.combine(params, rest))(xs), y)

    return sgd_case(loss, params, normal(8, 12, 8), integers(2, 8))


@model("equinox", "GRU classifier")
def gru() -> Case:
    """eqx.nn.GRUCell under lax.scan."""
    return _recurrent_case("GRUCell")


@model("equinox", "LSTM classifier")
def lstm() -> Case:
    """eqx.nn.LSTMCell under lax.scan."""
    return _recurrent_case("LSTMCell")


@model("equinox", "CNN with batch normalisation")
def cnn() -> Case:
    """eqx.nn.Sequential of convolutions, with the state that batch normalisation keeps."""
    import equinox as eqx

    def make(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        layers = [
            eqx.nn.Conv2d(3, 16, 3, padding=1, key=keys[0]),
            eqx.nn.BatchNorm(16, "batch", mode="batch"),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(16, 32, 3, stride=2, padding=1, key=keys[1]),
            eqx.nn.BatchNorm(32, "batch", mode="batch"),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.AdaptiveAvgPool2d(1),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(32, 10, key=keys[2]),
        ]
        return eqx.nn.Sequential(layers)

    net, state = _made(eqx.nn.make_with_state(make))
    params, rest = eqx.partition(net, eqx.is_inexact_array)

    def loss(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        net = eqx.combine(params, rest)
        batched = jax.vmap(net, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        logits, state = batched(x, state)
        return cross_entropy(logits, y), state

    return stateful_case(loss, params, state, normal(4, 3, 16, 16), integers(10, 4))


def _attentive(eqx: Any) -> Any:
    """A causal block with rotary positions."""

    class Block(eqx.Module):
        embed: Any
        attention: Any
        rotary: Any
        norm: Any
        mlp: Any
        head: Any

        def __init__(self, key: jax.Array) -> None:
            keys = jax.random.split(key, 4)
            self.embed = eqx.nn.Embedding(40, 32, key=keys[0])
            self.attention = eqx.nn.MultiheadAttention(4, 32, key=keys[1])
            self.rotary = eqx.nn.RotaryPositionalEmbedding(8)
            self.norm = eqx.nn.RMSNorm(32)
            self.mlp = eqx.nn.MLP(32, 32, 64, 1, activation=jax.nn.gelu, key=keys[2])
            self.head = eqx.nn.Linear(32, 40, key=keys[3])

        def _rotate(self, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
            rotate = jax.vmap(self.rotary, in_axes=1, out_axes=1)
            return rotate(q), rotate(k), v

        def __call__(self, tokens: jax.Array) -> jax.Array:
            x = jax.vmap(self.embed)(tokens)
            mask = jnp.tril(jnp.ones((len(tokens), len(tokens)), bool))
            h = jax.vmap(self.norm)(x)
            x = x + self.attention(h, h, h, mask=mask, process_heads=self._rotate)
            return jax.vmap(self.head)(x + jax.vmap(self.mlp)(x))

    return Block


@model("equinox", "attention with rotary positions, Adam")
def attention() -> Case:
    """eqx.nn.MultiheadAttention, mapped over tokens and over the batch."""
    import equinox as eqx
    import optax

    params, rest = _parts(_attentive(eqx))

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return cross_entropy(jax.vmap(eqx.combine(params, rest))(tokens), tokens)

    return optax_case(loss, optax.adam(1e-3), params, integers(40, 4, 10))


def _equimo() -> Any:
    """The module of equimo that holds its vision models; it moved between versions."""
    modern = importlib.util.find_spec("equimo.vision") is not None
    return importlib.import_module("equimo.vision.models" if modern else "equimo.models")


def _vision_case(make: Any, size: int) -> Case:
    """A classifier from equimo, mapped over images."""
    import equinox as eqx

    params, rest = _parts(make)

    def loss(params: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        net = eqx.combine(params, rest)
        logits = jax.vmap(net)(images, jax.random.split(key, len(images)))
        return cross_entropy(logits, labels)

    images = normal(4, 3, size, size)
    return sgd_case(loss, params, images, integers(10, 4), jax.random.key(1))


@model("equimo", "vision transformer")
def vision_transformer() -> Case:
    """Patches, a class token, register tokens."""
    models = _equimo()
    return _vision_case(
        lambda key: models.VisionTransformer(
            img_size=16,
            in_channels=3,
            dim=32,
            patch_size=4,
            num_heads=4,
            depths=[2],
            num_classes=10,
            key=key,
        ),
        size=16,
    )


@model("equimo", "ConvNeXt")
def convnext() -> Case:
    """Depthwise 7×7 convolutions, which batching turns into grouped ones."""
    models = _equimo()
    return _vision_case(
        lambda key: models.ConvNeXt(
            3, depths=[1, 1, 1, 1], dims=[8, 16, 24, 32], num_classes=10, key=key
        ),
        size=32,
    )


@model("equimo", "state-space vision model (Vssd)", slow=True)
def state_space() -> Case:
    """Mamba-2 mixers without a causal order, then attention."""
    models = _equimo()
    return _vision_case(
        lambda key: models.Vssd(
            32,
            3,
            dim=16,
            patch_size=4,
            depths=[1, 1],
            num_heads=[2, 4],
            attentions_layers=("mamba2mixer", "attention"),
            num_classes=10,
            key=key,
        ),
        size=32,
    )


@model("flowjax", "masked autoregressive flow")
def autoregressive_flow() -> Case:
    """A normalising flow of masked layers; the weights pass through masks and a scan."""
    import equinox as eqx
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow
    from paramax import NonTrainable, unwrap

    def make(key: jax.Array) -> Any:
        base = Normal(jnp.zeros(4))
        return masked_autoregressive_flow(key, base_dist=base, flow_layers=2, nn_width=16)

    params, rest = eqx.partition(
        _made(make), eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, NonTrainable)
    )

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return -unwrap(eqx.combine(params, rest)).log_prob(x).mean()

    return sgd_case(loss, params, normal(32, 4))
