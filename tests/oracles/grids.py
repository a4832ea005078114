"""Element grids decoded bit by bit from their specifications, and rounding to them, exactly.

E2M1, E4M3 and E5M2: OCP Microscaling Formats v1.0 and OCP 8-bit Floating Point v1.0. Integers are
symmetric. All arithmetic here is exact in float64: grid values, their midpoints, and differences
of an input from the grid value below it.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np

NOISE = 2**24  # noise values


@dataclasses.dataclass(frozen=True)
class Grid:
    """Magnitudes in order of their codes, so that an even code is an even place in the list."""

    name: str
    magnitudes: np.ndarray

    @property
    def max(self) -> float:
        return float(self.magnitudes[-1])

    def below(self, magnitude: np.ndarray) -> np.ndarray:
        """The place of the grid value at or below each magnitude, the last cell at most."""
        place = np.searchsorted(self.magnitudes, magnitude, side="right") - 1
        return np.minimum(place, len(self.magnitudes) - 2)

    def nearest(self, y: np.ndarray) -> np.ndarray:
        """y rounded to the nearest value, ties to even codes; saturates, keeps signs of zero."""
        y = np.asarray(y, np.float64)
        place = self.below(np.abs(y))
        low, high = self.magnitudes[place], self.magnitudes[place + 1]
        middle = (low + high) / 2
        up = (np.abs(y) > middle) | ((np.abs(y) == middle) & (place % 2 == 1))
        rounded = np.copysign(np.where(up, high, low), y)
        return np.where(np.isnan(y), np.nan, rounded)

    def up(self, y: np.ndarray) -> np.ndarray:
        """The smallest magnitude of the grid that is at least |y|, with y's sign."""
        place = np.searchsorted(self.magnitudes, np.abs(y), side="left")
        return np.copysign(self.magnitudes[np.minimum(place, len(self.magnitudes) - 1)], y)

    def neighbours(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What y may be rounded to: toward zero and away from it; equal where y is of the grid."""
        y = np.clip(np.asarray(y, np.float64), -self.max, self.max)
        low = self.magnitudes[self.below(np.abs(y))]
        low = np.where(np.abs(y) == self.max, self.max, low)
        return np.copysign(low, y), self.up(y)

    def fraction(self, y: np.ndarray) -> np.ndarray:
        """Where in its cell each y lies: the probability that it is rounded away from zero."""
        y = np.clip(np.asarray(y, np.float64), -self.max, self.max)
        low, high = self.neighbours(y)
        width = np.where(high == low, 1, np.abs(high - low))
        return (np.abs(y) - np.abs(low)) / width

    def noise_that_rounds_up(self, y: np.ndarray) -> np.ndarray:
        """How many of the 2^24 noise values, the last ones, round y away from zero."""
        return np.ceil(self.fraction(y) * NOISE).astype(np.int64)


class Integers(Grid):
    """Stochastic rounding is up or down here, not away from zero or toward it."""

    def neighbours(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What y may be rounded to: down and up."""
        y = np.clip(np.asarray(y, np.float64), -self.max, self.max)
        return np.floor(y) + 0.0, np.ceil(y) + 0.0

    def fraction(self, y: np.ndarray) -> np.ndarray:
        """The probability that y is rounded up."""
        return np.clip(np.asarray(y, np.float64), -self.max, self.max) - self.neighbours(y)[0]

    def noise_that_rounds_up(self, y: np.ndarray) -> np.ndarray:
        """How many of the 2^24 noise values, the last ones, round y up."""
        y = np.clip(np.asarray(y, np.float64), -self.max, self.max)
        return (np.rint(y * NOISE) - self.neighbours(y)[0] * NOISE).astype(np.int64)


def floats(name: str, exponent_bits: int, mantissa_bits: int, not_finite: int) -> Grid:
    """Binary floats with the usual bias, the last ``not_finite`` codes being NaN or Inf."""
    bias = 2 ** (exponent_bits - 1) - 1
    count = 2 ** (exponent_bits + mantissa_bits) - not_finite
    exponents, mantissas = np.divmod(np.arange(count), 2**mantissa_bits)
    significands = mantissas / 2**mantissa_bits + (exponents > 0)
    return Grid(name, np.ldexp(significands, np.maximum(exponents, 1) - bias))


def integers(name: str, largest: int) -> Integers:
    """The integers from -largest to largest."""
    return Integers(name, np.arange(largest + 1, dtype=np.float64))


GRIDS = {
    g.name: g
    for g in (
        integers("int8", 127),
        integers("int4", 7),
        floats("float4_e2m1fn", 2, 1, not_finite=0),
        floats("float8_e4m3fn", 4, 3, not_finite=1),
        floats("float8_e5m2", 5, 2, not_finite=4),
        floats("bfloat16", 8, 7, not_finite=128),
        floats("float16", 5, 10, not_finite=1024),
    )
}


def nearest_by_formula(y: Fraction, m: int | None, e_min: int, largest: Fraction) -> Fraction:
    """round-half-even(|y| / step) * step, step = 2^(max(floor(log2|y|), e_min) - m), exactly."""
    if y == 0:
        return y
    step = Fraction(1) if m is None else Fraction(2) ** (max(floor_log2(abs(y)), e_min) - m)
    rounded = min(round(abs(y) / step) * step, largest)  # Python rounds halves to even
    return rounded if y > 0 else -rounded


def floor_log2(y: Fraction) -> int:
    """The exponent of the largest power of two that is at most y > 0."""
    guess = y.numerator.bit_length() - y.denominator.bit_length()
    return guess if Fraction(2) ** guess <= y else guess - 1
