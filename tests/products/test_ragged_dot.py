"""Ragged products are those of their groups, and rows past the groups reach nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import srjit
from small_programs import explain, normal

from .test_products import check, nearest, rounded

# ------------------------------------------------------------------------------------ ragged


SIZES = jnp.array([3, 0, 4], jnp.int32)
VALID = 7


def _ragged(garbage: float, recipe: Any) -> Any:
    """Value and gradients of a ragged dot whose rows past the groups hold ``garbage``."""
    x, w = normal(10, 6), normal(3, 6, 5, seed=1)
    x = x.at[VALID:].set(garbage)
    ct = normal(10, 5, seed=2).at[VALID:].set(garbage)
    dot = srjit.transform(lambda w, x, n: lax.ragged_dot(x, w, n), recipe=recipe)
    value, pullback = jax.vjp(lambda w, x: dot(w, x, SIZES, sr_key=0), w, x)
    dw, dx = pullback(ct)
    return value[:VALID], dw, dx[:VALID]


@pytest.mark.parametrize("garbage", [1e30, -1e30, jnp.inf, jnp.nan])
def test_rows_past_the_groups_reach_nothing(garbage: float):
    for got, expected in zip(_ragged(garbage, "int8"), _ragged(0.0, "int8"), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


def test_ragged_dots_multiply_what_their_codes_stand_for():
    value, dw, dx = _ragged(jnp.nan, nearest("int8"))
    q = nearest("int8").rules[0].fprop.weight
    start = 0
    for group, n in enumerate(np.asarray(SIZES)):
        rows = slice(start, start + n)
        x, g = (rounded(v[rows], q, ()) for v in (normal(10, 6), normal(10, 5, seed=2)))
        w = rounded(normal(3, 6, 5, seed=1)[group], q, ())
        check(value[rows], np.matmul, x, w, 6)
        check(dx[rows], lambda a, b: a @ b.T, g, w, 5)
        check(dw[group], lambda a, b: a.T @ b, x, g, int(n))
        start += n


def test_codes_of_masked_rows_do_not_serve_a_dense_product():
    x, w, v = normal(10, 6), normal(3, 6, 5, seed=1), normal(6, 4, seed=2)

    def both(params: Any, x: jax.Array) -> Any:
        w, v = params
        return lax.ragged_dot(x, w, SIZES), x @ v

    recipe = nearest("int8")
    _, dense = srjit.transform(both, recipe=recipe)((w, v), x, sr_key=0)
    q = recipe.rules[0].fprop.weight
    check(dense, np.matmul, rounded(x, q, ()), rounded(v, q, ()), 6)


def test_a_training_step_around_a_ragged_dot_has_its_roles():
    def step(w: jax.Array, x: jax.Array) -> Any:
        return jax.grad(lambda w, x: (lax.ragged_dot(x, w, SIZES) ** 2).sum(), (0, 1))(w, x)

    report = explain(step, normal(3, 6, 5), normal(10, 6))
    assert sorted(s.role for s in report.sites) == ["dgrad", "fprop", "wgrad"]
    assert {s.status for s in report.sites} == {"emulated"}
