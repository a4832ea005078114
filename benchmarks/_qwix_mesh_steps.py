"""The linear layer and the MLP of ``_mesh_programs`` as Flax modules that Qwix quantizes.

At its default noise, which rows share; to FP8 it rounds to nearest.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

import _mesh_programs as programs
from _qwix_tpu_steps import dense, quantized


class Linear(nn.Module):
    layout: programs.Layout
    sizes: programs.Sizes

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return programs.constrained(dense(self.sizes.hidden, "up")(x), self.layout.hidden)


class MLP(nn.Module):
    layout: programs.Layout
    sizes: programs.Sizes

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.gelu(dense(self.sizes.hidden, "up")(x))
        hidden = programs.constrained(hidden, self.layout.hidden)
        return programs.constrained(dense(self.sizes.width, "down")(hidden), self.layout.x)


def program(
    name: str, layout: programs.Layout, sizes: programs.Sizes, dtype: str
) -> programs.Program | None:
    """One of the programs by Qwix; None if it is not one of these two."""
    if name not in ("linear", "MLP"):
        return None
    module = quantized((Linear if name == "linear" else MLP)(layout, sizes), dtype)
    own = programs.PROGRAMS[name](layout, sizes)

    def apply(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        return module.apply({"params": params}, x, rngs={"stochastic_rounding": key})

    params, specs = (
        {k: {"kernel": v} for k, v in tree[0].items()} for tree in (own.args, own.specs)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    return programs.sgd_program(layout, sizes, apply, params, specs, own.layers, key)
