"""Tests of noise that hold for samples of any size, two-sided, with their power.

S is a sum of independent z_k with means of 0, |z_k| <= 1 and variances that add up to V.
Bernstein's inequality (S. Boucheron, G. Lugosi, P. Massart, "Concentration Inequalities", 2013,
section 2.8):

  P(|S| >= t) <= 2 exp(-t^2 / (2 (V + t / 3)))

The right-hand side is delta at  t = L/3 + sqrt((L/3)^2 + 2 V L),  L = ln(2 / delta).  Gaussian
limits would not do: gradients have many elements whose fraction of a step is tiny, and normal
approximations then raise false alarms in most correct runs.

What S is made of. An element at t = |x| / step rounds up with p = t - floor(t), so its residual
r = (rounded - x) / step has mean 0 and variance p (1 - p), and |r| <= 1. All of these are known:
nothing is estimated. Residuals of different elements and draws are independent, so

  bias          S = sum of r          V = sum of p (1 - p)
  correlation   S = sum of r r'       V = sum of p (1 - p) p' (1 - p')     over disjoint pairs

Arithmetic of finite precision moves the mean of r by ``allowance`` at most: its sum adds to t.

Power. A bias that shifts every r by b moves S by n b: with n b >= 2 t it is missed with a
probability of about delta at most (by the same bound), which is what ``visible`` says.

False alarms. With m tests, each at delta = 10^-6 / m, the probability that a correct program fails
any of them is below 10^-6, whether the tests depend on each other or not (the union bound).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

FALSE_ALARM = 1e-6  # per certificate


@dataclasses.dataclass(frozen=True)
class Signed:
    """One signed sum, before it is known how many tests there are.

    Attributes:
      what: the kind of test: ``bias``, ``neighbours``, ``distances``, ``sums``, ``twins``,
        ``steps`` or ``sites``.
      where: what was summed, in words.
      total: S.
      variance: V of a correct program.
      count: how many terms there are.
      scale: sum of the terms' standard deviations: what a correlation is relative to.
      allowance: what arithmetic may add to |S|.
    """

    what: str
    where: str
    total: float
    variance: float
    count: int
    scale: float
    allowance: float = 0.0

    def threshold(self, delta: float) -> float:
        """The |S| that a correct program exceeds with a probability below ``delta``."""
        third = math.log(2 / delta) / 3
        return third + math.sqrt(third**2 + 6 * self.variance * third) + self.allowance

    def judged(self, delta: float) -> Test:
        """The test at the level ``delta``."""
        limit = self.threshold(delta)
        unit = (self.count if self.what == "bias" else self.scale) or math.inf
        return Test(self.what, self.where, self.total / unit, limit / unit, self.count)


@dataclasses.dataclass(frozen=True)
class Test:
    """The outcome of one two-sided test.

    Attributes:
      what: the kind of test: see ``Signed``.
      where: what was tested, in words.
      found: for a bias, the mean residual in steps; else the coefficient of correlation.
      limit: the magnitude that a correct program stays below.
      count: how many terms were summed.
    """

    __test__ = False  # not one of pytest's

    what: str
    where: str
    found: float
    limit: float
    count: int

    @property
    def passed(self) -> bool:
        """True if a correct program can have this; NaN is none that it can."""
        return abs(self.found) <= self.limit

    @property
    def visible(self) -> float:
        """The smallest coherent effect that this test does not miss: twice its limit."""
        return 2 * self.limit

    @property
    def excess(self) -> float:
        """The value found, in multiples of its limit; infinite for NaN."""
        ratio = abs(self.found) / self.limit if self.limit else math.inf
        return math.inf if math.isnan(ratio) else ratio


def probability_of_no_change(fractions: Any, draws: int) -> float:
    """log10 of the probability that independent noise rounds no element in two ways."""
    p = np.clip(np.asarray(fractions, np.float64), 0, 1)
    with np.errstate(divide="ignore", under="ignore"):
        same = p**draws + (1 - p) ** draws
        return float(np.sum(np.log10(np.minimum(same, 1))))
