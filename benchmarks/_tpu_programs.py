"""The programs of tpu_cycles.py, written as users write them: none knows of srjit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention

Program = tuple[Callable[..., Any], tuple[Any, ...]]
BF16 = jnp.bfloat16
HEADS, SEQUENCE = 32, 2048


def shape(*dims: int, dtype: Any = BF16) -> Any:
    return jax.ShapeDtypeStruct(dims, dtype)


def with_gradients(fun: Callable[..., Any]) -> Callable[..., Any]:
    """``(params, x, cotangent) -> (value, gradients of both)``."""

    def step(params: Any, x: Any, cotangent: Any) -> Any:
        value, pullback = jax.vjp(fun, params, x)
        return value, pullback(cotangent)

    return step


def sgd(fun: Callable[..., Any]) -> Callable[..., Any]:
    """``(params, x, cotangent) -> (new params, gradient of x)``."""

    def step(params: Any, x: Any, cotangent: Any) -> Any:
        _, pullback = jax.vjp(fun, params, x)
        grads, dx = pullback(cotangent)
        new = jax.tree.map(
            lambda p, g: (p - 1e-3 * g.astype(jnp.float32)).astype(p.dtype), params, grads
        )
        return new, dx

    return step


def linear(tokens: int, width: int, hidden: int) -> Program:
    args = shape(width, hidden), shape(tokens, width), shape(tokens, hidden)
    return with_gradients(lambda w, x: x @ w), args


def _feed_forward(params: Any, x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x @ params["up"]) @ params["down"]


def mlp(tokens: int = 8192, width: int = 4096, hidden: int = 16384) -> Program:
    params = {"up": shape(width, hidden), "down": shape(hidden, width)}
    x = shape(tokens, width)
    return with_gradients(_feed_forward), (params, x, x)


def norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-6)
    return (y * gain).astype(x.dtype)


def attention(qkv: jax.Array) -> jax.Array:
    """Causal attention of tokens by 3 * width to tokens by width, in JAX's own kernels."""
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    head = width // HEADS
    batch = tokens // SEQUENCE
    qkv = qkv.reshape(batch, SEQUENCE, 3, HEADS, head).transpose(2, 0, 3, 1, 4)
    sizes = BlockSizes(**dict.fromkeys(BlockSizes.get_default(1, 1, 1, 1, 1).__dict__, 512))
    sizes = BlockSizes(**{**sizes.__dict__, "block_b": 1})
    out = flash_attention(*qkv, causal=True, sm_scale=head**-0.5, block_sizes=sizes)
    return out.transpose(0, 2, 1, 3).reshape(tokens, width)


def _block(params: Any, x: jax.Array) -> jax.Array:
    x = x + attention(norm(x, params["norm1"]) @ params["qkv"]) @ params["out"]
    return x + _feed_forward(params, norm(x, params["norm2"]))


def block(tokens: int = 8192, width: int = 4096, hidden: int = 16384) -> Program:
    """One SGD step of a transformer block."""
    params = {
        "qkv": shape(width, 3 * width), "out": shape(width, width),
        "up": shape(width, hidden), "down": shape(hidden, width),
        "norm1": shape(width, dtype=jnp.float32), "norm2": shape(width, dtype=jnp.float32),
    }  # fmt: skip

    x = shape(tokens, width)
    return sgd(_block), (params, x, x)


def _experts(params: Any, x: jax.Array, sizes: jax.Array) -> jax.Array:
    return lax.ragged_dot(
        jax.nn.gelu(lax.ragged_dot(x, params["up"], sizes)), params["down"], sizes
    )


def moe(tokens: int = 8192, width: int = 2048, hidden: int = 4096, experts: int = 8) -> Program:
    """A layer of experts, the tokens sorted by expert."""
    params = {"up": shape(experts, width, hidden), "down": shape(experts, hidden, width)}
    x = shape(tokens, width)

    def step(params: Any, x: jax.Array, sizes: jax.Array, cotangent: jax.Array) -> Any:
        value, pullback = jax.vjp(functools.partial(_experts, sizes=sizes), params, x)
        return value, pullback(cotangent)

    return step, (params, x, shape(experts, dtype=jnp.int32), x)


PROGRAMS: dict[str, Callable[[], Program]] = {
    "linear 4096x4096x4096": lambda: linear(4096, 4096, 4096),
    "linear 8192x4096x16384": lambda: linear(8192, 4096, 16384),
    "linear 16384x8192x28672": lambda: linear(16384, 8192, 28672),
    "mlp": mlp,
    "block": block,
    "moe": moe,
}
