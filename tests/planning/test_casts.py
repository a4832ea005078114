"""Casts of gradients to narrower types round stochastically where a recipe asks for it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srjit import Recipe, RecipeError, recipes, srjit

CASTS = Recipe(name="casts", rules=(), casts="stochastic")
X = jax.random.normal(jax.random.key(1), (4, 64))
W = jax.random.normal(jax.random.key(0), (3, 64, 64)) / 8


def gradient(x):
    """Of a float32 sum of products, with respect to bfloat16: its cotangent is cast."""

    def loss(x):
        with jax.named_scope("layer"):
            return jnp.sum(jnp.sin(x.astype(jnp.float32)))

    return jax.grad(loss)(x.astype(jnp.bfloat16))


def test_casts_are_listed_and_go_to_a_neighbour_without_bias():
    fun = srjit(gradient, recipe=CASTS)
    (write,) = fun.explain(X).write_backs
    assert (write.kind, write.op, write.status, write.shape) == (
        "gradient", "cast", "stochastic", (4, 64),
    )  # fmt: skip
    assert "layer" in write.path and "gradient" in str(fun.explain(X))
    exact = np.cos(np.asarray(X.astype(jnp.bfloat16), np.float64))
    draws = 512
    many = jax.vmap(lambda key: fun(X, sr_key=key))(jax.random.split(jax.random.key(2), draws))
    got = np.asarray(many, np.float64)
    assert many.dtype == jnp.bfloat16
    step = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 7)
    assert (np.abs(got - exact) <= step * (1 + 1e-6)).all()
    # Two-sided, for all elements together: a residual is at most a step, of variance <= 1/4.
    z = ((got - exact) / step).mean() * math.sqrt(4 * got.size)
    assert abs(z) < 5
    assert (got.std(0) > 0).mean() > 0.9


def test_without_it_casts_are_to_nearest():
    plain = jax.jit(gradient)(X)
    for recipe in (dataclasses.replace(CASTS, casts=None), recipes.get("int8")):
        np.testing.assert_array_equal(srjit(gradient, recipe=recipe)(X, sr_key=1), plain)


def layers(w, x):
    """Parameters in bfloat16, a loop, and rematerialization."""

    def loss(w):
        def layer(x, w):
            return x + jnp.tanh(x @ w.astype(jnp.float32)), None

        y, _ = jax.lax.scan(jax.checkpoint(layer), x, w)
        return jnp.sum(y**2)

    return jax.grad(loss)(w.astype(jnp.bfloat16))


def test_iterations_draw_noise_of_their_own_through_both_doors():
    same = jnp.stack([W[0]] * 3)
    fun = srjit(layers, recipe=dataclasses.replace(recipes.get("int8"), casts="stochastic"))
    found = [w for w in fun.explain(same, X).write_backs if w.kind == "gradient"]
    assert len(found) == 1 and found[0].shape == (64, 64)
    by_jaxpr = fun(same, X, sr_key=1)
    assert by_jaxpr.dtype == jnp.bfloat16
    np.testing.assert_array_equal(by_jaxpr, fun(same, X, sr_key=1))
    assert (np.asarray(by_jaxpr) != np.asarray(fun(same, X, sr_key=2))).any()
    recipe = fun._options.settings.recipe
    by_module = srjit(layers, recipe=recipe, layer="stablehlo")(same, X, sr_key=1)
    np.testing.assert_array_equal(by_jaxpr, by_module)


def test_noise_differs_from_iteration_to_iteration():
    def cast(x):
        """The same gradient three times."""

        def loss(x):
            return jax.lax.scan(
                lambda c, x: (c + jnp.sum(jnp.sin(x.astype(jnp.float32))), None), 0.0, x
            )[0]

        return jax.grad(loss)(jnp.stack([x.astype(jnp.bfloat16)] * 3))

    one, two, three = np.asarray(srjit(cast, recipe=CASTS)(X, sr_key=1), np.float32)
    assert (one != two).any() and (two != three).any() and (one != three).any()


def test_inference_casts_to_nearest():
    plain = jax.jit(gradient)(X)
    np.testing.assert_array_equal(srjit(gradient, recipe=CASTS, mode="inference")(X), plain)


def test_recipes_with_casts_are_text_too():
    assert Recipe.from_toml(CASTS.to_toml()) == CASTS
    with pytest.raises(RecipeError, match="casts"):
        Recipe(name="casts", rules=(), casts="nearest")  # type: ignore[arg-type]
