"""Tiles of a matrix: what a kernel's program loads, and where it stores what it makes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from srjit.targets.gpu.task import Task

TILE = 128, 64  # elements of every program; 16 KB of bfloat16, 64 elements a thread
_WARPS = 4


@dataclasses.dataclass(frozen=True)
class Tile:
    """The part of a matrix that a program works on.

    Attributes:
      ref: the matrix, flat.
      shape: of it.
      tile: of the part.
    """

    ref: Any
    shape: tuple[int, int]
    tile: tuple[int, int]

    def origin(self) -> tuple[jax.Array, jax.Array]:
        """Row and column of its first element."""
        return pl.program_id(0) * self.tile[0], pl.program_id(1) * self.tile[1]

    def blocks(self, block: int, down: bool) -> tuple[list[jax.Array], jax.Array, jax.Array]:
        """float32 elements of blocks by position, with row and column of the first of them."""
        top, left = self.origin()
        rows, columns = self.tile
        if down:
            shape = rows // block, columns
            row, column = top + _iota(shape, 0) * block, left + _iota(shape, 1)
            parts = [self._load(row + k, column) for k in range(block)]
        else:
            shape = rows, columns // block
            row, column = top + _iota(shape, 0), left + _iota(shape, 1) * block
            whole = *shape, block
            across = left + _iota(whole, 1) * block + _iota(whole, 2)
            parts = _unstacked(self._load(top + _iota(whole, 0), across))
        return [part.astype(jnp.float32) for part in parts], row, column

    def inside(self, row: jax.Array, column: jax.Array) -> jax.Array | None:
        """A mask of elements inside the matrix; None: all are, since tiles end where it does."""
        conditions = [
            position < size
            for position, size, step in zip((row, column), self.shape, self.tile, strict=True)
            if size % step
        ]
        return functools.reduce(jnp.logical_and, conditions) if conditions else None

    def _load(self, row: jax.Array, column: jax.Array) -> jax.Array:
        ref = self.ref.at[row * self.shape[1] + column]
        inside = self.inside(row, column)
        return plgpu.load(ref) if inside is None else plgpu.load(ref, mask=inside, other=0)


def _iota(shape: tuple[int, ...], dimension: int) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, shape, dimension)


def _unstacked(x: jax.Array) -> list[jax.Array]:
    """The parts of an array along its last dimension, a power of two, as Triton can split it."""
    if x.shape[-1] == 1:
        return [x.reshape(x.shape[:-1])]
    pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    even, odd = (part.reshape(part.shape[:-1]) for part in lax.split(pairs, (1, 1), pairs.ndim - 1))
    return [p for both in zip(_unstacked(even), _unstacked(odd), strict=True) for p in both]


def _stacked(parts: list[jax.Array]) -> jax.Array:
    """The reverse: parts along a new last dimension."""
    if len(parts) == 1:
        return parts[0][..., None]
    even, odd = _stacked(parts[::2]), _stacked(parts[1::2])
    return jnp.stack([even, odd], axis=-1).reshape(*even.shape[:-1], len(parts))


def store_words(
    task: Task, part: Tile, ref: Any, words: list[jax.Array], row: jax.Array, column: jax.Array
) -> None:
    """Stores the words of blocks whose first elements stand at rows and columns."""
    at, inside = _blocks_in_memory(task, part, row, column)
    values, count = _stacked(words), len(words)
    if task.down:
        values, at = values.transpose(1, 0, 2), at.T
        inside = None if inside is None else inside.T
    shape = values.shape
    at = jnp.broadcast_to(at[:, :, None] * count, shape) + _iota(shape, 2)
    mask = None if inside is None else jnp.broadcast_to(inside[:, :, None], shape)
    _store(ref, at, values, mask)


def store_scales(
    task: Task, part: Tile, ref: Any, scales: jax.Array, row: jax.Array, column: jax.Array
) -> None:
    """Stores the scales of blocks, likewise."""
    if task.spec.shared == "square":
        top, left = (origin // task.block for origin in part.origin())
        rows, columns = (-(-n // task.block) for n in part.shape)
        i, j = top + _iota(scales.shape, 0), left + _iota(scales.shape, 1)
        _store(ref, i * columns + j, scales, (i < rows) & (j < columns))
        return
    at, inside = _blocks_in_memory(task, part, row, column)
    if task.down:
        scales, at = scales.T, at.T
        inside = None if inside is None else inside.T
    _store(ref, at, scales, inside)


def _store(ref: Any, at: jax.Array, values: jax.Array, inside: jax.Array | None) -> None:
    if inside is None:
        plgpu.store(ref.at[at], values)
        return
    # Without a GPU, what is masked is stored too, as it was: not where others store.
    plgpu.store(ref.at[jnp.where(inside, at, ref.shape[0])], values, mask=inside)


def _blocks_in_memory(
    task: Task, part: Tile, row: jax.Array, column: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """The blocks of the codes in memory that these are, and whether they are any."""
    size = task.sizes(part.shape)[1] // task.block
    inside = part.inside(row, column)
    if not task.down:
        return row * size + column // task.block, inside
    block = row // task.block
    lead = block // size if task.lead > 1 else 0
    at = (lead * part.shape[1] + column) * size + (block % size if task.lead > 1 else block)
    return at, inside


def tile_call(
    kernel: Callable[..., None],
    like: jax.Array,
    results: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, int],
    name: str,
) -> Callable[..., list[jax.Array]]:
    """A function of a matrix like ``like``, flat, and of scalars: a kernel run on every tile."""
    # Inside of a shard_map types say over what a value differs: as the matrix does.
    typed = jax.eval_shape(lambda x: [lax.full_like(x, 0, t.dtype, t.shape) for t in results], like)
    return pl.pallas_call(
        kernel,
        out_shape=typed,
        grid=grid,
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
        name=name,
    )


def grid_of(shape: Sequence[int], tile: tuple[int, int]) -> tuple[int, int]:
    """The number of tiles that cover a matrix, along both dimensions."""
    return pl.cdiv(shape[0], tile[0]), pl.cdiv(shape[1], tile[1])
