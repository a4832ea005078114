"""No two quantizations, iterations, operands or examples of a decorated program share noise.

Weights are identities, whose codes are exact, so that products show how each element was rounded.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from srjit import recipes, transform

N = 64
EYE = jnp.eye(N)
X = jax.random.normal(jax.random.key(0), (N, N))
RECIPE = recipes.get("int8").with_rounding(activations="stochastic", weights="stochastic")


def surprises(rounded: jax.Array, x: jax.Array, scale: jax.Array) -> np.ndarray:
    """How each element was rounded, as a variable of mean 0 and variance 1; 0 if p is near 0, 1."""
    t = np.abs(np.asarray(x, np.float64) / np.asarray(scale))
    p = t - np.floor(t)
    up = np.rint(np.abs(np.asarray(rounded, np.float64) / np.asarray(scale))) - np.floor(t)
    assert set(np.unique(up)) <= {0, 1}
    fair = np.sqrt(p * (1 - p))
    return np.where(fair > 0.2, (up - p) / np.maximum(fair, 0.2), 0).ravel()


def of_tensor(rounded: jax.Array, x: jax.Array) -> np.ndarray:
    return surprises(rounded, x, jnp.abs(x).max() / 127)


def assert_independent(draws: list[np.ndarray]) -> None:
    """No two draws go together, but for one case in a million."""
    z = [a @ b / np.sqrt(np.sum(a**2 * b**2)) for a, b in itertools.combinations(draws, 2)]
    assert np.abs(z).max() < stats.norm.isf(1e-6 / 2 / len(z))


def scanned(w: jax.Array, xs: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda carry, x: (carry, x @ w), 0, xs)[1]


def counted(w: jax.Array, xs: jax.Array) -> jax.Array:
    def body(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, out = state
        return i + 1, out.at[i].set(xs[i] @ w)

    return jax.lax.while_loop(lambda state: state[0] < len(xs), body, (0, jnp.zeros_like(xs)))[1]


def nested(w: jax.Array, xs: jax.Array) -> jax.Array:
    pairs = xs.reshape(-1, 2, N, N)
    return jax.lax.map(lambda pair: scanned(w, pair), pairs).reshape(xs.shape)


def unrolled(w: jax.Array, xs: jax.Array) -> jax.Array:
    return jnp.stack([x @ w for x in xs])


def mapped(w: jax.Array, xs: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: x @ w)(xs)


@pytest.mark.parametrize("program", [scanned, counted, nested, unrolled, mapped])
def test_equal_values_are_rounded_with_different_noise(program):
    xs = jnp.broadcast_to(X, (6, N, N))
    out = jax.jit(transform(program, recipe=RECIPE))(EYE, xs, sr_key=1)
    assert_independent([of_tensor(o, X) for o in out])


def test_steps_have_different_noise():
    run = jax.jit(transform(lambda w, x: x @ w, recipe=RECIPE))
    assert_independent([of_tensor(run(EYE, X, sr_key=step), X) for step in range(6)])


def test_vmapped_calls_have_different_noise():
    run = jax.vmap(lambda x: transform(lambda w, x: x @ w, recipe=RECIPE)(EYE, x, sr_key=1))
    assert_independent([of_tensor(o, X) for o in run(jnp.broadcast_to(X, (6, N, N)))])


def test_both_operands_of_a_product_have_noise_of_their_own():
    v = X.reshape(1, -1)[:, :2000]
    outer = transform(lambda w, x: w.T @ x, recipe=RECIPE)
    product = np.asarray(jax.jit(outer)(v, v, sr_key=1), np.float64)
    largest = int(np.abs(v).argmax())  # whose code is 127, exactly
    column = product[:, largest] / float(v[0, largest])
    row = product[largest] / float(v[0, largest])
    assert_independent([of_tensor(column, v[0]), of_tensor(row, v[0])])


def test_a_cotangent_that_is_quantized_in_two_orientations_has_two_draws():
    def pulled(w: jax.Array, x: jax.Array, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
        run = transform(lambda w, x: x @ w, recipe="int8-channel")
        return jax.vjp(lambda w, x: run(w, x, sr_key=1), w, x)[1](ct)

    dw, dx = jax.jit(pulled)(EYE, EYE, X)
    by_row = surprises(dx, X, jnp.abs(X).max(1, keepdims=True) / 127)
    by_column = surprises(dw, X, jnp.abs(X).max(0, keepdims=True) / 127)
    assert_independent([by_row, by_column])
