"""The page about stochastic rounding runs, and what it finds is what is known.

Limits are two-sided, and made from the number of samples: each assertion about means and deviations
of noise fails for a correct program with a probability below 1e-6. Results of rounding to nearest
are exact; limits on how far trainings get are round numbers.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

pytestmark = pytest.mark.slow  # all wait for the page, which takes about ten seconds

PAGE = (Path(__file__).parents[2] / "docs" / "stochastic_rounding.md").read_text(encoding="utf-8")
FALSE_ALARM = 1e-6
Z = float(stats.norm.isf(FALSE_ALARM / 2))


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page defines, and in ``printed`` what each of its blocks prints."""
    names: dict[str, Any] = {}
    printed: list[str] = []
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(block, names)
        printed.append(out.getvalue())
    return names | {"printed": printed}


def close(value: Any, exact: Any, deviation: Any, slack: float = 0.0) -> None:
    """``value``, of that standard deviation, is as far off as noise and ``slack`` make it."""
    assert np.all(np.abs(value - exact) <= Z * deviation + slack)


def has_deviation(runs: np.ndarray, low: float, high: float) -> None:
    """The standard deviation of what ``runs`` are drawn from is between the two."""
    n = len(runs) - 1
    squares = runs.var(ddof=1) * n
    assert squares > low**2 * stats.chi2.ppf(FALSE_ALARM / 2, n)
    assert squares < high**2 * stats.chi2.isf(FALSE_ALARM / 2, n)


def is_unbiased(runs: np.ndarray, exact: np.ndarray, slack: float) -> None:
    """The means of all columns are exact but for ``slack``, by Student's test of each."""
    n = len(runs)
    error = runs.std(0, ddof=1) / np.sqrt(n)
    limit = stats.t.isf(FALSE_ALARM / 2 / exact.size, n - 1)
    assert np.all(np.abs(runs.mean(0) - exact) <= limit * error + slack)


def test_the_page_prints_what_it_says(page: dict[str, Any]):
    """Word for word; digits may depend on the CPU, and are tested below."""
    said = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    masked = [re.sub(r"[-\d.e]*\d", "#", text) for text in said]
    printed = [re.sub(r"[-\d.e]*\d", "#", text) for text in page["printed"] if text]
    assert printed == masked


# ------------------------------------------------------------------------------------- the claims


def test_a_pool_fills_by_teaspoons(page: dict[str, Any]):
    nearest, runs = page["pool"]
    p = 1 / 768  # of rounding up, in each of 3840 steps: a binomial
    assert nearest == 0
    close(runs.mean(), 5, np.sqrt(5 * (1 - p) / len(runs)), slack=3840 * 2.0**-22)
    assert np.all(runs == np.rint(runs))


def test_1_4_is_1_or_2(page: dict[str, Any]):
    draws = page["draws"]
    assert set(draws) == {1, 2}
    close(np.mean(draws == 2), 0.4, np.sqrt(0.24 / draws.size))


def test_mean_and_variance_are_those_of_the_remainder(page: dict[str, Any]):
    for p, mean, variance in page["moments"]:
        deviation = np.sqrt(p * (1 - p) / page["count"])
        close(mean, p, deviation)
        # There are two values a step apart, so the variance is mean (1 - mean).
        close(variance, p * (1 - p), abs(1 - 2 * p) * deviation, slack=(Z * deviation) ** 2 + 1e-9)


def test_errors_of_sums_grow_as_the_root(page: dict[str, Any]):
    for n, errors in page["sums"].items():
        close(errors.mean(), 0, np.sqrt(0.21 * n / len(errors)), slack=n * 2e-8)
        has_deviation(errors, np.sqrt(0.21 * n), np.sqrt(0.21 * n))


def test_updates_vanish_to_nearest_and_add_up_stochastically(page: dict[str, Any]):
    losses = {name: loss for name, (_, loss) in page["ends"].items()}
    exact, nearest = losses["float32"], losses["bfloat16, nearest"]
    assert nearest > 2 * exact
    for name in ("bfloat16, stochastic", "Optax"):
        assert abs(losses[name] - exact) < 0.01 * (nearest - exact)
    assert page["unmoved"] > 0.99 and page["norm"] > 1


def test_seeds_make_runs_repeat(page: dict[str, Any]):
    assert "again: True\nresumed: True\nanother seed: False\n" in page["printed"]


# -------------------------------------------------------------------------- the table, row by row


@pytest.mark.parametrize(
    ("name", "nearest", "exact", "known", "deviation", "digit", "float32"),
    [
        ("harmonic", 5.0625, (1 / np.arange(1, 100_001)).sum(), 12.06, 0.61, 0.01, 1e5 * 2.0**-21),
        ("weight", 100.0, 110.0, 109.9, 2.2, 0.1, 1e4 * 2.0**-18),
        ("one", 1.0, 2.0, 2.00, 0.09, 0.01, 1e3 * 2.0**-23),
    ],
)
def test_small_terms_add_up(
    page: dict[str, Any],
    name: str,
    nearest: float,
    exact: float,
    known: float,
    deviation: float,
    digit: float,
    float32: float,
):
    """Mean and deviation are those that the table has, to its last digit.

    ``float32`` is what adding in float32 may be off by in all steps together.
    """
    at_nearest, runs = page[name]
    assert at_nearest == nearest
    low, high = deviation - digit / 2, deviation + digit / 2
    close(runs.mean(), exact, high / np.sqrt(len(runs)), slack=float32)
    has_deviation(runs, low, high)
    assert abs(runs.mean() - known) < deviation


def test_the_harmonic_series_is_stuck_after_64_terms(page: dict[str, Any]):
    assert page["first"][0] == page["harmonic"][0] == 5.0625
    assert page["repeat"](lambda total, k: total + 1 / k, 0.0, 63, runs=1)[0] < 5.0625


@pytest.mark.parametrize("n", [64, 1024, 16384])
def test_copies_of_0_3_on_integers(page: dict[str, Any], n: int):
    assert not np.rint(np.full(n, 0.3)).any()  # so that the error is 0.3 n
    has_deviation(page["sums"][n], np.sqrt(0.21 * n), np.sqrt(0.21 * n))


def test_the_heat_equation(page: dict[str, Any]):
    nearest, runs = page["rods"]
    errors = page["of_rod"](runs)
    assert round(float(page["of_rod"](nearest)), 2) == 1.68
    # Steps are linear, so the mean of the profiles is the profile of exact arithmetic.
    start = page["rod"].astype(page["jnp"].bfloat16).astype(np.float64)
    for _ in range(1000):
        start[1:-1] += (start[:-2] - 2 * start[1:-1] + start[2:]) / 4
    is_unbiased(runs, start, 1000 * 2.0**-25)  # what float32 may be off by
    # One run's error was 0.0058: of 256 runs some are below and some above. If at least 6 % of all
    # runs are on each side, that fails with a probability below 1e-6.
    assert errors.min() < 0.0058 < errors.max() < 0.1


def test_linear_regression(page: dict[str, Any]):
    nearest, runs = page["weights"]
    inputs, wanted = (page[name].astype(np.float64) for name in ("inputs", "wanted"))
    w = np.zeros(8)
    for _ in range(5000):
        w -= 1e-3 * (w - wanted) @ inputs.T @ inputs / 256
    is_unbiased(runs, w, 5000 * 2.0**-26)
    # The table's set-up is not known: its magnitudes are.
    assert 7.4e-2 / 2 < np.mean((nearest - wanted) ** 2) < 7.4e-2 * 2
    assert 3.1e-5 / 2 < np.mean((runs - wanted) ** 2) < 3.1e-5 * 2
