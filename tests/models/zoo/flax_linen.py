"""Flax Linen: the models of its examples, verbatim, and stacks of its layers."""

from __future__ import annotations

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


def _params(module: Any, *inputs: Any, **rngs: Any) -> Any:
    """Random parameters of a module."""
    keys = {"params": jax.random.key(0), **rngs}
    return random_weights(lambda: module.init(keys, *inputs))["params"]


@model("flax.linen", "ResNet-18 (example imagenet)")
def resnet() -> Case:
    """Batch statistics are averaged over two replicas, as the example has it."""
    from ..vendored.flax_examples import imagenet

    net = imagenet.ResNet18(num_classes=10, num_filters=8)
    images, labels = normal(2, 4, 32, 32, 3), integers(10, 2, 4)

    def init() -> Any:
        start = jax.vmap(net.init, (None, 0), None, axis_name="batch")
        return start(jax.random.key(0), images)

    def loss(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> Any:
        def replica(x: jax.Array, y: jax.Array) -> Any:
            variables = {"params": params, "batch_stats": stats}
            logits, new = net.apply(variables, x, mutable=["batch_stats"])
            return cross_entropy(logits, y), new["batch_stats"]

        values, new = jax.vmap(replica, out_axes=(0, None), axis_name="batch")(images, labels)
        return values.mean(), new

    weights = random_weights(init)
    return stateful_case(loss, weights["params"], weights["batch_stats"], images, labels)


@model("flax.linen", "translation transformer (example wmt)")
def translation() -> Case:
    """Encoder and decoder, cross attention, one shared embedding, dropout."""
    from ..vendored.flax_examples import wmt

    config = wmt.TransformerConfig(
        vocab_size=64,
        output_vocab_size=64,
        share_embeddings=True,
        logits_via_embedding=True,
        emb_dim=64,
        num_heads=4,
        num_layers=2,
        qkv_dim=64,
        mlp_dim=128,
        max_len=16,
    )
    net = wmt.Transformer(config)
    source, target = 1 + integers(63, 4, 16), 1 + integers(63, 4, 16, seed=1)
    params = _params(net, source, target, dropout=jax.random.key(1))

    def loss(params: Any, source: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
        logits = net.apply({"params": params}, source, target, rngs={"dropout": key})
        return cross_entropy(logits, target)

    return sgd_case(loss, params, source, target, jax.random.key(2))


@model("flax.linen", "bidirectional LSTM classifier (example sst2)")
def sentiment() -> Case:
    """Two scanned LSTMs and an attention that has keys only."""
    from ..vendored.flax_examples import sst2

    net = sst2.TextClassifier(
        embedding_size=24,
        hidden_size=32,
        vocab_size=50,
        output_size=1,
        dropout_rate=0.1,
        word_dropout_rate=0.0,
        deterministic=True,
    )
    tokens, lengths = integers(50, 4, 12), jnp.array([12, 8, 6, 10])
    params = _params(net, tokens, lengths)

    def loss(params: Any, tokens: jax.Array, lengths: jax.Array, y: jax.Array) -> jax.Array:
        return mean_squared(net.apply({"params": params}, tokens, lengths), y)

    return sgd_case(loss, params, tokens, lengths, normal(4, 1))


@model("flax.linen", "LSTM sequence to sequence (example seq2seq)")
def sequence_to_sequence() -> Case:
    """The encoder's last state starts the decoder."""
    from ..vendored.flax_examples import seq2seq

    # The decoder's LSTM has the width of its input, and takes over the encoder's state.
    net = seq2seq.Seq2seq(teacher_force=True, hidden_size=15, vocab_size=15)
    one_hot = jax.nn.one_hot
    source, target = one_hot(integers(15, 4, 8), 15), one_hot(integers(15, 4, 6), 15)
    key = jax.random.key(1)
    params = _params(net, source, target, lstm=key)

    def loss(params: Any, source: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
        logits, _ = net.apply({"params": params}, source, target, rngs={"lstm": key})
        return cross_entropy(logits, target[:, 1:].argmax(-1))

    return sgd_case(loss, params, source, target, key)


@model("flax.linen", "variational autoencoder (example vae)", runs=True)
def autoencoder() -> Case:
    """Dense encoder and decoder around a reparameterised sample."""
    import optax

    from ..vendored.flax_examples import vae

    net = vae.model(8)
    images = jax.nn.sigmoid(normal(8, 784))
    params = _params(net, images, jax.random.key(1))

    def loss(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        logits, mean, logvar = net.apply({"params": params}, x, key)
        kl = -0.5 * jnp.mean(1 + logvar - mean**2 - jnp.exp(logvar))
        return optax.sigmoid_binary_cross_entropy(logits, x).mean() + kl

    return sgd_case(loss, params, images, jax.random.key(2))


@model("flax.linen", "actor-critic (example ppo)")
def actor_critic() -> Case:
    """The Atari network with two heads."""
    from ..vendored.flax_examples import ppo

    net = ppo.ActorCritic(num_outputs=4)
    frames = 255 * jax.nn.sigmoid(normal(2, 84, 84, 4))
    params = _params(net, frames)

    def loss(params: Any, x: jax.Array, action: jax.Array, reward: jax.Array) -> jax.Array:
        logp, value = net.apply({"params": params}, x)
        return cross_entropy(logp, action) + 0.5 * mean_squared(value[:, 0], reward)

    return sgd_case(loss, params, frames, integers(4, 2), normal(2))


@model("flax.linen", "graph network (example ogbg_molpcba, jraph)")
def graph_network() -> Case:
    """Message passing with edge, node and global models."""
    import jraph

    from ..vendored.flax_examples import ogbg_molpcba

    net = ogbg_molpcba.GraphNet(
        latent_size=32, num_mlp_layers=2, message_passing_steps=2, output_globals_size=5
    )
    graphs = jraph.GraphsTuple(
        nodes=normal(16, 9),
        edges=normal(32, 3),
        senders=integers(16, 32),
        receivers=integers(16, 32, seed=1),
        globals=normal(2, 4),
        n_node=jnp.array([8, 8]),
        n_edge=jnp.array([16, 16]),
    )
    params = _params(net, graphs)

    def loss(params: Any, graphs: Any, y: jax.Array) -> jax.Array:
        return mean_squared(net.apply({"params": params}, graphs).globals, y)

    return sgd_case(loss, params, graphs, normal(2, 5))


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
