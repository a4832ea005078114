"""Stochastic rounding is exact: ceil(fraction * 2^24) of the 2^24 noise values round up.

Up is away from zero; of integers it is up, and the nearest number of noise values that does it.
Noise is an argument of ``round_to_grid``, so nothing is a matter of chance. As rounding is
monotonic in the noise, a count is proved by the noise values at both sides of it; that the code is
monotonic is shown by going through all noise values for some inputs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles.grids import GRIDS, NOISE
from srjit.numerics import random_bits
from srjit.numerics.elements import ELEMENTS
from srjit.numerics.encode import stochastic_round
from srjit.numerics.formats import FORMATS
from srjit.numerics.rounding import round_to_grid

from .support import SMALL_FLOATS, assert_same_bits, every_16_bit_float

WORDS = 2**32


@functools.partial(jax.jit, static_argnums=0)
def _round(name: str, y: jax.Array, bits: jax.Array) -> jax.Array:
    return round_to_grid(y, ELEMENTS[name], bits)


def rounded(name: str, y: np.ndarray, noise: np.ndarray, low_byte: int) -> np.ndarray:
    """y rounded with 24-bit noise; the word's lowest byte is not to matter."""
    words = (noise.astype(np.uint64) << 8 | low_byte).astype(np.uint32)
    return np.asarray(_round(name, y, np.broadcast_to(words, y.shape)))


def assert_counts_are_exact(name: str, y: np.ndarray) -> None:
    """That each y is rounded up by the last noise values, as many as its count, and by no other."""
    grid = GRIDS[name]
    low, high = (v.astype(y.dtype) for v in grid.neighbours(y))
    first = NOISE - grid.noise_that_rounds_up(y)
    spread = np.random.default_rng(7).integers(0, NOISE, (4, y.size))
    for noise in (first - 1, first, np.zeros_like(first), first * 0 + NOISE - 1, *spread):
        noise = np.clip(noise, 0, NOISE - 1)
        expected = np.where(noise >= first, high, low)
        for low_byte in (0, 255):
            assert_same_bits(rounded(name, y, noise, low_byte), expected)


def inside_every_cell(name: str, dtype: type) -> np.ndarray:
    """Numbers of ``dtype`` in the cells of a grid: its ends, next to them, between, both signs.

    Every cell of the small grids; of the 16-bit ones, some of every binade.
    """
    grid = GRIDS[name].magnitudes
    stride = max(1, len(grid) // 4096)
    low, high = grid[:-1:stride, None], grid[1::stride, None]
    small = np.array([2.0**-6, 0.75, 1, 1.5]) * 2.0**-24
    fractions = np.concatenate([[0, 1 - 2.0**-24], small, np.arange(1, 16) / 16])
    inner = (low + (high - low) * np.sort(fractions)).astype(dtype)
    beside = [
        np.nextafter(low.astype(dtype), dtype(np.inf)),
        np.nextafter(high.astype(dtype), dtype(0)),
    ]
    y = np.unique(np.concatenate([inner.ravel(), *map(np.ravel, beside), [dtype(grid[-1])]]))
    return without_flushed(name, np.concatenate([y, -y]))


def without_flushed(name: str, y: np.ndarray) -> np.ndarray:
    """y without what CPUs flush to zero, unless the element has steps as small as that."""
    exact = name == "bfloat16" and y.dtype == np.float32
    return y if exact else y[(y == 0) | (np.abs(y) >= np.finfo(y.dtype).tiny)]


@pytest.mark.parametrize("source", SMALL_FLOATS)
@pytest.mark.parametrize("name", ELEMENTS)
def test_every_16_bit_float_rounds_up_with_its_fraction(name: str, source: str):
    assert_counts_are_exact(name, without_flushed(name, every_16_bit_float(source)))


@pytest.mark.parametrize("name", sorted(set(ELEMENTS) - {"bfloat16"}))
def test_subnormals_round_to_zero_unless_the_noise_is_the_largest(name: str):
    """Their fraction is below 2^-24, so that this is exact whether they are flushed or not."""
    y = np.array([1, 2**22, 2**23 - 1], np.uint32).view(np.float32)
    last = np.full(3, NOISE - 1)
    assert not rounded(name, -y, last - 1, 0).any()
    assert set(np.abs(rounded(name, y, last, 0))) <= set(GRIDS[name].magnitudes[:2])


@pytest.mark.parametrize("name", ELEMENTS)
def test_float32_in_every_cell_rounds_up_with_its_fraction(name: str):
    assert_counts_are_exact(name, inside_every_cell(name, np.float32))


@pytest.mark.parametrize("name", ELEMENTS)
def test_float64_in_every_cell_rounds_up_with_its_fraction(name: str):
    with jax.enable_x64(True):
        assert_counts_are_exact(name, inside_every_cell(name, np.float64))


@pytest.mark.parametrize("name", ELEMENTS)
def test_numbers_beyond_the_largest_value_saturate_for_any_noise(name: str):
    largest = np.float32(GRIDS[name].max)
    y = np.array([np.nextafter(largest, np.float32(np.inf)), 3.4e38, np.inf], np.float32)
    assert_counts_are_exact(name, np.concatenate([y, -y]))


@pytest.mark.parametrize("name", ELEMENTS)
def test_values_of_the_grid_never_move(name: str):
    is_integer = ELEMENTS[name].is_integer  # which have no zero with a sign
    magnitudes = GRIDS[name].magnitudes.astype(np.float32)
    y = np.concatenate([magnitudes, -magnitudes])
    noise = np.random.default_rng(0).integers(0, WORDS, (8, y.size), dtype=np.uint32)
    for bits in (np.zeros_like(noise[0]), np.full_like(noise[0], WORDS - 1), *noise):
        assert_same_bits(np.asarray(_round(name, y, bits)), y + 0.0 if is_integer else y)


@pytest.mark.parametrize("name", ELEMENTS)
def test_going_through_all_noise_values_counts_the_fraction(name: str):
    grid = GRIDS[name]
    low, high = grid.magnitudes[-2:].astype(np.float32)  # the cell of the largest element
    everything = np.arange(NOISE, dtype=np.uint32) << 8
    count_up = jax.jit(lambda y, bits: jnp.sum(_round(name, y, bits) == high))
    for y in (
        np.nextafter(low, high),
        low + (high - low) * np.float32(0.3),
        np.nextafter(high, low),
    ):
        count = int(count_up(np.broadcast_to(y, NOISE), everything))
        assert count == grid.noise_that_rounds_up(y)
        assert abs(count / NOISE - grid.fraction(y)) < 2.0**-24


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ELEMENTS)
def test_stochastic_round_uses_the_noise_of_its_key_and_returns_the_element(name: str, dtype: str):
    x = (jax.random.normal(jax.random.key(1), (64, 33)) * 2).astype(dtype)
    y = np.asarray(x.astype(jnp.float32))
    codes = jax.jit(stochastic_round, static_argnums=1)(x, name, jax.random.key(5))
    bits = random_bits.random_bits(random_bits.as_key(jax.random.key(5)), x)
    up = (np.asarray(bits) >> 8) >= NOISE - GRIDS[name].noise_that_rounds_up(y)
    low, high = GRIDS[name].neighbours(y)
    assert codes.dtype == jnp.dtype(name)
    np.testing.assert_array_equal(np.asarray(codes).astype(float), np.where(up, high, low))


