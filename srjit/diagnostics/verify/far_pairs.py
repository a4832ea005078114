"""Pairs of elements of a tensor that stand anywhere but side by side, where noise may come again.

Each set of pairs is an involution, so that no element is in two pairs of it: products of residuals
over a set are independent.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

PAIRS = 2**9  # of a set; a seeded choice of more
_ALL = 64  # distances up to this are all looked at, larger ones that are few powers of two
_RANDOM = 8  # further distances, chosen at random

Ints = np.ndarray[Any, np.dtype[np.int64]]
Partner = Callable[[Ints], Ints]  # of coordinates (dimensions, elements), others; -1: none


@functools.lru_cache(maxsize=16)
def far_pairs(shape: tuple[int, ...]) -> dict[str, Ints]:
    """Flat positions, (2, pairs) each, by what the pairs are."""
    rng = np.random.default_rng(0)
    size = int(np.prod(shape, dtype=np.int64))
    if size < 4:
        return {}
    few = size <= 8 * PAIRS
    positions = np.arange(size) if few else np.unique(rng.integers(0, size, 8 * PAIRS))
    places = np.stack(np.unravel_index(positions, shape)).astype(np.int64)
    found: dict[str, Ints] = {}
    for name, partner in _involutions(shape, rng):
        others = partner(places)
        inside = (others >= 0).all(0) & (others < np.array(shape)[:, None]).all(0)
        there = np.asarray(np.ravel_multi_index(tuple(others[:, inside]), shape))
        pairs = _once(positions[inside], there, size)
        if pairs.shape[1] > PAIRS:
            pairs = pairs[:, rng.choice(pairs.shape[1], PAIRS, replace=False)]
        if pairs.size:
            found[name] = pairs
    for d in sorted({size // 2, *rng.integers(2, size, _RANDOM).tolist()}):
        there = _apart(positions[None], 0, d)[0]
        told = (there >= 0) & (there < size)
        pairs = _once(positions[told], there[told], size)
        if pairs.size:
            found[f"{d} elements apart"] = pairs[:, :: -(-pairs.shape[1] // PAIRS)]
    return found


def _once(a: Ints, b: Ints, size: int) -> Ints:
    """Every pair of two different elements once, (2, pairs)."""
    told = a != b
    low, high = np.minimum(a, b)[told], np.maximum(a, b)[told]
    return np.stack(np.divmod(np.unique(low * size + high), size))


def _involutions(shape: tuple[int, ...], rng: Any) -> Iterator[tuple[str, Partner]]:
    ndim = len(shape)
    long = [axis for axis in range(ndim) if shape[axis] > 1]
    for axis in long:
        for d in _distances(shape[axis], rng):
            name = f"dimension {axis - ndim}, {d} apart"
            yield name, lambda c, axis=axis, d=d: _apart(c, axis, d)
        yield f"dimension {axis - ndim}, mirrored", lambda c, a=axis: _mirrored(c, shape, [a])
    if len(long) > 1:
        yield "mirrored along all dimensions", lambda c: _mirrored(c, shape, long)
    for a, b in itertools.combinations(long, 2):
        name = f"dimensions {a - ndim} and {b - ndim}, "
        yield f"{name}transposed", lambda c, a=a, b=b: _swapped(c, a, b)
        yield (
            f"{name}transposed the other way",
            lambda c, a=a, b=b: _mirrored(_swapped(_mirrored(c, shape, [a]), a, b), shape, [a]),
        )


def _distances(size: int, rng: Any) -> list[int]:
    """Distances along a dimension: 1 has tests of its own."""
    powers = [odd << k for odd in (1, 3, 5) for k in range(size.bit_length())]
    chosen = rng.integers(2, max(size, 3), _RANDOM).tolist()
    return sorted(d for d in {*range(2, _ALL), *powers, size // 2, *chosen} if 1 < d < size)


def _apart(c: Ints, axis: int, d: int) -> Ints:
    """Pairs at a distance: every second stretch of that length, and the next."""
    there = c.copy()
    there[axis] += np.where(c[axis] // d % 2 == 0, d, -d)
    return there


def _mirrored(c: Ints, shape: tuple[int, ...], axes: list[int]) -> Ints:
    there = c.copy()
    for axis in axes:
        there[axis] = shape[axis] - 1 - c[axis]
    return there


def _swapped(c: Ints, a: int, b: int) -> Ints:
    there = c.copy()
    there[[a, b]] = c[[b, a]]
    return there
