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
    blocks = {f"blocks of {n} x {n}": (n, n) for n in BLOCKS if n <= min(rows, columns)}
    parts = {"rows": (1, columns), "columns": (rows, 1), **blocks, "all": (rows, columns)}
    splits = (
        (half, parts),
        (row < rows // 2, {"upper and lower half": (rows, columns)}),
        (column < columns // 2, {"left and right half": (rows, columns)}),
    )
    for is_first, heights_and_widths in splits:
        if not is_first.any() or is_first.all():
            continue
        first, second = residuals * is_first, residuals * ~is_first
        for name, size in heights_and_widths.items():
            yield _products(
                "sums",
                f"{name} of {rows} x {columns}",
                _summed(first, size),
                _summed(second, size),
                _summed(variance * ~is_first, size),
                _summed(allowance * ~is_first, size),
                _summed(variance * is_first, size),
            )


def _summed(x: Array, size: tuple[int, int]) -> Array:
    """Sums over blocks of (..., rows, columns), smaller ones at the ends: (..., blocks)."""
    for axis, n in zip((-2, -1), size, strict=True):
        x = np.add.reduceat(x, np.arange(0, x.shape[axis], n), axis=axis)
    return x.reshape(*x.shape[:-2], -1)


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
