"""What roles cannot be inferred for is kept, with a reason."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import srjit
from small_programs import (
    PARAMS,
    X,
    Y,
    explain,
    loss,
    mlp,
    normal,
    roles,
    sgd,
)

from .programs import MLP, ROWS, STEP, D


def _orthogonalized(g: jax.Array) -> jax.Array:
    g = g / jnp.linalg.norm(g)
    return 1.5 * g - 0.5 * g @ (g.T @ g)


def _muon(state: Any, x: jax.Array, y: jax.Array) -> Any:
    grads = jax.grad(loss)(state["params"], x, y)
    m = jax.tree.map(lambda m, g: 0.9 * m + g, state["m"], grads)
    return {"params": sgd(state["params"], jax.tree.map(_orthogonalized, m)), "m": m}


def _muon_apart(params: Any, m: Any, x: jax.Array, y: jax.Array) -> Any:
    state = _muon({"params": params, "m": m}, x, y)
    return state["params"], state["m"]


@pytest.mark.parametrize(
    ("step", "args"),
    [(_muon, ({"params": PARAMS, "m": PARAMS}, X, Y)), (_muon_apart, (PARAMS, PARAMS, X, Y))],
    ids=["state in one argument", "state in two"],
)
def test_the_products_of_an_optimizer_are_kept_with_a_reason(step: Any, args: Any):
    srjit.srjit(step, recipe="int8", strict=True).lower(
        *args
    )  # nothing that was asked for is missed
    report = explain(step, *args)
    updates = [s for s in report.sites if s.role == "unknown"]
    assert len(updates) == 4
    assert {s.status for s in updates} == {"kept"}
    assert all("update" in s.reason for s in updates)
    assert len([s for s in report.sites if s.status != "kept"]) == 5


def test_a_model_outside_of_the_gradient_is_still_a_forward_pass():
    def step(params: Any, teacher: Any, x: jax.Array) -> Any:
        return jax.grad(loss)(params, x, mlp(teacher, x))

    assert roles(step, PARAMS, PARAMS, X, params_argnums=(0, 1)) == MLP | {"fprop": 4}


def test_a_hessian_whose_forward_pass_is_dead_code_is_not_taken_for_a_gradient():
    loss = lambda w, x: ((x @ w) ** 2).sum()  # noqa: E731

    def hvp(w: jax.Array, v: jax.Array, x: jax.Array) -> jax.Array:
        return jax.grad(lambda w: jnp.vdot(jax.grad(loss)(w, x), v))(w)

    sites = explain(hvp, normal(D, 3), normal(D, 3, seed=1), ROWS).sites
    assert "fprop" not in {s.role for s in sites} and sites[0].role == "unknown"


def test_a_jvp_rule_that_differentiates_by_itself_has_first_derivatives():
    rule = jax.custom_jvp(mlp)
    rule.defjvp(lambda primals, tangents: jax.jvp(mlp, primals, tangents))
    step = jax.grad(lambda p, x, y: ((rule(p, x) - y) ** 2).mean())
    assert {s.role for s in explain(step, *STEP).sites} == {"fprop", "wgrad", "dgrad"}


def _by_hand(tagged: bool) -> Any:
    tag = srjit.role if tagged else (lambda *a, **k: jax.named_scope("plain"))

    def step(p: Any, x: jax.Array, y: jax.Array) -> Any:
        h = jnp.tanh(x @ p["w1"])
        out = h @ p["w2"]
        g = 2 * (out - y) / out.size
        with tag("wgrad", gradient=1):
            dw2 = h.T @ g
        with tag("dgrad", gradient=0):
            dh = (g @ p["w2"].T) * (1 - h * h)
        with tag("wgrad", gradient=1):
            dw1 = x.T @ dh
        return {"w1": dw1, "w2": dw2}

    return step


@pytest.mark.parametrize("tagged", [True, False])
def test_a_backward_pass_written_by_hand_is_found_and_may_be_tagged(tagged: bool):
    assert roles(_by_hand(tagged), *STEP, mode="inference") == MLP
    gradients = {s.role: (s.lhs_kind, s.rhs_kind) for s in explain(_by_hand(tagged), *STEP).sites}
    assert gradients["wgrad"] == ("activation", "gradient")
    assert gradients["dgrad"] == ("gradient", "weight")


# ---------------------------------------------------------------------------------- keeping
