"""Tiles of products with groups: how much of the operands a step of a kernel's grid has."""

from __future__ import annotations

from typing import NamedTuple

from srjit.products.ragged_dot import Extents, Kind

LANES = 128
_ROWS = 512, 256, 128  # of a tile, those tried
_MOST = {"NN": (2048, 1536), "NT": (2048, 1536), "TN": (1024, 1536)}  # inner, columns
_LEAST = 512  # of a part: smaller ones keep the unit waiting
_WHOLE = 4096  # a contraction that nothing cuts
_FULL = 128  # rows of matrices that the unit takes in the time of fewer, masked or not


class Tiles(NamedTuple):
    """Numbers of rows that a step of the grid has, of the other dimension of the left, of columns.

    The other dimension is what is contracted, or in TN the rows of a group's result.
    """

    rows: int
    inner: int
    columns: int


def steps(rows: int, tile: int, groups: int) -> int:
    """How many steps any sizes of groups need: each may begin a tile anew."""
    return -(-rows // tile) + groups


def tiles_of(kind: Kind, extents: Extents, itemsize: int, memory: int) -> Tiles | None:
    """The tiles with which a product is expected to take the fewest cycles.

    Tall ones multiply rows that another group has; low ones are read more often.

    Args:
      kind: of the product.
      extents: as of ``GroupedMatrices.extents``.
      itemsize: bytes of an operand's element.
      memory: bytes of vector memory that it may take.

    Returns:
      None where no kernel knows such a shape.
    """
    rows, inner, columns, groups = extents
    if inner % LANES or columns % LANES or rows < min(_ROWS):
        return None
    cuts = [_cut(n, most) for n, most in zip((inner, columns), _MOST[kind], strict=True)]
    if cuts[0] is None and kind != "TN":
        cuts[0] = inner if inner <= _WHOLE else None
        if cuts[0] is None:
            return None
    wide, across = (cut or 1024 for cut in cuts)  # what overhangs is cut off
    found = [Tiles(tall, wide, across) for tall in _ROWS if tall <= rows]
    found = [t for t in found if bytes_of(kind, t, itemsize) <= memory]
    return min(found, key=lambda t: steps(rows, t.rows, groups) * (t.rows + _FULL), default=None)


def _cut(size: int, most: int) -> int | None:
    """The largest part of a dimension, at most so large, that divides it; None if that is small."""
    parts = [n for n in range(LANES, min(size, most) + 1, LANES) if size % n == 0]
    return parts[-1] if parts[-1] >= min(size, _LEAST) else None


def bytes_of(kind: Kind, tiles: Tiles, itemsize: int) -> int:
    """Vector memory of a step: blocks twice, sums, and what is made of them on the way."""
    rows, inner, columns = tiles
    if kind == "TN":
        blocks = rows * (inner + columns) * itemsize + inner * columns * 4
        return 2 * blocks + 3 * inner * columns * 4 + rows * (inner + columns) * itemsize
    blocks = (rows + columns) * inner * itemsize + rows * columns * 4
    return 2 * blocks + 3 * rows * columns * 4


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
