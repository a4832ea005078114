"""Programs that several benchmarks share: an MLP and a transformer, in plain JAX."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Params = Any
Step = Callable[..., Any]
LEARNING_RATE = 1e-3


def sgd_step(loss: Callable[..., Any], dot: Callable[..., Any] | None = None) -> Step:
    """One SGD step of ``loss(params, *batch)``; with ``dot`` also passed to the loss."""

    def step(params: Params, *batch: Any) -> tuple[Params, Any]:
        own = loss if dot is None else lambda p, *b: loss(p, *b, dot=dot)
        value, grads = jax.value_and_grad(own)(params, *batch)
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads), value

    return step


def _normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[-2]), jnp.float32)


def mlp_program(
    sizes: tuple[int, ...] = (512, 2048, 512, 2048, 512), tokens: int = 1024
) -> tuple[Callable[..., Any], Params, tuple[Any, ...]]:
    """An MLP on a regression: (loss, params, batch)."""
    rng = np.random.default_rng(0)
    params = [_normal(rng, a, b) for a, b in itertools.pairwise(sizes)]
    x = jnp.asarray(rng.standard_normal((tokens, sizes[0])), jnp.float32)
    y = jnp.asarray(rng.standard_normal((tokens, sizes[-1])), jnp.float32)

    def loss(params: Params, x: Any, y: Any, dot: Callable[..., Any] = jnp.matmul) -> Any:
        for i, w in enumerate(params):
            x = dot(x, w)
            if i + 1 < len(params):
                x = jax.nn.relu(x)
        return jnp.mean((x - y) ** 2)

    return loss, params, (x, y)


def _layer_norm(x: jax.Array) -> jax.Array:
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def block(
    p: Params,
    x: jax.Array,
    heads: int,
    dot: Callable[..., Any] = jnp.matmul,
    residual: bool = True,
) -> jax.Array:
    """A pre-norm transformer block on (batch, time, width)."""
    b, t, d = x.shape
    add = jnp.add if residual else lambda _, new: new
    with jax.named_scope("attn"):
        qkv = dot(_layer_norm(x), p["qkv"]).reshape(b, t, 3, heads, d // heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(d // heads)
        scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -1e9)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        x = add(x, dot(mixed.reshape(b, t, d), p["out"]))
    with jax.named_scope("mlp"):
        return add(x, dot(jax.nn.gelu(dot(_layer_norm(x), p["up"])), p["down"]))


def transformer_program(
    layers: int = 2,
    width: int = 512,
    heads: int = 8,
    hidden: int = 2048,
    batch: int = 8,
    time: int = 128,
    scanned: bool = False,
    residual: bool = True,
) -> tuple[Callable[..., Any], Params, tuple[Any, ...]]:
    """Transformer blocks on a regression: (loss, params, batch).

    XLA:CPU fuses the additions of all blocks before into every reader of the residual stream, so
    compiling takes time as layers squared; without ``residual`` it is as layers.
    """
    rng = np.random.default_rng(0)
    shapes = {
        "qkv": (width, 3 * width),
        "out": (width, width),
        "up": (width, hidden),
        "down": (hidden, width),
    }
    params = [{k: _normal(rng, *s) for k, s in shapes.items()} for _ in range(layers)]
    x = jnp.asarray(rng.standard_normal((batch, time, width)), jnp.float32)
    y = jnp.asarray(rng.standard_normal((batch, time, width)), jnp.float32)

    def loss(params: Params, x: Any, y: Any, dot: Callable[..., Any] = jnp.matmul) -> Any:
        if scanned:
            x = lax.scan(lambda c, p: (block(p, c, heads, dot, residual), None), x, params)[0]
        else:
            for i, p in enumerate(params):
                with jax.named_scope(f"block{i}"):
                    x = block(p, x, heads, dot, residual)
        return jnp.mean((x - y) ** 2)

    if scanned:
        params = jax.tree.map(lambda *a: jnp.stack(a), *params)
    return loss, params, (x, y)
