"""Paths of sites are the user's scopes; what rules match and reach is said."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import srjit
from small_programs import (
    PARAMS,
    X,
    Y,
    count,
    explain,
    loss,
    mlp,
    roles,
)

from .programs import ROWS, SQUARE, STEP

# ------------------------------------------------------------------------------ names for people


def _named(params: Any, x: jax.Array) -> jax.Array:
    @jax.jit
    def feed_forward(x: jax.Array, w: jax.Array) -> jax.Array:
        with jax.named_scope("up"):
            return jnp.einsum("ij,jk->ik", x, w)

    for i in range(2):
        with jax.named_scope(f"block{i}"):
            x = jax.checkpoint(functools.partial(feed_forward, w=params["w"]))(x)
            with jax.named_scope("body"):
                x = lax.scan(lambda h, _: (jnp.tanh(h @ params["w"]), None), x, None, length=2)[0]
    return x.sum()


@pytest.mark.parametrize("fun", [_named, jax.grad(_named), jax.jit(jax.grad(jax.jit(_named)))])
def test_paths_are_the_users_scopes_and_nothing_else(fun: Any):
    paths = [s.path for s in explain(fun, {"w": SQUARE}, ROWS).sites]
    assert set(paths) == {"block0/up", "block0/body", "block1/up", "block1/body"}


def test_sites_say_how_their_role_was_found_and_where_they_stand():
    for site in explain(jax.grad(loss), *STEP).sites:
        assert site.why and __package__ not in site.why
        assert site.location.split(":")[0].endswith("programs.py")


def test_a_rule_that_matches_nothing_is_reported_unless_every_model_may_lack_it():
    rules = srjit.recipes.get("nvfp4").rules
    mine = srjit.Recipe(name="mine", rules=(srjit.Rule(path="*typo*", keep="mine"), *rules))
    notes = explain(loss, *STEP, recipe=mine).notes
    assert len([n for n in notes if "matched no site" in n]) == 1
    assert not [n for n in explain(loss, *STEP, recipe="nvfp4").notes if "matched no site" in n]


def test_the_cotangent_of_a_product_that_is_dead_code_is_its_gradient():
    def step(params: Any, x: jax.Array, ct: jax.Array) -> Any:
        _, pullback = jax.vjp(mlp, params, x)
        return pullback(ct)

    sites = explain(step, PARAMS, X, jnp.ones_like(Y)).sites
    assert sorted(s.role for s in sites) == ["dgrad", "dgrad", "fprop", "wgrad", "wgrad"]
    last = next(s for s in sites if s.role == "wgrad")
    assert (last.lhs_kind, last.rhs_kind) == ("gradient", "activation")
    assert (last.lhs.rounding, last.rhs.rounding) == ("stochastic", "nearest")


def test_a_cotangent_from_outside_makes_gradients():
    def step(w: jax.Array, x: jax.Array, ct: jax.Array) -> Any:
        out, pullback = jax.vjp(lambda w, x: x @ w, w, x)
        return out, pullback(ct)

    assert roles(step, SQUARE, ROWS, ROWS + 1) == {"fprop": 1, "dgrad": 1, "wgrad": 1}


@pytest.mark.parametrize("recipe", ["int8", "nvfp4"])
def test_what_an_inner_srjit_has_rewritten_is_left_alone(recipe: str):
    def inner(w: jax.Array, x: jax.Array) -> jax.Array:
        return (srjit.transform(lambda w, x: x @ w, recipe=recipe)(w, x, sr_key=1) ** 2).sum()

    report = explain(jax.grad(inner), SQUARE, ROWS, recipe=recipe)
    assert not report.sites
    assert any("already rewritten by an inner srjit" in note for note in report.notes)


def test_two_calls_of_a_stateful_generator_are_two_values():
    def fun(w: jax.Array) -> jax.Array:
        a, b = (lax.rng_uniform(0.0, 1.0, (8, w.shape[0])) for _ in range(2))
        return a @ w - b @ w

    jaxpr = srjit.srjit(fun, recipe="int8-qat").rewritten(SQUARE)
    assert count(jaxpr, "srjit_quantize_int8") == 3  # two of data, one of the weight


@pytest.mark.parametrize("size", [4, 5])
def test_rules_know_the_size_of_every_kind_of_product(size: int):
    def fun(params: Any, x: jax.Array, image: jax.Array) -> Any:
        conv = lax.conv_general_dilated(image, params["kernel"], (1, 1), "SAME")
        ragged = lax.ragged_dot(x, params["experts"], jnp.array([3, 5]))
        return conv, ragged, x @ params["w"]

    params = {
        "kernel": jnp.ones((4, 3, 3, 3)), "experts": jnp.ones((2, 8, 4)), "w": jnp.ones((8, 4)),
    }  # fmt: skip
    (rule,) = (r for r in srjit.recipes.get("int8").rules if r.fprop)
    recipe = srjit.Recipe(name="mine", rules=(dataclasses.replace(rule, min_size=size),))
    report = explain(fun, params, jnp.ones((8, 8)), jnp.ones((1, 3, 5, 5)), recipe=recipe)
    forward = [s for s in report.sites if s.role == "fprop"]
    assert len(forward) == 3
    assert all((s.status != "kept") == (size == 4) for s in forward)
