"""Limits hold for samples of any size, and what is said to be visible is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from srjit.diagnostics.verify.averages import Averages, Error
from srjit.diagnostics.verify.far_pairs import PAIRS, far_pairs
from srjit.diagnostics.verify.statistics import Signed, Test, probability_of_no_change
from srjit.diagnostics.verify.sums import of_parts, of_twins

TRIALS, DRAWS = 4000, 256
FRACTIONS = {
    "evenly spread": lambda rng: rng.uniform(0.01, 0.99, 64),
    "nearly all tiny": lambda rng: 10.0 ** rng.uniform(-7, -1, 64),
    "one element": lambda rng: np.array([0.3]),
    "one that hardly ever rounds up": lambda rng: np.array([1e-4]),
}


def signed(total: float, p: np.ndarray, allowance: float = 0.0) -> Signed:
    variance, n = p * (1 - p), DRAWS * len(p)
    deviations = DRAWS * float(np.sum(np.sqrt(variance)))
    return Signed("bias", "", total, DRAWS * float(np.sum(variance)), n, deviations, allowance)


def sums(p: np.ndarray, rng: np.random.Generator, bias: float = 0.0) -> np.ndarray:
    """Signed sums of many experiments, of elements that round up with probability p + bias."""
    return np.sum(rng.binomial(DRAWS, p + bias, (TRIALS, len(p))) - DRAWS * p, axis=1)


@pytest.mark.parametrize("delta", [0.3, 0.05, 1e-3])
@pytest.mark.parametrize("kind", FRACTIONS)
def test_a_correct_program_is_beyond_its_limit_as_rarely_as_said(kind: str, delta: float):
    rng = np.random.default_rng(0)
    p = FRACTIONS[kind](rng)
    beyond = np.mean(np.abs(sums(p, rng)) > signed(0, p).threshold(delta))
    # Of TRIALS experiments, four deviations more than delta.
    assert beyond <= delta + 4 * math.sqrt(delta / TRIALS)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_bias_that_is_said_to_be_visible_is_seen_and_a_tenth_of_it_is_not(sign: int):
    rng = np.random.default_rng(1)
    p = rng.uniform(0.3, 0.7, 64)
    visible = signed(0, p).judged(1e-6).visible
    seen = [not signed(s, p).judged(1e-6).passed for s in sums(p, rng, sign * visible)]
    assert all(seen)
    hidden = [not signed(s, p).judged(1e-6).passed for s in sums(p, rng, sign * visible / 10)]
    assert not any(hidden)


def test_the_threshold_solves_bernsteins_inequality():
    p = np.full(100, 0.25)
    for delta in (1e-3, 1e-9):
        t, v = signed(0, p).threshold(delta), DRAWS * 100 * 0.1875
        assert 2 * math.exp(-(t**2) / (2 * (v + t / 3))) == pytest.approx(delta)
        assert signed(0, p, allowance=5.0).threshold(delta) == pytest.approx(t + 5)


def test_a_sum_that_is_not_a_number_does_not_pass():
    assert not Test("bias", "", math.nan, 0.1, 1).passed
    assert not Test("bias", "", -0.2, 0.1, 1).passed and Test("bias", "", -0.1, 0.1, 1).passed


def test_the_probability_that_nothing_changes():
    assert probability_of_no_change([0.5], 4) == pytest.approx(math.log10(2 / 16))
    assert probability_of_no_change([0.5, 0.5], 4) == pytest.approx(2 * math.log10(2 / 16))
    assert probability_of_no_change([0.0, 1.0], 256) == 0  # of the grid: they never change


# ---------------------------------------------------------------------------------- averages


def averages(floor: float, elements: int = 4096) -> Averages:
    rng, exact = np.random.default_rng(2), np.ones(elements)
    draws = rng.standard_normal((256, elements)) + floor
    return Averages({n: Error.of(exact + draws[:n].mean(0), exact) for n in (1, 4, 16, 64, 256)})


def test_averages_of_unbiased_noise_gain_a_bit_for_every_factor_of_four():
    found = averages(0.0)
    assert found.bits[1] == pytest.approx(0, abs=0.1)
    assert found.bits[256] == pytest.approx(4, abs=0.1)
    assert found.slope == pytest.approx(1, abs=0.1) and found.plateau is None


def test_averages_of_biased_noise_end_at_the_bias():
    found = averages(2.0**-3)
    assert found.plateau == pytest.approx(3, abs=0.2)
    assert found.slope < 0.8


def test_no_plateau_is_seen_in_the_errors_of_a_few_elements():
    assert averages(2.0**-3, elements=4).plateau is None


def test_an_exact_average_has_infinitely_many_bits():
    exact = np.ones(3)
    found = Averages({n: Error.of(exact, exact) for n in (1, 4)})
    assert found.bits == {1: math.inf, 4: math.inf} and found.plateau is None
    assert str(found) == "exact in every draw"


@pytest.mark.parametrize("kind", ["evenly spread", "nearly all tiny"])
@pytest.mark.parametrize("of", ["parts", "twins"])
def test_tests_of_many_elements_at_once_hold_their_limits(of: str, kind: str):
    """With independent noise the sums vary as stated, and exceed a limit as rarely as stated."""
    rng = np.random.default_rng(2)
    p = FRACTIONS[kind](rng)[rng.integers(0, 64, 24 * 24)]
    ratios, beyond = [], []
    for _ in range(60):
        r = (rng.random((16, p.size)) < p) - p
        signed = (
            of_parts(r.reshape(16, 24, 24), (p * (1 - p)).reshape(24, 24), np.zeros((24, 24)))
            if of == "parts"
            else of_twins(r, p * (1 - p), np.zeros(p.size))
        )
        for s in signed:
            beyond.append(not s.judged(1e-2).passed)
            if s.variance:
                ratios.append(s.total**2 / s.variance)
    assert len(ratios) >= 40 and np.mean(beyond) <= 1e-2 + 4 * math.sqrt(1e-2 / len(beyond))
    if kind == "evenly spread":  # their squares are, on average, the variance that is stated
        assert np.mean(ratios) == pytest.approx(1, abs=6 * np.std(ratios) / math.sqrt(len(ratios)))


@pytest.mark.parametrize("shape", [(7,), (1, 9), (12, 12), (3, 4, 5), (40, 700), (2, 1, 2)])
def test_no_element_is_in_two_pairs_of_a_set(shape: tuple[int, ...]):
    found = far_pairs(shape)
    assert found
    for name, pairs in found.items():
        assert pairs.shape[0] == 2 and len(np.unique(pairs)) == pairs.size <= 2 * PAIRS, name
        assert pairs.min() >= 0 and pairs.max() < np.prod(shape)
    if shape == (12, 12):
        assert {12 * i + j for i, j in np.argwhere(np.tri(12, k=-1))} == set(
            found["dimensions -2 and -1, transposed"].max(0).tolist()
        )


def test_too_few_elements_have_no_pairs():
    assert far_pairs(()) == {}
    assert far_pairs((0, 5)) == {}
