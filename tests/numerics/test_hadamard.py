"""The Hadamard transform is orthonormal, cancels in a product, and spreads outliers."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy import linalg

from srjit.numerics import hadamard, random_bits

from .support import assert_same_bits


def oracle(x: np.ndarray, n: int = 16) -> np.ndarray:
    """n at a time along the last dimension, rounded to bfloat16, in float64."""
    blocks = np.pad(x, [(0, 0), (0, -x.shape[1] % n)]).reshape(x.shape[0], -1, n)
    signs = np.sign(hadamard.matrix(n)[:, 0])
    mixed = blocks @ (signs[:, None] * linalg.hadamard(n) / np.sqrt(n))
    return mixed.reshape(x.shape[0], -1).astype(ml_dtypes.bfloat16).astype(x.dtype)


def integers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32)


def test_the_matrix_is_orthonormal_with_signs_of_both_kinds():
    h = hadamard.matrix().astype(np.float64)
    np.testing.assert_array_equal(h @ h.T, np.eye(16))
    assert set(np.abs(h).ravel()) == {0.25}
    assert 0 < (np.sign(h[:, 0]) > 0).sum() < 16


@pytest.mark.parametrize("size", [1, 16, 40, 64])
def test_each_16_along_the_contraction_are_transformed(size: int):
    x = integers(5, size)
    assert_same_bits(np.asarray(hadamard.transform(jnp.asarray(x), 1)), oracle(x))
    transposed = np.asarray(hadamard.transform(jnp.asarray(x.T), 0))
    assert_same_bits(np.ascontiguousarray(transposed.T), oracle(x))


@pytest.mark.parametrize("size", [40, 128, 200])
def test_each_128_along_the_contraction_are_transformed(size: int):
    x = integers(5, size)
    h = hadamard.matrix(128).astype(np.float64)
    np.testing.assert_allclose(h @ h.T, np.eye(128), atol=128 * 2.0**-26)
    y = np.asarray(hadamard.transform(jnp.asarray(x), 1, 128))
    error_of_sum = 128 * 2.0**-24 * 128 * 4 / 128**0.5  # in float32, of 128 products
    np.testing.assert_allclose(y, oracle(x, 128), rtol=2**-7, atol=error_of_sum)
    assert y.shape == (5, -(-size // 128) * 128)


def test_signs_are_flipped_along_one_dimension_by_fair_coins_of_the_key():
    n = 4096
    both = [hadamard.flipped(jnp.ones((2, n)), 1, random_bits.as_key(k)) for k in (0, 1)]
    both.append(hadamard.flipped(jnp.ones((n, 3)), 0, random_bits.as_key(1)).T[:2])
    first, second, same = map(np.asarray, both)
    np.testing.assert_array_equal(second, same)
    for signs in (first, second, first * second):
        assert set(np.abs(signs).ravel()) == {1.0}
        np.testing.assert_array_equal(signs[0], signs[1])
        # Hoeffding: beyond it with a probability below 2 exp(-14.5) = 1e-6.
        assert abs(signs[0].sum()) < np.sqrt(2 * n * 14.5)


def test_results_are_rounded_to_bfloat16():
    x = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    y = np.asarray(hadamard.transform(jnp.asarray(x), -1))
    assert_same_bits(y, y.astype(ml_dtypes.bfloat16).astype(np.float32))
    np.testing.assert_allclose(y, oracle(x), rtol=2**-7, atol=0)


def test_it_cancels_in_a_product():
    x, g = integers(7, 40), integers(9, 40)
    tx, tg = (np.asarray(hadamard.transform(jnp.asarray(v), 1)) for v in (x, g))
    np.testing.assert_array_equal(tx @ tg.T, x @ g.T)


def test_an_outlier_is_spread_over_16():
    x = np.zeros((1, 16), np.float32)
    x[0, 3] = 16
    assert set(np.abs(np.asarray(hadamard.transform(jnp.asarray(x), 1))).ravel()) == {4.0}


@pytest.mark.parametrize("size", [16, 128])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_loop_for_cpus_adds_in_the_same_order(size: int, axis: int):
    x = np.random.default_rng(0).normal(size=(2 * size, 2 * size)).astype(np.float32)
    x[0, 0], x[1, 1], x[-1, 3] = np.inf, np.nan, 0
    blocks = np.moveaxis(x, axis, 0).reshape(2, size, -1)
    together, loop = (
        np.asarray(f(jnp.asarray(blocks), axis=1))
        for f in (hadamard._together, hadamard._one_by_one)
    )
    nan = np.isnan(together)
    np.testing.assert_array_equal(nan, np.isnan(loop))
    assert_same_bits(np.where(nan, 0, together), np.where(nan, 0, loop))
