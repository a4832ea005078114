"""What each product computes: inferred where differentiation is inside the decorated function."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import srjit
from small_programs import (
    IN,
    PARAMS,
    X,
    Y,
    equations,
    explain,
    loss,
    mlp,
    normal,
    roles,
)
from srjit.planning.residuals import Residuals

from .programs import (
    ADAPTERS,
    CASES,
    MLP,
    ROWS,
    SQUARE,
    STEP,
    D,
    _by_hand_mlp,
    _flash_attention,
    _recomputing_rule,
    _spoofed,
)


def test_attention_in_blocks_knows_scores_from_their_gradients():
    args = {name: normal(D, D, seed=i) for i, name in enumerate("qkv")}, normal(6, D)
    sites = explain(jax.grad(_flash_attention), *args).sites
    scores = [s for s in sites if s.phase == "recompute"]
    assert {s.role for s in scores} == {"fprop"}
    assert (6, 2) in {s.out_shape for s in scores}  # q @ kb.T
    inside = [s for s in sites if s.trips == 3 and s not in scores]
    # In g @ vb.T and a.T @ g nothing is read as it was forward: nobody can tell.
    assert sorted(s.role for s in inside) == ["dgrad", "dgrad", "unknown", "unknown"]


def test_what_a_rule_computes_again_is_rounded_as_it_was_forward(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Residuals, "are_made_again", lambda residuals, use: False)
    noisy = srjit.recipes.get("int8").with_rounding(activations="stochastic")
    f = srjit.srjit(jax.value_and_grad(_by_hand_mlp(_recomputing_rule)), recipe=noisy)
    (again,) = [s for s in f.explain(*STEP).sites if s.phase == "recompute"]
    assert (again.lhs.rounding, again.rhs.rounding) == ("stochastic", "nearest")
    calls = equations(f.rewritten(*STEP), "int8_stochastic")
    shapes = [v.aval.shape for e in calls for v in e.invars if v.aval.ndim]
    # One draw serves both, as it does where x is quantized again: test_residuals.py.
    assert shapes.count(X.shape) == 1


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2]])
def test_roles_are_those_of_the_mathematics(name: str):
    fun, args, expected = CASES[name]
    assert roles(fun, *args) == expected


def test_without_differentiation_inside_each_product_comes_with_its_gradients():
    assert roles(loss, *STEP) == {"fprop": 2, "wgrad": 2, "dgrad": 2}
    assert roles(loss, *STEP, mode="inference") == {"fprop": 2}


def test_a_scope_cannot_pretend_to_be_a_transposition():
    assert roles(_spoofed, *STEP, mode="inference") == {"fprop": 2}


def test_both_operands_of_each_backward_product_have_their_kinds():
    fun, args, _ = CASES["custom_vjp with other residuals"]
    for site in explain(fun, *args).sites:
        # This rule puts the gradient on the left of dgrad and on the right of wgrad.
        expected = {
            "fprop": ("activation", "weight"),
            "dgrad": ("gradient", "weight"),
            "wgrad": ("activation", "gradient"),
        }
        assert (site.lhs_kind, site.rhs_kind) == expected[site.role]


def test_w_at_x_has_its_weight_on_the_left():
    (site, *_) = explain(lambda w, x: w @ x, SQUARE, ROWS.T).sites
    assert (site.lhs_kind, site.rhs_kind) == ("weight", "activation")


def test_captured_arrays_are_weights_where_they_meet_data():
    def step(x: jax.Array, y: jax.Array) -> Any:
        return jax.grad(lambda p: loss(p, x, y))(PARAMS)

    assert roles(step, X, Y, params_argnums=()) == MLP


def test_an_argument_that_is_no_parameter_makes_an_activation():
    assert roles(lambda w, x: x @ w, SQUARE, ROWS, params_argnums=()) == {
        "fprop.act": 1,
        "dgrad.act": 2,
    }
    assert roles(lambda x, w: x @ w, ROWS, SQUARE, params_argnums=1) == {
        "fprop": 1,
        "wgrad": 1,
        "dgrad": 1,
    }


@pytest.mark.parametrize("scanned", [False, True], ids=["a layer", "a stack of layers"])
def test_a_frozen_base_beside_adapters_is_weights(scanned: bool):
    def step(adapters: Any, base: Any, x: jax.Array) -> Any:
        layer = lambda h, w: jnp.tanh(h @ w + (h @ adapters["a"]) @ adapters["b"])  # noqa: E731
        out = lax.scan(lambda h, w: (layer(h, w), None), x, base)[0] if scanned else layer(x, base)
        return (out**2).sum()

    base = jnp.stack([SQUARE] * 3) if scanned else SQUARE
    args = {k: v for k, v in ADAPTERS.items() if k != "w"}, base, ROWS
    found = explain(jax.grad(step), *args)
    assert found.sites == explain(jax.grad(step), *args, params_argnums=(0, 1)).sites
    assert any("base: frozen beside it" in note for note in found.notes)
    alone = explain(jax.grad(step), *args, params_argnums=0)
    assert any("name it in params_argnums" in note for note in alone.notes)


# ------------------------------------------------------------------------ what is not inferred


def _kept_layer(wrap: Any) -> Any:
    def layer(x: jax.Array, w: jax.Array) -> jax.Array:
        with srjit.keep_high_precision():
            return x @ w

    inner = wrap(layer)
    return lambda p, x, y: ((inner(jnp.tanh(x @ p["w1"]), p["w2"]) - y) ** 2).mean()


def _kept_backward(layer: Any) -> Any:
    @jax.custom_vjp
    def run(x: jax.Array, w: jax.Array) -> jax.Array:
        return layer(x, w)

    def backward(residuals: Any, g: jax.Array) -> Any:
        x, w = residuals
        with srjit.keep_high_precision():
            return g @ w.T, x.T @ g

    run.defvjp(lambda x, w: (run(x, w), (x, w)), backward)
    return run


@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, jax.checkpoint, _kept_backward, lambda f: jax.jit(jax.jit(f))]
)
@pytest.mark.parametrize("inside", [True, False], ids=["grad inside", "grad outside"])
def test_what_a_user_keeps_stays_in_high_precision_with_its_gradients(wrap: Any, inside: bool):
    fun = _kept_layer(wrap)
    sites = explain(jax.grad(fun) if inside else fun, *STEP).with_gradients
    kept = [s for s in sites if s.status == "kept"]
    assert {s.reason for s in kept} == {"srjit.keep_high_precision"}
    assert {s.role for s in kept} >= ({"fprop", "wgrad", "dgrad"} if inside else {"fprop"})
    assert len([s for s in sites if s.status != "kept"]) == (2 if inside else 3)


def test_ends_are_kept_with_their_gradients_also_under_checkpoint():
    recipe = srjit.Recipe(
        name="ends", rules=srjit.recipes.get("int8").rules, keep_first=1, keep_last=1
    )
    params = {f"w{i}": normal(IN, IN, seed=i) for i in range(1, 5)}
    step = jax.grad(lambda p, x: (jax.checkpoint(mlp)(p, x) ** 2).mean())
    quantized = [s for s in explain(step, params, X, recipe=recipe).sites if s.status != "kept"]
    # Of four layers the two in the middle: forward, recomputed forward, dgrad and wgrad.
    assert sorted(s.role for s in quantized) == ["dgrad"] * 2 + ["fprop"] * 4 + ["wgrad"] * 2
