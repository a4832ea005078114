"""A mixture of experts in place of a transformer's MLP, in Flax NNX. Nothing here knows of srjit.

Rows are sorted by expert, and `jax.lax.ragged_dot` multiplies those of each by a matrix of its own.
"""

import jax
import jax.numpy as jnp
from flax import nnx

CHOSEN = 2  # experts of each token
BALANCE = 0.01  # of the loss that spreads tokens over experts, in the loss that is trained


class Experts(nnx.Module):
    """(batch, seq, width) to the same: of several MLPs, for each token the best two.

    Each is twice as wide inside. After a call, `balance` is the load-balancing loss of the Switch
    Transformer (Fedus et al., 2021): 1 where all experts get as many tokens as they are likely.
    """

    def __init__(self, width: int, experts: int, dtype: str, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
        self.experts, self.dtype = experts, jnp.dtype(dtype)
        self.router = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width, experts)))
        self.up = nnx.Param(init(rngs.params(), (experts, width, 2 * width)))
        self.down = nnx.Param(jnp.zeros((experts, 2 * width, width)))
        self.balance = 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        with jax.named_scope("experts"):
            rows = x.reshape(-1, x.shape[-1])
            weights, chosen, self.balance = self.route(rows)
            order = jnp.argsort(chosen.reshape(-1))
            token, sizes = order // CHOSEN, jnp.bincount(chosen.reshape(-1), length=self.experts)
            with jax.named_scope("up"):
                hidden = jax.lax.ragged_dot(rows[token], self.up[...].astype(self.dtype), sizes)
            with jax.named_scope("down"):
                out = jax.lax.ragged_dot(nnx.gelu(hidden), self.down[...].astype(self.dtype), sizes)
            out = out * weights.reshape(-1)[order, None].astype(self.dtype)
            return jnp.zeros_like(rows).at[token].add(out).reshape(x.shape)

    def route(self, rows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Weights and numbers of the experts of each row (both `(rows, 2)`), and the balance."""
        with jax.named_scope("router"):
            # In float32, and as a sum: so small a product is nothing to quantize.
            logits = (rows.astype(jnp.float32)[:, :, None] * self.router[...]).sum(1)
        likely = jax.nn.softmax(logits)
        weights, chosen = jax.lax.top_k(likely, CHOSEN)
        share = jnp.bincount(chosen.reshape(-1), length=self.experts) / chosen.size
        balance = self.experts * jnp.sum(share * likely.mean(0))
        return weights / weights.sum(1, keepdims=True), chosen, balance
