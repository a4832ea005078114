"""Averages of many draws: unbiased formats gain a bit for every factor 4, clipping ones stop.

The squared error of an average of B draws is known exactly: its mean is the sum of p (1 - p) size^2
/ B, and its variance follows from the fourth moment of a Bernoulli variable. A bias of a hundredth
of a step in every element would stand out. Elements beyond the largest code are always clipped by
the same, and otherwise do not count.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from oracles import scales as oracle
from oracles.grids import GRIDS
from srjit.numerics import hadamard, random_bits
from srjit.numerics.arrays import dequantize
from srjit.numerics.encode import encode, quantize
from srjit.numerics.formats import FORMATS
from srjit.numerics.quantization import Quantization

FALSE_ALARM = 1e-6
SHAPE = (256, 256)
DRAWS = (1, 64, 1024)
X = np.random.default_rng(11).standard_normal(SHAPE).astype(np.float32)
LARGE = np.random.default_rng(12).standard_normal((1024, 1024)).astype(np.float32)

# Formats whose own scales may clip; "up" makes them unbiased.
CLIPPING = [f.name for f in FORMATS.values() if f.scales.dtype is not None]
UNBIASED = [
    Quantization(format=name, rounding="stochastic", scale_rounding=scale_rounding)
    for name in FORMATS
    for scale_rounding in (("up",) if name in CLIPPING else ("standard",))
]


@functools.lru_cache
def averages(spec: Quantization) -> dict[int, np.ndarray]:
    """Averages of the codes of B draws."""

    def add(step: jax.Array, total: jax.Array) -> jax.Array:
        return total + encode(jnp.asarray(X), spec, random_bits.as_key(step)).codes

    totals = jax.jit(lambda first, last, total: jax.lax.fori_loop(first, last, add, total))
    result, total, done = {}, jnp.zeros(SHAPE), 0
    for count in DRAWS:
        total, done = totals(done, count, total), count
        result[count] = np.asarray(total, np.float64) / count
    return result


def sizes(spec: Quantization) -> np.ndarray:
    """What each code is multiplied by."""
    q = quantize(X, spec, 0)
    ones = np.ones(SHAPE)
    scale = np.asarray(q.scale).astype(np.float64)
    tensor_scale = None if q.tensor_scale is None else np.asarray(q.tensor_scale)
    return oracle.Quantized(ones, scale, tensor_scale).dequantized(spec.block_size)


def excess(spec: Quantization, count: int) -> tuple[float, float]:
    """Squared error of an average beyond that of fair coins, in standard deviations; and as clips.

    The second number is the part of the squared error that clipping must cause.
    """
    size, grid = sizes(spec), GRIDS[FORMATS[spec.format].element.name]
    y = X / size
    low, high = grid.neighbours(y)
    p, step = grid.fraction(y), np.abs(high - low) * size
    pq = p * (1 - p)
    clipped = (np.abs(X) - np.minimum(np.abs(y), grid.max) * size) ** 2
    errors = (averages(spec)[count] * size - X) ** 2
    variance = step**4 * (2 * pq**2 / count**2 + pq * (1 - 6 * pq) / count**3)
    fair = step**2 * pq / count
    z = (errors - clipped - fair).sum() / np.sqrt(variance.sum())
    return float(z), float(clipped.sum() / errors.sum())


def bits(spec: Quantization, count: int) -> tuple[float, float]:
    """-log2 of the relative error of an average, and its sampling error, from that of rows."""
    rows = ((averages(spec)[count] * sizes(spec) - X) ** 2).sum(1)
    error = rows.std(ddof=1) / np.sqrt(rows.size) / rows.mean()
    return -0.5 * np.log2(rows.sum() / (X**2).sum()), 0.5 / np.log(2) * error


BOUND = stats.norm.isf(FALSE_ALARM / 2)


@pytest.mark.crossed(1, most=3)
@pytest.mark.parametrize("count", DRAWS)
@pytest.mark.parametrize("spec", UNBIASED, ids=lambda spec: spec.format)
def test_averages_gain_a_bit_for_every_factor_4(spec: Quantization, count: int):
    z, clipped = excess(spec, count)
    assert abs(z) < BOUND
    assert clipped < 1e-6


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("name", CLIPPING)
def test_scales_of_the_specifications_clip_so_that_averages_stop(name: str):
    z, clipped = excess(Quantization(format=name, rounding="stochastic"), 1024)
    assert abs(z) < BOUND
    assert clipped > 0.5


@pytest.mark.parametrize(("count", "published"), list(zip(DRAWS, (2.86, 5.66, 6.53), strict=True)))
def test_nvfp4_stops_at_6_and_a_half_bits(count: int, published: float):
    measured, error = bits(Quantization(format="nvfp4", rounding="stochastic"), count)
    assert abs(measured - published) < 0.005 + BOUND * error


def assert_mean(values: np.ndarray, expected: float, digit: float) -> None:
    """Within the published digit and the sampling error of rows, which share no block."""
    rows = values.mean(1)
    error = BOUND * rows.std(ddof=1) / np.sqrt(rows.size)
    assert abs(rows.mean() - expected) < digit / 2 + error


EDEN = Quantization(format="nvfp4", rounding="stochastic", scale_rounding="eden", hadamard=True)


def eden(x: jax.Array, step: jax.Array | int) -> jax.Array:
    """What is left of x after MS-EDEN with signs of a step, rotated back."""
    noise, signs = (random_bits.mix(random_bits.as_key(step), n) for n in (0, 1))
    rotated = dequantize(encode(hadamard.flipped(x, 1, signs), EDEN, noise))
    back = rotated.reshape(-1, 128) @ hadamard.matrix(128).T
    return hadamard.flipped(back.reshape(x.shape), 1, signs)


@functools.cache
def eden_bits(is_sparse: bool) -> dict[int, tuple[float, float]]:
    """As ``bits``: of averages of so many draws of a Gaussian tensor, or of 5 % of it."""
    kept = np.random.default_rng(13).random(SHAPE) < 0.05
    x = jnp.asarray(np.where(kept, X, 0) if is_sparse else X)
    add = lambda step, total: total + eden(x, step)  # noqa: E731
    totals = jax.jit(lambda first, last, total: jax.lax.fori_loop(first, last, add, total))
    found, total, done = {}, jnp.zeros(SHAPE), 0
    for count in DRAWS:
        total, done = totals(done, count, total), count
        rows = ((np.asarray(total, np.float64) / count - x) ** 2).sum(1)
        error = rows.std(ddof=1) / np.sqrt(rows.size) / rows.mean()
        relative = rows.sum() / np.sum(np.square(x, dtype=np.float64))
        found[count] = float(-0.5 * np.log2(relative)), float(0.5 / np.log(2) * error)
    return found


@pytest.mark.nightly  # minutes
@pytest.mark.parametrize("count", DRAWS[1:])
def test_averages_of_eden_gain_a_bit_for_every_factor_4(count: int):
    (first, error), (last, other) = (eden_bits(is_sparse=False)[n] for n in (1, count))
    assert abs(last - first - np.log2(count) / 2) < BOUND * np.hypot(error, other)


@pytest.mark.nightly  # minutes
def test_averages_of_eden_stop_where_a_hadamard_transform_is_not_random_enough():
    """Of few elements that are not zero, it makes few different magnitudes, whatever the signs."""
    (some, error), (more, other) = (eden_bits(is_sparse=True)[n] for n in (64, 1024))
    assert more - some + BOUND * np.hypot(error, other) < 1  # in place of 2


def test_eden_has_a_relative_error_of_9_8_thousandths_with_scales_rounded_stochastically():
    tensors = np.random.default_rng(14).standard_normal((64, *SHAPE)).astype(np.float32)
    one = jax.jit(lambda x, step: ((eden(x, step) - x) ** 2).sum() / (x**2).sum())
    errors = np.array([float(one(x, step)) for step, x in enumerate(tensors)])
    bound = stats.t.isf(FALSE_ALARM / 2, df=63) * errors.std(ddof=1) / 8
    assert abs(errors.mean() - 9.8e-3) < 0.05e-3 + bound


def test_nvfp4_has_a_relative_error_of_9_thousandths_and_clips_3_5_percent():
    q = jax.jit(quantize, static_argnums=1)(LARGE, Quantization(format="nvfp4"))
    error = np.asarray(dequantize(q), np.float64) - LARGE
    assert_mean(error**2, 9.0e-3, 1e-4)  # the relative error, as the variance is 1
    size = np.asarray(q.scale).astype(np.float64) * float(q.tensor_scale)
    y = np.abs(LARGE) / np.repeat(size, 16, axis=1)
    assert_mean(y > 6, 0.035, 1e-3)


def test_scales_rounded_up_clip_nothing():
    for name in CLIPPING:
        q = jax.jit(quantize, static_argnums=1)(
            LARGE, Quantization(format=name, scale_rounding="up")
        )
        scale = np.asarray(q.scale).astype(np.float64)
        size = scale * (1 if q.tensor_scale is None else float(q.tensor_scale))
        y = np.abs(LARGE) / np.repeat(size, q.spec.block_size, axis=1)
        assert y.max() <= GRIDS[FORMATS[name].element.name].max * (1 + 2.0**-22)
