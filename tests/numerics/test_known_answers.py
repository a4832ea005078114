"""Sums and steps that nearest rounding gets wrong, and whose stochastic distribution is known.

What stochastic rounding adds has mean zero and variance p (1 - p) step^2 in every step, whatever
went before. So the mean of many runs is exact within its standard error, and their spread is the
sum of those variances; both are tested at both ends, at 1e-6.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from oracles.grids import GRIDS
from srjit.numerics.encode import stochastic_round

FALSE_ALARM = 1e-6
RUNS = 128
BF16 = GRIDS["bfloat16"]


class Outcome(NamedTuple):
    nearest: np.ndarray  # where nearest rounding ends
    stochastic: np.ndarray  # where each run ends
    variance: np.ndarray  # what rounding has added to each run


def bf16_step(y: jax.Array) -> jax.Array:
    """The distance of bfloat16 numbers around y."""
    return jnp.exp2(jnp.floor(jnp.log2(jnp.abs(y))) - 7)


def walk(start: float, change: Callable[[jax.Array, jax.Array], jax.Array], steps: int) -> Outcome:
    """x <- round(x + change(x, step)) in bfloat16, in RUNS runs and to nearest."""

    def step(carry: tuple[jax.Array, ...], i: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        runs, variance, nearest = carry
        exact = runs + change(runs, i)
        units = exact / bf16_step(exact)
        p = units - jnp.floor(units)
        variance = variance + p * (1 - p) * bf16_step(exact) ** 2
        rounded = stochastic_round(exact, jnp.bfloat16, i).astype(jnp.float32)
        nearest = (nearest + change(nearest, i)).astype(jnp.bfloat16).astype(jnp.float32)
        return (rounded, variance, nearest), None

    runs = jnp.full(RUNS, start, jnp.float32)
    zeros = jnp.zeros(RUNS, jnp.float32)
    last, _ = jax.jit(lambda *carry: jax.lax.scan(step, carry, jnp.arange(1, steps + 1)))(
        runs, zeros, jnp.float32(start)
    )
    runs, variance, nearest = map(np.asarray, last)
    return Outcome(nearest, runs, variance)


def assert_unbiased(outcome: Outcome, exact: float) -> None:
    """The mean is the exact answer, and the spread the predicted one."""
    variance = outcome.variance.mean()
    z = (outcome.stochastic.mean() - exact) / np.sqrt(variance / RUNS)
    assert abs(z) < stats.norm.isf(FALSE_ALARM / 2)
    ratio = outcome.stochastic.var(ddof=1) * (RUNS - 1) / variance
    assert stats.chi2.ppf(FALSE_ALARM / 2, RUNS - 1) < ratio
    assert ratio < stats.chi2.isf(FALSE_ALARM / 2, RUNS - 1)


def spread(outcome: Outcome) -> float:
    """The standard deviation of one run, to one digit."""
    return round(float(np.sqrt(outcome.variance.mean())), 1)


def test_the_harmonic_series_goes_on_growing():
    outcome = walk(0.0, lambda _, k: 1 / k.astype(jnp.float32), 100_000)
    assert outcome.nearest == 5.0625
    assert_unbiased(outcome, (1 / np.arange(1.0, 100_001)).sum())
    assert spread(outcome) == 0.6


def test_a_weight_of_100_takes_steps_of_a_thousandth():
    outcome = walk(100.0, lambda w, _: jnp.full_like(w, 0.001), 10_000)
    assert outcome.nearest == 100
    assert_unbiased(outcome, 110)
    assert spread(outcome) == 2.2


def test_1_plus_a_thousand_thousandths_is_2():
    outcome = walk(1.0, lambda w, _: jnp.full_like(w, 0.001), 1000)
    assert outcome.nearest == 1
    assert_unbiased(outcome, 2)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_copies_of_0_3_add_up_on_integers(name: str):
    n = 2**14
    x = jnp.full((RUNS, n), 0.3, jnp.float32)
    sums = np.asarray(stochastic_round(x, name, 1).astype(jnp.int32).sum(1), np.float32)
    assert not np.rint(np.asarray(x)).any()
    assert_unbiased(Outcome(np.float32(0), sums, np.full(RUNS, 0.21 * n)), float(x[0, 0]) * n)


def test_heat_goes_on_flowing():
    """u_t = u_xx on a ring: the sine's amplitude shrinks by one factor a step, in the mean."""
    n, rate, steps = 64, 0.02, 4000
    sine = np.sin(2 * np.pi * np.arange(n) / n)
    start = sine.astype(ml_dtypes.bfloat16).astype(np.float32)
    factor = 1 - 4 * rate * np.sin(np.pi / n) ** 2

    def flow(u: jax.Array) -> jax.Array:
        return u + rate * (jnp.roll(u, 1, -1) - 2 * u + jnp.roll(u, -1, -1))

    def amplitude(u: np.ndarray) -> np.ndarray:
        return u @ sine / (sine @ sine)

    def step(carry: tuple[jax.Array, ...], i: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        runs, variance, nearest = carry
        exact = flow(runs)
        size = jnp.where(exact == 0, 1, bf16_step(exact))
        p = exact / size - jnp.floor(exact / size)
        added = (p * (1 - p) * (size * sine / (sine @ sine)) ** 2).sum(-1)
        rounded = stochastic_round(exact, jnp.bfloat16, i).astype(jnp.float32)
        nearest = flow(nearest).astype(jnp.bfloat16).astype(jnp.float32)
        return (rounded, variance * factor**2 + added, nearest), None

    runs = jnp.broadcast_to(start, (RUNS, n))
    carry = (runs, jnp.zeros(RUNS), jnp.asarray(start))
    last, _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps)))(carry)
    runs, variance, nearest = map(np.asarray, last)
    exact = amplitude(start) * factor**steps
    assert_unbiased(Outcome(nearest, amplitude(runs), variance), exact)
    assert abs(amplitude(nearest) - exact) > 10 * np.abs(amplitude(runs) - exact).max()


def test_a_regression_with_bfloat16_weights_arrives():
    """Gradient descent is linear here, so the mean of the weights is that of exact arithmetic."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((256, 8)), jnp.float32)
    truth = jnp.asarray(rng.standard_normal(8), jnp.float32)
    y, rate = x @ truth, 1e-3

    def descend(w: jax.Array) -> jax.Array:
        return w - rate * 2 / 256 * (w @ x.T - y) @ x

    def step(carry: tuple[jax.Array, ...], i: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        runs, nearest, exact = carry
        runs = stochastic_round(descend(runs), jnp.bfloat16, i).astype(jnp.float32)
        nearest = descend(nearest).astype(jnp.bfloat16).astype(jnp.float32)
        return (runs, nearest, descend(exact)), None

    carry = (jnp.zeros((RUNS, 8)), jnp.zeros(8), jnp.zeros(8))
    last, _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(5000)))(carry)
    runs, nearest, exact = map(np.asarray, last)
    t = (runs.mean(0) - exact) / np.sqrt(runs.var(0, ddof=1) / RUNS)
    assert np.abs(t).max() < stats.t.isf(FALSE_ALARM / 2 / t.size, RUNS - 1)
    assert np.square(nearest - truth).sum() > 100 * np.square(runs - truth).sum(1).max()
