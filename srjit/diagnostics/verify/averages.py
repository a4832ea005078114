"""Averages of many draws: they gain one bit for every factor of four, or end at a plateau."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np


class Error(NamedTuple):
    """The error of an average.

    Attributes:
      bits: -1/2 log2 of its squared error, relative to the squares of what it should be; infinite
        if there is none.
      terms: how many elements the error is of: (sum of e^2)^2 / (sum of e^4).
    """

    bits: float
    terms: float

    @classmethod
    def of(cls, average: Any, exact: Any) -> Error:
        """The error of an average of float64 arrays."""
        with np.errstate(invalid="ignore", over="ignore"):
            square = (average - exact) ** 2  # of infinite outputs there is none
        error, size = float(np.sum(square)), float(np.sum(exact**2))
        if not error:
            return cls(math.inf, 0.0)
        bits = -0.5 * math.log2(error / size) if size and math.isfinite(error) else math.nan
        return cls(bits, error / float(np.sum(square / error * square)))


@dataclasses.dataclass(frozen=True)
class Averages:
    """Errors of averages.

    Attributes:
      errors: by the number of draws, ascending; 1 is the first.
    """

    errors: dict[int, Error]

    @property
    def bits(self) -> dict[int, float]:
        """-1/2 log2 of the relative squared error, by the number of draws."""
        return {n: error.bits for n, error in self.errors.items()}

    @property
    def slope(self) -> float:
        """Bits gained for every factor of four in draws, late: 1 for unbiased noise."""
        (n, a), (m, b) = list(self.bits.items())[-2:]
        return (b - a) / math.log(m / n, 4)

    @property
    def plateau(self) -> float | None:
        """The bits that more draws would end at; None if what is off may be noise still.

        Of n draws the squared error is noise / n + plateau: two unknowns, from first and last. It
        counts if it is half of the last error, and more than four standard deviations of it.
        """
        (n, first), (m, last) = list(self.errors.items())[0], list(self.errors.items())[-1]  # noqa: RUF015
        if not (math.isfinite(first.bits) and math.isfinite(last.bits)):
            return None
        error = 4.0**-last.bits
        left = (m * error - n * 4.0**-first.bits) / (m - n)
        uncertain = max(1 / 2, 4 / math.sqrt(min(first.terms, last.terms)))
        return -0.5 * math.log2(left) if left > uncertain * error else None

    def __str__(self) -> str:
        first, *_, last = self.bits.values()
        if first == last == math.inf:
            return "exact in every draw"
        end = "" if self.plateau is None else f", plateau at {self.plateau:.1f}"
        return f"{first:.1f} to {last:.1f} bits, slope {self.slope:.2f}{end}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``bits`` by the number of draws, ``slope``, ``plateau``."""
        return {"bits": self.bits, "slope": self.slope, "plateau": self.plateau}


def checkpoints(draws: int) -> list[int]:
    """1, 4, 16, ... and ``draws``."""
    return [*(4**i for i in range(16) if 4**i < draws), draws]
