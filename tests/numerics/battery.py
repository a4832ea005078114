"""Statistical tests of the upper 24 bits of words, in NumPy: what runs where dieharder is not.

Each returns p-values, small or near 1 where the words are not random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from scipy import special, stats

FALSE_ALARM = 1e-6


def two_sided(p: Iterable[float]) -> float:
    """The least probable of many p-values, at either end, times their number."""
    p = np.asarray(list(p))
    return float(np.minimum(p, 1 - p).min() * 2 * p.size)


def chi_squared(counts: np.ndarray, probabilities: np.ndarray | None = None) -> float:
    expected = counts.sum() * (1 / counts.size if probabilities is None else probabilities)
    return float(special.chdtrc(counts.size - 1, ((counts - expected) ** 2 / expected).sum()))


def gaussian(z: np.ndarray) -> np.ndarray:
    return stats.norm.sf(np.ravel(z))


def bit_balance(words: np.ndarray) -> Iterable[float]:
    """Every one of the bits is set half the time."""
    ones = np.array([np.count_nonzero(words & np.uint32(1 << b)) for b in range(8, 32)])
    return gaussian((2 * ones - words.size) / math.sqrt(words.size))


def values(words: np.ndarray) -> Iterable[float]:
    """The upper and the lower 16 bits are uniform."""
    for shift in (16, 8):
        yield chi_squared(np.bincount(words >> shift & 0xFFFF, minlength=2**16))


def pairs(words: np.ndarray) -> Iterable[float]:
    """The upper bytes of words that are a lag apart are independent."""
    top = words >> 24
    for lag in (1, 2, 3, 4, 8, 16, 64, 1024, 4096):
        yield chi_squared(np.bincount(top[:-lag] << 8 | top[lag:], minlength=2**16))


def triples(words: np.ndarray) -> Iterable[float]:
    """Three successive words fill the cube."""
    top = (words >> 27)[: words.size // 3 * 3].reshape(-1, 3)
    yield chi_squared(np.bincount(top @ [1024, 32, 1], minlength=2**15))


def correlations(words: np.ndarray, lags: int = 64) -> Iterable[float]:
    """Neither uniform numbers nor their squares go with those that are 1 to 64 later."""
    u = (words >> 8) * 2.0**-24 - 0.5
    for v in (u * math.sqrt(12), (u**2 - 1 / 12) * math.sqrt(180)):
        products = [v[:-lag] @ v[lag:] for lag in range(1, lags + 1)]
        yield from gaussian(np.array(products) / math.sqrt(words.size - lags))


def agreements(words: np.ndarray) -> Iterable[float]:
    """Every bit equals that of a later word half the time."""
    for lag in (1, 2, 3, 4, 8, 16, 64):
        yield from bit_balance(words[lag:] ^ words[:-lag])


def spectrum(words: np.ndarray) -> Iterable[float]:
    """No frequency stands out."""
    u = (words >> 8) * 2.0**-24 - 0.5
    power = np.abs(np.fft.rfft(u)[1:-1]) ** 2 * 12 / u.size  # exponential, mean 1
    yield -math.expm1(power.size * math.log1p(-math.exp(-power.max())))
    yield from gaussian(np.array([(power.mean() - 1) * math.sqrt(power.size * 5 / 2)]))


def orders(words: np.ndarray) -> Iterable[float]:
    """All orders of 5 successive words are equally probable."""
    groups = words[: words.size // 5 * 5].reshape(-1, 5)
    codes = (groups[:, :, None] > groups[:, None, :])[:, *np.triu_indices(5, 1)] @ (
        1 << np.arange(10)
    )
    counts = np.bincount(codes)
    yield chi_squared(counts[counts > 0] if (counts > 0).sum() == 120 else counts)


def ranks(words: np.ndarray) -> Iterable[float]:
    """24 x 24 matrices of bits have the ranks that they should."""
    rows = words[: words.size // 24 * 24].reshape(-1, 24)[: 1 << 15].copy()
    rank = np.zeros(len(rows), int)
    for bit in range(8, 32):
        has = (rows >> np.uint32(bit) & 1).astype(bool)
        pivot = has.argmax(1)
        found = has.any(1)
        pivot_row = np.where(found, rows[np.arange(len(rows)), pivot], 0).astype(np.uint32)
        rows ^= np.where(has, pivot_row[:, None], 0).astype(np.uint32)  # the pivot itself too
        rank += found
    counts = np.array([(rank == 24).sum(), (rank == 23).sum(), (rank <= 22).sum()])
    full = math.prod(1 - 2.0**-i for i in range(1, 25))
    one_less = full * 2 * (1 - 2.0**-24)
    yield chi_squared(counts, np.array([full, one_less, 1 - full - one_less]))


def birthday_spacings(words: np.ndarray) -> Iterable[float]:
    """512 birthdays in 2^24 days leave a Poisson-distributed number of equal spacings, mean 2."""
    days_of = (words >> 8)[: words.size // 512 * 512].reshape(-1, 512)
    for turn in (0, 8, 16):  # which of their bits count most
        days = (days_of << turn | days_of >> (24 - turn)) & 0xFFFFFF
        spacings = np.sort(np.diff(np.sort(days.astype(np.int64), axis=1), axis=1), axis=1)
        equal = (np.diff(spacings, axis=1) == 0).sum(1)
        counts = np.bincount(np.minimum(equal, 8), minlength=9)
        expected = stats.poisson.pmf(np.arange(9), 2)
        expected[8] = stats.poisson.sf(7, 2)
        yield chi_squared(counts, expected)


TESTS: tuple[Callable[[np.ndarray], Iterable[float]], ...] = (
    bit_balance,
    values,
    pairs,
    triples,
    correlations,
    agreements,
    spectrum,
    orders,
    ranks,
    birthday_spacings,
)


def rejections(words: np.ndarray) -> Iterator[str]:
    """The tests whose result is less probable than 1e-6, corrected for their number."""
    for test in TESTS:
        if (p := two_sided(test(words))) < FALSE_ALARM / len(TESTS):
            yield f"{test.__name__}: p = {p:.1e}"
