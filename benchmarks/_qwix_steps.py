"""The MLP and the transformer of ``_programs`` as Flax Linen modules, trained in int8 by Qwix.

Qwix quantizes what Flax modules call, so the same mathematics is written once more here; parameters
are those of ``_programs``, and ``check`` shows that so are the losses and the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import qwix

import _programs as programs

EVERY_ELEMENT = tuple(range(8))  # axes along which noise is drawn; more than any tensor here has


class MLP(nn.Module):
    sizes: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, size in enumerate(self.sizes):
            x = nn.Dense(size, use_bias=False, name=f"layer{i}")(x)
            if i + 1 < len(self.sizes):
                x = nn.relu(x)
        return x


class Block(nn.Module):
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, t, d = x.shape

        def norm(x: jax.Array) -> jax.Array:
            return nn.LayerNorm(use_bias=False, use_scale=False, use_fast_variance=False)(x)

        def dense(size: int, name: str) -> nn.Dense:
            return nn.Dense(size, use_bias=False, name=name)

        qkv = dense(3 * d, "qkv")(norm(x)).reshape(b, t, 3, self.heads, d // self.heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(d // self.heads)
        scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -1e9)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        x = x + dense(d, "out")(mixed.reshape(b, t, d))
        return x + dense(d, "down")(nn.gelu(dense(self.hidden, "up")(norm(x))))


class Transformer(nn.Module):
    layers: int
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.layers):
            x = Block(self.heads, self.hidden, name=f"block{i}")(x)
        return x


def mlp(params: programs.Params) -> tuple[nn.Module, Any]:
    """The MLP with these weights: (module, its parameters)."""
    module = MLP([w.shape[1] for w in params])
    return module, {f"layer{i}": {"kernel": w} for i, w in enumerate(params)}


def transformer(params: programs.Params, heads: int) -> tuple[nn.Module, Any]:
    """The transformer with these weights: (module, its parameters)."""
    module = Transformer(len(params), heads, params[0]["up"].shape[1])
    blocks = {f"block{i}": {k: {"kernel": w} for k, w in p.items()} for i, p in enumerate(params)}
    return module, blocks


def int8(module: nn.Module, noise_axes: Sequence[int], one_scale: bool = False) -> nn.Module:
    """``module`` with its weight products, and their gradients, in Qwix's int8.

    Args:
      module: what to quantize.
      noise_axes: along which the noise of a gradient differs; (0,) is Qwix's default.
      one_scale: a scale for each tensor, in place of Qwix's default, one for each channel.
    """
    rule = qwix.QtRule(
        op_names=("dot_general",),  # Dense's; attention's einsums stay in fp32, as in srjit's int8
        weight_qtype="int8",
        act_qtype="int8",
        bwd_qtype="int8",
        bwd_stochastic_rounding="uniform",
        channelwise_noise_axes=tuple(noise_axes),
        disable_channelwise_axes=one_scale,
    )
    return qwix.quantize_model(module, qwix.QtProvider([rule]))


def loss_of(module: nn.Module) -> Callable[..., Any]:
    """loss(params, x, y, key), the loss of ``_programs``."""

    def loss(params: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        out = module.apply({"params": params}, x, rngs={"stochastic_rounding": key})
        return jnp.mean((out - y) ** 2)

    return loss


def int8_products(fun: Callable[..., Any], *args: Any) -> int:
    """How many products of int8 operands a function has, calls included."""

    def count(jaxpr: Any) -> int:
        found = 0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                found += all(v.aval.dtype == jnp.int8 for v in eqn.invars[:2])
            for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
                if _is_jaxpr(inner):
                    found += count(getattr(inner, "jaxpr", inner))
        return found

    return count(jax.make_jaxpr(fun)(*args).jaxpr)


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns")


def _distance(tree: Any, other: Any) -> float:
    """Relative, in the 2-norm over all leaves."""
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (tree, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def check(
    plain: nn.Module, params: Any, batch: tuple[Any, ...], loss: float, noise_axes: Sequence[int]
) -> str:
    """That both are the same program, and that Qwix quantizes it.

    Raises:
      AssertionError: the losses differ, a product is not quantized, or keys do not matter.
    """
    key, other = jax.random.key(0), jax.random.key(1)
    own, exact = jax.jit(jax.value_and_grad(loss_of(plain)))(params, *batch, key)
    assert abs(own - loss) <= 1e-5 * abs(loss), f"losses differ: {own} and {loss}"
    grad = jax.value_and_grad(loss_of(int8(plain, noise_axes)))
    products = int8_products(grad, params, *batch, key)
    layers = len(jax.tree.leaves(params))
    assert products >= 3 * layers - 1, f"{products} int8 products for {layers} weights"
    compiled = jax.jit(grad)
    (quantized, grads), (_, others) = (compiled(params, *batch, k) for k in (key, other))
    apart = _distance(grads, others)
    assert apart > 0, "Qwix's noise does not depend on the key"
    return (
        f"loss: plain JAX {loss:.6f}, Flax {own:.6f}, Qwix int8 {quantized:.6f}; "
        f"{products} int8 products for {layers} weights\n"
        f"  Qwix's gradients: {_distance(grads, exact):.2%} from fp32's, "
        f"{apart:.2%} between two keys"
    )
