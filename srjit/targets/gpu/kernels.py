"""Triton kernels for NVIDIA's GPUs that quantize a matrix: read once for amax, once for all codes.

A kernel has the elements of a block in as many arrays as a block has elements, so that a chip's
registers hold them, and amax, Hadamard transform, rounding and packing are operations of every
position by itself. Along columns each is a load of its own; along rows, where they stand side by
side, they are loaded together and then split.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from srjit.numerics import hadamard, random_bits
from srjit.numerics.elements import ELEMENTS
from srjit.targets.codes import float_code, word_of
from srjit.targets.gpu import ptx
from srjit.targets.gpu.noise import Places, TileNoise, noise_of
from srjit.targets.gpu.task import Task, scales_of, shared, spread
from srjit.targets.gpu.tiles import TILE, Tile, grid_of, store_scales, store_words, tile_call

_BF16 = ELEMENTS["bfloat16"]


def _largest(parts: Sequence[jax.Array]) -> jax.Array:
    """max|x| over parts, as bits: NaN is above all."""
    return functools.reduce(jnp.maximum, [word_of(part) & 0x7FFFFFFF for part in parts])


def _transformed(parts: list[jax.Array]) -> list[jax.Array]:
    """``hadamard.transform``, 16 parts at a time."""
    found: list[jax.Array] = []
    for start in range(0, len(parts), hadamard.SIZE):
        x = [
            part if sign > 0 else -part
            for part, sign in zip(parts[start : start + hadamard.SIZE], hadamard.SIGNS, strict=True)
        ]
        for half in hadamard.halves():
            x = [x[k ^ half] - x[k] if k & half else x[k] + x[k ^ half] for k in range(len(x))]
        found += [ptx.narrow(part * 0.25, _BF16) for part in x]
    return found


def amax_matrix(
    x: jax.Array, kinds: Sequence[str], *, tile: tuple[int, int] = TILE
) -> list[jax.Array]:
    """max|x| of a matrix and of its transforms, from one read; int32 bits of float32 scalars.

    Args:
      x: a matrix.
      kinds: ``plain``, or along what the Hadamard transform runs: ``rows`` or ``columns``.
      tile: elements of every program.
    """
    grid = grid_of(x.shape, tile)

    def kernel(x_ref: Any, *refs: Any) -> None:
        part = Tile(x_ref, (x.shape[0], x.shape[1]), tile)
        program = pl.program_id(0) * grid[1] + pl.program_id(1)
        # What is loaded once more for another direction comes from the chip's caches.
        down = [kind == "columns" for kind in kinds if kind != "plain"] or [True]
        loaded = {d: part.blocks(hadamard.SIZE, d)[0] for d in down}
        for kind, ref in zip(kinds, refs, strict=True):
            blocks = loaded[kind == "columns" if kind != "plain" else down[0]]
            largest = _largest(blocks if kind == "plain" else _transformed(blocks))
            ref[program] = jnp.max(largest)

    partial = tile_call(
        kernel,
        x,
        [jax.ShapeDtypeStruct((math.prod(grid),), jnp.int32) for _ in kinds],
        grid,
        "srjit_amax",
    )(x.reshape(-1))
    return [jnp.max(p) for p in partial]


def quantize_matrix(
    x: jax.Array,
    tasks: Sequence[Task],
    places: Sequence[Places],
    amaxes: Sequence[jax.Array | None],
    keys: Sequence[random_bits.Key | None],
    origins: Sequence[jax.Array] | None = None,
    *,
    tile: tuple[int, int] = TILE,
) -> list[list[jax.Array]]:
    """Codes and scales of all tasks, from one read of a matrix.

    Args:
      x: float32 or bfloat16 (R, C).
      tasks: what to make.
      places: for each, where its noise stands.
      amaxes: for each, bits of the tensor's amax as ``amax_matrix`` has them; None if it has none.
      keys: for each, the key of its noise; None if it is rounded to nearest.
      origins: for each, the noise's index of the first element; None: 0.
      tile: elements of every program: powers of two, whole blocks.

    Returns:
      For each task arrays of the types of ``Task.results``.
    """
    shape = x.shape[0], x.shape[1]
    types = [task.results(shape) for task in tasks]
    # Every scalar is an operand of its own: to gather them would take a kernel.
    scalars = [*amaxes, *(word for key in keys for word in key or (None, None)), *(origins or ())]
    given = [s is not None for s in scalars]
    operands = [lax.bitcast_convert_type(s, jnp.int32).reshape(1) for s in scalars if s is not None]

    def kernel(x_ref: Any, *refs: Any) -> None:
        left = iter(refs)
        values = [next(left)[0] if there else None for there in given]
        results = [[next(left) for _ in ts] for ts in types]
        part = Tile(x_ref, shape, tile)
        n = len(tasks)
        for i, task in enumerate(tasks):
            key = values[n + 2 * i : n + 2 * i + 2]
            origin = values[3 * n + i] if origins else None
            drawn = (key, origin, places[i]) if keys[i] else None
            _write(task, part, values[i], drawn, results[i])

    name = "_".join(["srjit_quantize", *dict.fromkeys(task.name for task in tasks)])
    quantize = tile_call(kernel, x, [t for ts in types for t in ts], grid_of(shape, tile), name)
    flat = quantize(x.reshape(-1), *operands)
    left = iter(flat)
    return [[next(left) for _ in ts] for ts in types]


def _write(
    task: Task,
    part: Tile,
    amax: jax.Array | None,
    drawn: tuple[Sequence[Any], Any, Places] | None,
    results: list[Any],
) -> None:
    """Quantizes a tile and stores what comes of it; ``drawn`` is what ``noise_of`` takes first."""
    blocks, row, column = part.blocks(task.block, task.down)
    if task.spec.hadamard:
        blocks = _transformed(blocks)
    largest = shared(task, _largest(blocks)) if task.spec.is_blocked else None
    scales = scales_of(task, largest, amax)
    encode = spread(task, scales.encode)
    noise = None if drawn is None else noise_of(*drawn, (row, column), task.down)
    words = _rounded(task, [block * encode for block in blocks], noise)
    store_words(task, part, results[0], words, row, column)
    if scales.block is not None:
        store_scales(task, part, results[1], scales.block, row, column)
    if scales.tensor is not None:
        first = (pl.program_id(0) == 0) & (pl.program_id(1) == 0)
        at = jnp.zeros(scales.tensor.shape, jnp.int32)
        plgpu.store(results[-1].at[at], scales.tensor, mask=jnp.broadcast_to(first, at.shape))


def _rounded(task: Task, values: list[jax.Array], noise: TileNoise | None) -> list[jax.Array]:
    """int32 words of codes, by their position in a block."""
    conversion = task.conversion
    per = conversion.per_word
    element = conversion.element
    words: list[jax.Array] = []
    for start in range(0, len(values), per):
        some = values[start : start + per]
        if noise is None and (task.by_instruction or element != ELEMENTS["float4_e2m1fn"]):
            words.append(ptx.nearest(some, conversion))
        elif noise is not None and task.by_instruction:
            drawn = [noise.word(k) for k in range(start, start + per, ptx.SHARING)]
            words.append(ptx.stochastic(some, conversion, drawn))
        else:
            codes = [
                ptx.signed(y, float_code(y, element, noise and noise.bits(start + k)), element)
                for k, y in enumerate(some)
            ]
            words.append(ptx.packed(codes, conversion))
    return words
