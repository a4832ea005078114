"""Tests of many elements at once: sums over parts of a tensor, and whether some tell of others.

A sum over a part varies by Σ p (1 - p) if its elements are independent. The rest of its square is
twice the product of what two halves of it add up to, A and B; given A's residuals, Σ A B is a sum
of independent terms whose variances are known, to which Bernstein's inequality applies as it is
(``statistics.py``), with the largest |A| for a bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from srjit.diagnostics.verify.statistics import Signed

BLOCKS = (4, 8, 16, 32)
TWINS = 2**11  # elements that are looked at, those that noise decides most
Array = np.ndarray[Any, Any]


def of_parts(residuals: Array, variance: Array, allowance: Array) -> Iterator[Signed]:
    """Sums over rows, columns, blocks and halves of a matrix.

    Args:
      residuals: (draws, rows, columns).
      variance, allowance: of one residual, (rows, columns).
    """
    _, rows, columns = residuals.shape
    half = np.random.default_rng(0).integers(0, 2, (rows, columns)).astype(bool)
    row, column = np.indices((rows, columns))
    flat = residuals.reshape(len(residuals), -1)
    parts = {"rows": (row, half), "columns": (column, half)}
    for n in BLOCKS:
        if n <= min(rows, columns):
            parts[f"blocks of {n} x {n}"] = (row // n * columns + column // n, half)
    parts["upper and lower half"] = (np.zeros_like(row), row < rows // 2)
    parts["left and right half"] = (np.zeros_like(row), column < columns // 2)
    parts["all"] = (np.zeros_like(row), half)
    for name, (part, is_first) in parts.items():
        if not is_first.any() or is_first.all():
            continue
        order = np.argsort(part.ravel(), kind="stable")
        starts = np.flatnonzero(np.diff(part.ravel()[order], prepend=-1))

        def summed(x: Array, mask: Array, order: Array = order, starts: Array = starts) -> Array:
            return np.add.reduceat((x * mask.ravel())[..., order], starts, axis=-1)

        yield _products(
            "sums",
            f"{name} of {rows} x {columns}",
            summed(flat, is_first),
            summed(flat, ~is_first),
            summed(variance.ravel(), ~is_first),
            summed(allowance.ravel(), ~is_first),
            summed(variance.ravel(), is_first),
        )


def of_twins(residuals: Array, variance: Array, allowance: Array) -> Iterator[Signed]:
    """Yields a test of whether some elements tell others, learned on half of the draws.

    Args:
      residuals: (draws, elements).
      variance, allowance: of one residual, by element.
    """
    most = np.argsort(-variance, kind="stable")[:TWINS]
    most = np.random.default_rng(0).permutation(most[variance[most] > 0])
    draws, n = len(residuals) // 2, len(most) // 2
    if draws < 2 or n < 2:
        return
    a, b = most[:n], most[n : 2 * n]
    x = residuals.astype(np.float64)
    learned = x[:draws, a].T @ x[:draws, b]
    told = x[draws : 2 * draws, a] @ learned
    spread = np.sqrt(np.square(learned).T @ variance[a])
    yield _products(
        "twins",
        f"{2 * n} elements",
        told,
        x[draws : 2 * draws, b],
        variance[b],
        allowance[b],
        np.square(spread),
    )


def _products(
    what: str, where: str, a: Array, b: Array, variance: Array, allowance: Array, of_a: Array
) -> Signed:
    """Σ a b over (draws, parts), given a; ``variance`` and ``allowance`` are those of a b."""
    most = float(np.abs(a).max()) or 1.0
    return Signed(
        what,
        where,
        float(np.sum(a * b)) / most,
        float(np.sum(a**2 @ variance)) / most**2,
        a.size,
        len(a) * float(np.sum(np.sqrt(of_a * variance))) / most,
        float(np.sum(np.abs(a) @ allowance)) / most,
    )
