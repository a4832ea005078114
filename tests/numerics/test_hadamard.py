"""The Hadamard transform is orthonormal, cancels in a product, and spreads outliers."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy import linalg

from srjit.numerics import hadamard

from .support import assert_same_bits


def oracle(x: np.ndarray) -> np.ndarray:
    """Sixteen at a time along the last dimension, rounded to bfloat16, in float64."""
    blocks = np.pad(x, [(0, 0), (0, -x.shape[1] % 16)]).reshape(x.shape[0], -1, 16)
    signs = np.sign(hadamard.matrix()[:, 0])
    mixed = blocks @ (signs[:, None] * linalg.hadamard(16) / 4)
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
