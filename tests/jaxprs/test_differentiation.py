"""Every way to differentiate and to batch a decorated function, with srjit inside of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srjit
from small_programs import equations, loss, mlp, mlp_params, normal

PARAMS = mlp_params(16, 24, 8)
X, Y = normal(12, 16, seed=8), normal(12, 8, seed=9)
TANGENT = jax.tree.map(lambda p: normal(*p.shape, seed=5), PARAMS)
WRAPPERS = [srjit.transform, srjit.srjit]
# Quantized where they are, products keep this much of a gradient's direction: the relative error of
# one int8 rounding is at most 2^-8 of the largest element, of nvfp4's 2^-2 of a block's.
ALIGNED = {"int8": 0.998, "nvfp4": 0.9}


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)])


def aligned(a: Any, b: Any, recipe: str = "int8") -> None:
    """Nearly the same vector, and not the same: the quantization was there."""
    a, b = flat(a), flat(b)
    assert a.shape == b.shape
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > ALIGNED[recipe]
    assert 0.9 < np.linalg.norm(a) / np.linalg.norm(b) < 1.1
    assert not np.array_equal(a, b)


def same(a: Any, b: Any) -> None:
    """The same program, compiled in another way."""
    a, b = flat(a), flat(b)
    assert abs(a - b).max() <= 1e-5 * abs(b).max()


def quantized(wrapper: Any = srjit.transform, recipe: str = "int8", key: Any = 3) -> Any:
    decorated = wrapper(loss, recipe=recipe)
    return lambda params, x=X, y=Y: decorated(params, x, y, sr_key=key)


def exact(params: Any, x: Any = X, y: Any = Y) -> Any:
    return loss(params, x, y)


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("recipe", ALIGNED)
def test_gradients_of_all_kinds_are_one_gradient(wrapper: Any, recipe: str):
    f = quantized(wrapper, recipe)
    gradient = jax.grad(f)(PARAMS)
    aligned(gradient, jax.grad(exact)(PARAMS), recipe)
    value, again = jax.value_and_grad(f)(PARAMS)
    same(again, gradient)
    same(value, f(PARAMS))
    same(jax.vjp(f, PARAMS)[1](jnp.float32(1))[0], gradient)
    same(jax.jit(jax.grad(f))(PARAMS), gradient)
    same(jax.grad(jax.jit(f))(PARAMS), gradient)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_tangents_run_in_high_precision_at_the_quantized_point(wrapper: Any):
    f = quantized(wrapper)
    value, tangent = jax.jvp(f, (PARAMS,), (TANGENT,))
    same(value, f(PARAMS))
    exact_tangent = jax.jvp(exact, (PARAMS,), (TANGENT,))[1]
    assert abs(tangent / exact_tangent - 1) < 0.01
    assert tangent != exact_tangent
    same(jax.linearize(f, PARAMS)[1](TANGENT), tangent)
    same(jax.jvp(quantized(key=4), (PARAMS,), (TANGENT,))[1], tangent)  # no noise in it


def _forward_over_reverse(f: Any) -> Any:
    return jax.jvp(jax.grad(f), (PARAMS,), (TANGENT,))[1]


def _dot(a: Any, b: Any) -> Any:
    return sum(jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def _reverse_over_reverse(f: Any) -> Any:
    return jax.grad(lambda p: _dot(jax.grad(f)(p), TANGENT))(PARAMS)


def _reverse_over_forward(f: Any) -> Any:
    return jax.grad(lambda p: jax.jvp(f, (p,), (TANGENT,))[1])(PARAMS)


@pytest.mark.crossed(1, most=3)
@pytest.mark.parametrize(
    "order", [_forward_over_reverse, _reverse_over_reverse, _reverse_over_forward]
)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_hessian_vector_products_of_every_order_agree_with_the_exact_one(order: Any, wrapper: Any):
    aligned(order(quantized(wrapper)), order(exact))


BATCHES = jnp.stack([X, 2 * X, X - 1])
TARGETS = jnp.stack([Y] * 3)


def test_vmap_maps_every_example_as_if_it_were_alone():
    f = quantized()
    mapped = jax.vmap(f, (None, 0, 0))(PARAMS, BATCHES, TARGETS)
    for value, x in zip(mapped, BATCHES, strict=True):
        same(value, f(PARAMS, x))
    gradients = jax.vmap(jax.grad(f), (None, 0, 0))(PARAMS, BATCHES, TARGETS)
    for i, x in enumerate(BATCHES):
        aligned(jax.tree.map(lambda g, i=i: g[i], gradients), jax.grad(exact)(PARAMS, x))


def test_grad_of_vmap_is_the_sum_of_vmapped_grads():
    mapped = lambda f: lambda p: jax.vmap(f, (None, 0, 0))(p, BATCHES, TARGETS).sum()  # noqa: E731
    aligned(jax.grad(mapped(quantized()))(PARAMS), jax.grad(mapped(exact))(PARAMS))


def test_every_argument_can_be_mapped_or_not():
    f = srjit.transform(mlp, recipe="int8")
    stacked = jax.tree.map(lambda p: jnp.stack([p, -p]), PARAMS)
    both = jax.vmap(lambda p, x: f(p, x, sr_key=0))(stacked, BATCHES[:2])
    params_only = jax.vmap(lambda p: f(p, X, sr_key=0))(stacked)
    for i in (0, 1):
        one = jax.tree.map(lambda p, i=i: p[i], stacked)
        same(both[i], f(one, BATCHES[i], sr_key=0))
        same(params_only[i], f(one, X, sr_key=0))


def test_vmap_over_keys_gives_a_draw_for_every_key():
    decorated = srjit.transform(loss, recipe="int8")
    gradient = lambda key, x: jax.grad(lambda p: decorated(p, x, Y, sr_key=key))(PARAMS)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 3)
    for in_axes, xs in (((0, None), X), ((0, 0), BATCHES)):
        together = jax.vmap(gradient, in_axes)(keys, xs)
        draws = [jax.tree.map(lambda g, i=i: g[i], together) for i in range(3)]
        for draw, x in zip(draws, [X] * 3 if xs is X else BATCHES, strict=True):
            aligned(draw, jax.grad(exact)(PARAMS, x))
        assert not np.array_equal(flat(draws[0]), flat(draws[1]))


POLICIES = [None, "dots_saveable", "dots_with_no_batch_dims_saveable", "nothing_saveable"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_checkpoint_around_it_changes_nothing(policy: str | None):
    f = quantized()
    chosen = policy and getattr(jax.checkpoint_policies, policy)
    checkpointed = jax.jit(jax.grad(jax.checkpoint(f, policy=chosen)))(PARAMS)
    plain = jax.jit(jax.grad(f))(PARAMS)
    for a, b in zip(jax.tree.leaves(checkpointed), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("policy", "recomputed"), [(None, 1), ("dots_saveable", 0)])
def test_a_checkpoint_inside_takes_a_site_for_the_product_that_it_is(policy: Any, recomputed: int):
    chosen = policy and getattr(jax.checkpoint_policies, policy)
    block = jax.checkpoint(mlp, policy=chosen)
    f = srjit.transform(lambda p, x: (block(p, x) ** 2).sum(), recipe="int8")
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: f(p, X, sr_key=0)))(PARAMS)
    labels = [e.params["site"].label for e in equations(jaxpr, "srjit_site")]
    assert labels.count("fprop") == 2 + recomputed
    assert len(labels) == 2 + recomputed + 3


@pytest.mark.parametrize("recipe", ["int8", "mxfp8"])
def test_the_mean_gradient_over_keys_is_that_without_noise(recipe: str):
    """Each element within 6 of its own standard errors; rounding='none' is the reference."""
    draws = 256

    def gradient(recipe: Any, key: Any, w: jax.Array, x: jax.Array) -> Any:
        f = srjit.transform(lambda w, x: jnp.tanh(x @ w).sum(), recipe=recipe)
        return jax.grad(lambda w, x: f(w, x, sr_key=key), (0, 1))(w, x)

    keys = jax.random.split(jax.random.key(1), draws)
    args = normal(16, 5, seed=1) / 4, normal(6, 16)
    drawn = jax.jit(jax.vmap(lambda key, *a: gradient(recipe, key, *a), (0, None, None)))(
        keys, *args
    )
    reference = gradient(srjit.recipes.get(recipe).with_rounding(gradients="none"), 0, *args)
    for samples, mean in zip(drawn, reference, strict=True):
        samples = np.asarray(samples, np.float64)
        error = samples.std(axis=0, ddof=1) / draws**0.5
        assert error.max() > 0  # there was noise
        unit = 1e-6 * abs(np.asarray(mean)).max()
        assert (abs(samples.mean(axis=0) - np.asarray(mean)) <= 6 * error + unit).all()