def test_stochastic_round_takes_names_of_formats():
    for name, fmt in FORMATS.items():
        if fmt.element.name not in ELEMENTS:
            continue  # no dtype has just these values
        codes = stochastic_round(jnp.float32(2.7), name, 1)
        assert codes.dtype == fmt.storage.dtype
        assert float(codes) == float(stochastic_round(jnp.float32(2.7), fmt.storage.dtype, 1))


@pytest.mark.parametrize("name", ELEMENTS)
def test_stochastic_round_keeps_nan_and_infinity_where_the_dtype_has_them(name: str):
    x = jnp.array([np.nan, np.inf, -np.inf])
    codes = np.asarray(stochastic_round(x, name, 0)).astype(float)
    largest = GRIDS[name].max
    expected = {
        "bfloat16": [np.nan, np.inf, -np.inf],
        "float16": [np.nan, np.inf, -np.inf],
        "float8_e5m2": [np.nan, np.inf, -np.inf],
        "float8_e4m3fn": [np.nan, np.nan, np.nan],
    }
    np.testing.assert_array_equal(codes, expected.get(name, [0, largest, -largest]))


def test_1_4_becomes_1_six_times_in_ten_and_2_four_times_in_ten():
    codes = np.asarray(stochastic_round(jnp.full(2**20, 1.4), "int8", 3)).astype(int)
    assert set(np.unique(codes)) == {1, 2}
    deviation = (codes == 2).mean() - np.float32(1.4) + 1
    assert abs(deviation) < 4.89 * np.sqrt(0.24 / 2**20)  # two-sided, 1e-6


def test_float64_keeps_fractions_that_float32_would_lose():
    with jax.enable_x64(True):
        y = np.array([1 + 2.0**-40, 2 - 2.0**-40])
        assert_counts_are_exact("int8", y)
        assert list(GRIDS["int8"].noise_that_rounds_up(y)) == [0, NOISE]
        assert_counts_are_exact("float8_e5m2", y)
        assert list(GRIDS["float8_e5m2"].noise_that_rounds_up(y)) == [1, NOISE]


FLOATS = sorted(name for name, e in ELEMENTS.items() if not e.is_integer)


@pytest.mark.parametrize("name", FLOATS)
def test_float64_below_the_smallest_normal_number_is_rounded_in_the_end_too(name: str):
    """The returned arrays hold the grid's numbers: the cast flushes none of them."""
    grid = np.sort(GRIDS[name].magnitudes)[: 2 ** (7 if name == "bfloat16" else 8)]
    down, up = (np.repeat(side, 256) for side in (grid[:-1], grid[1:]))
    with jax.enable_x64(True):
        run = jax.jit(lambda x: stochastic_round(x, name, 7))

        def stochastic(x: np.ndarray) -> np.ndarray:
            return np.asarray(run(x)).astype(np.float64)

        for sign in (1, -1):
            exact = stochastic(sign * grid)
            np.testing.assert_array_equal(exact, sign * grid)
            np.testing.assert_array_equal(np.signbit(exact), np.signbit(sign * grid))
            for fraction in (0.25, 0.5):
                got = sign * stochastic(sign * (down + fraction * (up - down)))
                assert np.isin(got, grid).all() and ((got == down) | (got == up)).all()
                count, n = (got == up).sum(), len(got)
                assert abs(count - fraction * n) < 5 * (n * fraction * (1 - fraction)) ** 0.5
            tiny = stochastic(np.full(512, sign * grid[1] * 2.0**-30))  # up once in 2^24
            assert set(np.abs(tiny)) <= {0.0, grid[1]} and (tiny == 0).sum() > 510
