"""``calibrate`` turns what a run saw into a recipe with given scales."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srjit
from srjit import Recipe, recipes
from srjit.recipes.rule import KINDS, ROLES

X = jax.random.normal(jax.random.key(0), (8, 16))
PARAMS = {"up": jnp.ones((16, 4)) / 4, "down": jnp.ones((4, 2)) / 2}


def step(params: Any, x: jax.Array) -> Any:
    def loss(params: Any) -> jax.Array:
        with jax.named_scope("up"):
            hidden = jnp.tanh(x @ params["up"])
        with jax.named_scope("[d]own"):  # what a pattern would read in another way
            return jnp.sum(hidden @ params["down"])

    return jax.grad(loss)(params)


BATCHES = [(PARAMS, X), (PARAMS, 3 * X)]


def amaxes(recipe: Recipe) -> dict[tuple[str, str, str], float | None]:
    return {
        (rule.path, role, kind): spec.amax
        for rule in recipe.rules
        for role in ROLES
        for kind in KINDS
        if (spec := getattr(getattr(rule, role), kind, None)) is not None
    }


@pytest.mark.parametrize(("base", "layer"), [("fp8", "stablehlo"), ("fp8-delayed", "jaxpr")])
def test_scales_are_those_of_the_run_and_the_recipe_runs(base: str, layer: Any):
    found = srjit.calibrate(srjit.srjit(step, layer=layer), BATCHES, recipe=base)
    assert Recipe.from_toml(found.to_toml()) == found
    given, largest = amaxes(found), float(jnp.max(jnp.abs(3 * X)))
    assert given["up", "fprop", "activation"] == given["up", "wgrad", "activation"] == largest
    assert given["up", "fprop", "weight"] == 0.25 and given["*", "fprop", "weight"] == 0.5
    assert given["[[]d]own", "wgrad", "gradient"] == 1.0 == given["*", "wgrad", "gradient"]
    assert None not in given.values()
    fun = srjit.srjit(step, recipe=found, layer=layer)
    assert {s.status for s in fun.explain(*BATCHES[0]).sites} != {"kept"}


@pytest.mark.parametrize(("base", "layer"), [("int8", "jaxpr"), ("fp8", "stablehlo")])
def test_a_given_scale_of_the_same_amax_gives_the_same_bits(base: str, layer: Any):
    found = srjit.calibrate(step, BATCHES[:1], recipe=base)
    runs = (srjit.srjit(step, recipe=recipe, layer=layer) for recipe in (found, base))
    one, other = (run(*BATCHES[0], sr_key=0) for run in runs)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_margin_is_a_factor():
    one, two = (amaxes(srjit.calibrate(step, BATCHES, recipe="int8", margin=m)) for m in (1.0, 2.0))
    assert two == {k: v and 2 * v for k, v in one.items()}


def test_activations_of_attention_get_their_own():
    recipe = dataclasses.replace(recipes.get("int8"), rules=recipes.get("int8").rules[1:])

    def attention(q: jax.Array, k: jax.Array) -> jax.Array:
        return jax.grad(lambda q: jnp.sum((q @ k.T) ** 2))(q)

    given = amaxes(srjit.calibrate(attention, [(X, 2 * X)], recipe=recipe))
    assert given["*", "dgrad", "activation"] == float(jnp.max(jnp.abs(2 * X)))


def branching(params: Any, x: jax.Array) -> Any:
    return jax.lax.cond(x[0, 0] > 1e9, lambda: step(params, x), lambda: PARAMS)


@pytest.mark.parametrize(
    ("fun", "batches", "options", "error", "message"),
    [
        (step, [], {}, ValueError, "no batches"),
        (step, [X], {}, TypeError, "batch 0 is a .*: it is the tuple of the function's arguments"),
        (step, [(PARAMS, X * jnp.nan)], {}, ValueError, r"lhs of site 0 \(up\) is not finite"),
        (step, [(PARAMS, X * 0)], {}, ValueError, r"lhs of site 0 \(up\) is zero in every batch"),
        (branching, BATCHES, {}, ValueError, r"site 0 \(.*\) was never reached"),
        (step, BATCHES, {"recipe": "fp8-static"}, ValueError, "has a scale for .* already"),
        (step, BATCHES, {"recipe": "nvfp4"}, ValueError, "has no scale to give: nvfp4 there has"),
        (step, BATCHES, {"margin": 0.0}, ValueError, "margin=0.0: it is a factor"),
        (lambda p, x: x @ p["up"], BATCHES, {}, ValueError, "calibrate the training step"),
    ],
)
def test_what_tells_no_scales_is_an_error(
    fun: Any, batches: Any, options: Any, error: Any, message: str
):
    with pytest.raises(error, match=message):
        srjit.calibrate(fun, batches, **{"recipe": "int8", **options})


def test_a_model_alone_is_calibrated_for_inference():
    fun = srjit.srjit(lambda p, x: x @ p["up"], mode="inference", recipe="fp8")
    found = amaxes(srjit.calibrate(fun, BATCHES))
    assert found["*", "fprop", "weight"] == 0.25 and found["*", "wgrad", "gradient"] is None
