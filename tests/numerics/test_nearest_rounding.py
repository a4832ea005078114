"""Nearest rounding is the formula's, for every input that is small enough to enumerate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles.grids import GRIDS
from srjit.numerics.elements import ELEMENTS
from srjit.numerics.rounding import round_to_grid

from .support import SMALL_FLOATS, assert_same_bits, every_16_bit_float

pytestmark = pytest.mark.bits


def round_nearest(y: np.ndarray, name: str) -> np.ndarray:
    return np.asarray(jax.jit(lambda y: round_to_grid(y, ELEMENTS[name]))(y))


@pytest.mark.parametrize("source", SMALL_FLOATS)
@pytest.mark.parametrize("name", ELEMENTS)
def test_every_16_bit_float_is_rounded_to_the_nearest_value(name: str, source: str):
    y = every_16_bit_float(source)
    assert_same_bits(round_nearest(y, name), GRIDS[name].nearest(y).astype(np.float32))


@pytest.mark.parametrize("name", ELEMENTS)
def test_ties_and_what_is_next_to_them_are_rounded_to_the_nearest_value(name: str):
    magnitudes = GRIDS[name].magnitudes
    ties = ((magnitudes[1:] + magnitudes[:-1]) / 2).astype(np.float32)
    beside = [np.nextafter(ties, np.float32(side)) for side in (0, np.inf)]
    y = np.concatenate([ties, *beside, magnitudes.astype(np.float32)])
    if name != "bfloat16":  # whose cells are subnormal where float32's are: below
        y = y[(y == 0) | (y >= np.finfo(np.float32).tiny)]
    y = np.concatenate([y, -y])
    assert_same_bits(round_nearest(y, name), GRIDS[name].nearest(y).astype(np.float32))


def test_subnormal_float32_are_rounded_to_subnormal_bfloat16():
    words = np.random.default_rng(0).integers(0, 2**23, 2**16, dtype=np.uint32)
    y = np.concatenate([words, words | 2**31]).astype(np.uint32).view(np.float32)
    assert_same_bits(round_nearest(y, "bfloat16"), GRIDS["bfloat16"].nearest(y).astype(np.float32))


@pytest.mark.parametrize("name", ELEMENTS)
def test_float64_is_rounded_once(name: str):
    """Through float32 some of these would first become ties."""
    magnitudes = GRIDS[name].magnitudes[-300:]
    ties = (magnitudes[1:] + magnitudes[:-1]) / 2
    y = np.concatenate([ties, np.nextafter(ties, 0), np.nextafter(ties, np.inf), [1e300, 1e-300]])
    y = np.concatenate([y, -y])
    with jax.enable_x64(True):
        assert_same_bits(round_nearest(y, name), GRIDS[name].nearest(y))


@pytest.mark.parametrize("name", ELEMENTS)
def test_nan_stays_nan_and_infinity_saturates(name: str):
    largest = np.float32(GRIDS[name].max)
    rounded = round_nearest(np.array([np.nan, -np.nan, np.inf, -np.inf], np.float32), name)
    np.testing.assert_array_equal(rounded, [np.nan, np.nan, largest, -largest])


@pytest.mark.parametrize("name", ELEMENTS)
def test_vmap_and_jit_round_alike(name: str):
    y = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32) * 4
    rounded = jax.vmap(lambda y: round_to_grid(y, ELEMENTS[name]))(jnp.asarray(y))
    assert_same_bits(np.asarray(rounded), round_nearest(y, name))
