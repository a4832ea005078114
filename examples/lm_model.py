"""A decoder-only transformer in Flax NNX. Nothing here knows of srjit.

Parameters are float32; every layer computes in `ModelConfig.dtype`. Each layer runs under a
`jax.named_scope`, so that profilers, and `srjit`'s reports, show paths such as `block0/attn/qkv`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lm_experts import BALANCE, Experts

# Each block starts as the identity: training leaves the bigram plateau early.
_zeros = nnx.initializers.zeros_init()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and compute dtype of a transformer."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    dtype: str = "bfloat16"
    experts: int = 0  # in place of every MLP; 0: none


class Linear(nnx.Linear):
    """`nnx.Linear` without a bias, under its own name."""

    def __init__(self, name: str, n_in: int, n_out: int, **options):
        super().__init__(n_in, n_out, use_bias=False, **options)
        self.name = name

    def __call__(self, x: jax.Array) -> jax.Array:
        with jax.named_scope(self.name):
            return super().__call__(x)


class Attention(nnx.Module):
    """Causal self-attention: (batch, seq, width) to the same."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, options = config.width, {"dtype": jnp.dtype(config.dtype), "rngs": rngs}
        self.heads = config.heads
        self.qkv = Linear("qkv", width, 3 * width, **options)
        self.out = Linear("out", width, width, kernel_init=_zeros, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        with jax.named_scope("attn"):
            heads = self.qkv(x).reshape(*x.shape[:2], 3 * self.heads, -1)
            q, k, v = jnp.split(heads, 3, axis=2)
            return self.out(_attend(_rotate(q), _rotate(k), v).reshape(x.shape))


class MLP(nnx.Module):
    """Two layers with a GELU between, four times as wide inside."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, options = config.width, {"dtype": jnp.dtype(config.dtype), "rngs": rngs}
        self.up = Linear("up", width, 4 * width, **options)
        self.down = Linear("down", 4 * width, width, kernel_init=_zeros, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        with jax.named_scope("mlp"):
            return self.down(nnx.gelu(self.up(x)))


class Block(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, index: int, config: ModelConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.name = f"block{index}"
        self.attn_norm = nnx.RMSNorm(config.width, dtype=dtype, rngs=rngs)
        self.attn = Attention(config, rngs)
        self.mlp_norm = nnx.RMSNorm(config.width, dtype=dtype, rngs=rngs)
        experts = config.width, config.experts, config.dtype, rngs
        self.mlp = Experts(*experts) if config.experts else MLP(config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        with jax.named_scope(self.name):
            x = x + self.attn(self.attn_norm(x))
            return x + self.mlp(self.mlp_norm(x))


class Transformer(nnx.Module):
    """Tokens (batch, seq) to next-token logits (batch, seq, vocabulary), float32."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        options = {"dtype": jnp.dtype(config.dtype), "rngs": rngs}
        self.embed = nnx.Embed(config.vocabulary, config.width, **options)
        self.blocks = nnx.List([Block(i, config, rngs) for i in range(config.layers)])
        self.norm = nnx.RMSNorm(config.width, **options)
        self.lm_head = Linear("lm_head", config.width, config.vocabulary, **options)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        with jax.named_scope("embed"):
            x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.norm(x)).astype(jnp.float32)


def next_token_loss(model: Transformer, tokens: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats per token of `tokens` (batch, seq + 1)."""
    logits = model(tokens[:, :-1])
    with jax.named_scope("loss"):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses.mean()


def training_loss(model: Transformer, tokens: jax.Array) -> jax.Array:
    """`next_token_loss` and, of experts, what spreads tokens over them."""
    loss = next_token_loss(model, tokens)
    balances = [block.mlp.balance for block in model.blocks if isinstance(block.mlp, Experts)]
    return loss + BALANCE * sum(balances) / len(balances) if balances else loss


def _rotate(x: jax.Array) -> jax.Array:
    """Rotary position embedding of (batch, seq, heads, size), for contexts of a few hundred."""
    half = x.shape[-1] // 2
    frequencies = 100.0 ** (-jnp.arange(half) / half)
    angles = jnp.arange(x.shape[1])[:, None, None] * frequencies
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scale = q.shape[-1] ** -0.5
    with jax.named_scope("scores"):
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * scale, k).astype(jnp.float32)
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf)).astype(v.dtype)
    with jax.named_scope("mix"):
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
