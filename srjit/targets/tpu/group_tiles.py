"""Tiles of products with groups: how much of the operands a step of a kernel's grid has."""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

from srjit.products.ragged_dot import Extents, Kind

LANES = 128
_ROWS = 512, 256, 128  # of a tile, those tried
_INNER, _COLUMNS = (4096, 2048, 1024), (1024, 1536, 2048)  # at most, those tried
_LEAST = 512  # of a part: smaller ones keep the unit waiting
_FULL = 64  # rows in whose time the unit changes matrices
_SUM = 700  # operations in whose time a sum is added up or stored


class Tiles(NamedTuple):
    """Numbers of rows that a step of the grid has, of the other dimension of the left, of columns.

    The other dimension is what is contracted, or in TN the rows of a group's result.
    """

    rows: int
    inner: int
    columns: int


def steps(rows: int, tile: int, groups: int) -> int:
    """The number of steps that any sizes of groups need: each may begin a tile anew."""
    return -(-rows // tile) + groups


class Rates(NamedTuple):
    """A chip's: operations and bytes a cycle, and bytes of vector memory for a kernel."""

    operations: float
    bytes: float
    memory: int


@functools.cache
def tiles_of(kind: Kind, extents: Extents, itemsize: int, rates: Rates) -> Tiles | None:
    """The tiles with which a product is expected to take the fewest cycles.

    Tall ones multiply rows that another group has; low and narrow ones are read more often.

    Args:
      kind: of the product.
      extents: as of ``GroupedMatrices.extents``.
      itemsize: bytes of an operand's element.
      rates: of the chip.

    Returns:
      None where no kernel knows such a shape.
    """
    rows, inner, columns, _ = extents
    if inner % LANES or columns % LANES or rows < min(_ROWS):
        return None
    deepest = _INNER if kind != "TN" else _INNER[1:]
    deep = {cut for most in deepest if (cut := _cut(inner, most))}
    if not deep and kind == "TN":
        deep = {_COLUMNS[0]}  # what overhangs is cut off
    wide = {_cut(columns, most) or _COLUMNS[0] for most in _COLUMNS}
    tried = itertools.product((n for n in _ROWS if n <= rows), deep, wide)
    fitting = [t for t in map(Tiles._make, tried) if bytes_of(kind, t, itemsize) <= rates.memory]

    def cost(tiles: Tiles) -> tuple[float, int]:
        many = gone_through(kind, extents, tiles)
        of_sums = _SUM / (tiles.rows if kind == "TN" else tiles.inner)
        slow = (1 + _FULL / tiles.rows) * (1 + of_sums / 2)
        cycles = 2 * many * slow / rates.operations
        sizes = itemsize, itemsize, 2
        return max(cycles, moved(kind, extents, tiles, sizes) / rates.bytes), math.prod(tiles)

    return min(fitting, key=cost, default=None)


def _cut(size: int, most: int) -> int | None:
    """The largest part of a dimension, at most so large, that divides it; None if that is small."""
    parts = [n for n in range(LANES, min(size, most) + 1, LANES) if size % n == 0]
    return parts[-1] if parts[-1] >= min(size, _LEAST) else None


def bytes_of(kind: Kind, tiles: Tiles, itemsize: int) -> int:
    """Vector memory of a step: blocks twice, sums, and what is made of them on the way."""
    rows, inner, columns = tiles
    operands = rows * (inner + columns) if kind == "TN" else (rows + columns) * inner
    result = inner * columns if kind == "TN" else rows * columns
    return operands * 2 * itemsize + result * (2 * 4 + 3 * 4)


def gone_through(kind: Kind, extents: Extents, tiles: Tiles) -> int:
    """The number of products in a kernel, with those that are masked or cut off."""
    rows, inner, columns, groups = extents
    deep, wide = (-(-n // t) * t for n, t in zip((inner, columns), tiles[1:], strict=True))
    return (steps(rows, tiles.rows, groups) - 1) * tiles.rows * deep * wide


def moved(kind: Kind, extents: Extents, tiles: Tiles, sizes: tuple[int, int, int]) -> int:
    """Bytes between memory and vector memory where no group ends with a tile.

    Args:
      kind, extents, tiles: as of ``tiles_of``.
      sizes: bytes of an element of the left operand, the right one and the result.
    """
    rows, inner, columns, groups = extents
    left, right, result = sizes
    many = steps(rows, tiles.rows, groups) - 1
    across, along = -(-columns // tiles.columns), -(-inner // tiles.inner)
    if kind == "TN":
        read = many * tiles.rows * (inner * left * across + columns * right * along)
        return read + groups * inner * columns * result
    read = many * tiles.rows * inner * left * across
    matrices = groups if along == 1 else many
    return read + matrices * inner * columns * right + rows * columns * result
