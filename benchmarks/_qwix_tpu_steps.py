"""The programs of ``_tpu_programs`` as Flax Linen modules that Qwix quantizes: what it has today.

Its default noise, which rows share, is cheaper than noise for every element, and with it Qwix is
compared; to FP8 it rounds to nearest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import qwix

import _tpu_programs as programs

BF16 = jnp.bfloat16


class Linear(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Qwix tells weights by their shape: a square x must not have it.
        return dense(self.hidden, "up")(x[None])[0]


class FeedForward(nn.Module):
    width: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return dense(self.width, "down")(nn.gelu(dense(self.hidden, "up")(x)))


class Block(nn.Module):
    width: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def norm(x: jax.Array, name: str) -> jax.Array:
            gain = self.param(name, nn.initializers.ones, (self.width,), jnp.float32)
            return programs.norm(x, gain)

        qkv = dense(3 * self.width, "qkv")(norm(x, "norm1"))
        x = x + dense(self.width, "out")(programs.attention(qkv))
        return x + FeedForward(self.width, self.hidden)(norm(x, "norm2"))


def dense(size: int, name: str) -> nn.Dense:
    return nn.Dense(size, use_bias=False, dtype=BF16, param_dtype=BF16, name=name)


def quantized(module: nn.Module, dtype: str) -> nn.Module:
    rule = qwix.QtRule(
        module_path=".*(qkv|out|up|down)",  # not the products inside of the attention's kernels
        op_names=("dot_general",),
        weight_qtype=dtype,
        act_qtype=dtype,
        bwd_qtype=dtype,
        bwd_stochastic_rounding="uniform" if dtype == "int8" else None,
    )
    return qwix.quantize_model(module, qwix.QtProvider([rule]))


def _step(module: nn.Module, x: Any, cotangent: Any, dtype: str, finish: Callable[..., Any]) -> Any:
    """A step of (params, x, cotangent, key), and its arguments."""
    rewritten = quantized(module, dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(module.init, key, x)["params"]

    def step(params: Any, x: Any, cotangent: Any, key: Any) -> Any:
        def fun(params: Any, x: Any) -> Any:
            return rewritten.apply({"params": params}, x, rngs={"stochastic_rounding": key})

        return finish(fun)(params, x, cotangent)

    return step, (params, x, cotangent, key)


def linear(tokens: int, width: int, hidden: int, dtype: str) -> Any:
    x, out = programs.shape(tokens, width), programs.shape(tokens, hidden)
    return _step(Linear(hidden), x, out, dtype, programs.with_gradients)


def mlp(dtype: str, tokens: int = 8192, width: int = 4096, hidden: int = 16384) -> Any:
    x = programs.shape(tokens, width)
    return _step(FeedForward(width, hidden), x, x, dtype, programs.with_gradients)


def block(dtype: str, tokens: int = 8192, width: int = 4096, hidden: int = 16384) -> Any:
    x = programs.shape(tokens, width)
    return _step(Block(width, hidden), x, x, dtype, programs.sgd)


PROGRAMS: dict[str, Callable[[str], Any]] = {
    "linear 4096x4096x4096": functools.partial(linear, 4096, 4096, 4096),
    "linear 8192x4096x16384": functools.partial(linear, 8192, 4096, 16384),
    "linear 16384x8192x28672": functools.partial(linear, 16384, 8192, 28672),
    "mlp": mlp,
    "block": block,
}
