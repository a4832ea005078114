"""Where no gradient is taken there are none: in what is watched, verified and drawn again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import srjit
from small_programs import normal

X = normal(8, 8)
WS = jnp.stack([normal(8, 8, seed=n) for n in (1, 2)])
RECIPE = srjit.recipes.get("int8").with_rounding(activations="stochastic", weights="stochastic")


def looped(ws: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0].sum()


def computed_again(ws: jax.Array, x: jax.Array) -> jax.Array:
    return jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(ws[0], x).sum()


def branching(ws: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ ws[0], lambda: x.T @ ws[1]).sum()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("fun", [looped, computed_again, branching])
def test_a_loss_has_no_gradients(fun: Callable[..., Any]):
    seen: list[Any] = []
    watched = srjit.srjit(fun, recipe=RECIPE, watch=seen.append)
    watched(WS, X, sr_key=0)
    watched.watch.wait()
    assert not seen
    plain = srjit.srjit(fun, recipe=RECIPE)
    labels = {(o.role, o.kind) for o in plain.verify(WS, X, draws=4).operands}
    assert labels == {("fprop", "activation"), ("fprop", "weight")}
    drawn = srjit.replay(plain, WS, X, step=0, site=0)
    assert {(r.role, r.operand) for r in drawn} == {("fprop", "lhs"), ("fprop", "rhs")}
