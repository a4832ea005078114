"""Mosaic kernels of products with groups: rows of each group times a matrix of its own.

XLA multiplies every row by the matrix of every group, or has no scales of groups to multiply by.
Here a tile of rows is gone through once for each group that has rows in it: one after the other, so
that a result of rows of several groups stays in vector memory until all of them are in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from srjit.products.ragged_dot import Kind
from srjit.targets.tpu.group_tiles import Tiles, steps

_DIMENSIONS: dict[Kind, Any] = {
    "NN": (((1,), (0,)), ((), ())),
    "NT": (((1,), (1,)), ((), ())),
    "TN": (((0,), (0,)), ((), ())),
}


class Visits(NamedTuple):
    """The rows that each step goes through.

    Attributes:
      ends: where every group begins, and the last one ends, and all rows.
      groups: of each step; the number of groups where it is of none.
      places: of the tile of rows of each step.
    """

    ends: jax.Array
    groups: jax.Array
    places: jax.Array


def visits(sizes: jax.Array, rows: int, tile: int, kind: Kind) -> Visits:
    """The steps over rows in groups: of every group those with tiles that have rows of it.

    Results of rows have steps for the rows past all groups, too, and results of groups one for
    every group without rows. There are as many as any sizes need; those left are of no group.
    """
    count = sizes.shape[0]
    of_rows = kind != "TN"
    inner = jnp.minimum(jnp.cumsum(sizes.astype(jnp.int32)), rows)
    ends = jnp.concatenate([jnp.zeros(1, jnp.int32), inner, jnp.full(1, rows, jnp.int32)])
    first, last = ends[:-1] // tile, -(-ends[1:] // tile)
    times = jnp.where(ends[1:] > ends[:-1], last - first, 0)
    times = times if of_rows else jnp.maximum(times, 1)[:count]
    until = jnp.cumsum(times)
    step = lax.iota(jnp.int32, steps(rows, tile, count))
    groups = jnp.sum(until[None, :] <= step[:, None], axis=1, dtype=jnp.int32)
    known = jnp.minimum(groups, times.size - 1)
    places = first[known] + step - (until - times)[known]
    return Visits(ends, jnp.minimum(groups, count), jnp.minimum(places, pl.cdiv(rows, tile) - 1))


def multiply(
    lhs: jax.Array,
    rhs: jax.Array,
    sizes: jax.Array,
    factors: Sequence[jax.Array],
    *,
    kind: Kind,
    out: jax.ShapeDtypeStruct,
    tiles: Tiles,
    memory: int,
) -> jax.Array:
    """The product of codes or floats, times factors of each group; 0 past all groups.

    Args:
      lhs, rhs: operands; sums of int8 are int32, all others float32.
      sizes: of the groups.
      factors: float32, a number for each group; the result is multiplied by one after the other.
      kind: of the product.
      out: its type.
      tiles: of a step.
      memory: bytes of vector memory that it may take.
    """
    seen = visits(sizes, lhs.shape[0], tiles.rows, kind)
    scales = jnp.concatenate([f.astype(jnp.float32) for f in factors])
    return multiply_visited(lhs, rhs, seen, scales, kind=kind, out=out, tiles=tiles, memory=memory)


def multiply_visited(
    lhs: jax.Array,
    rhs: jax.Array,
    seen: Visits,
    scales: jax.Array,
    *,
    kind: Kind,
    out: jax.ShapeDtypeStruct,
    tiles: Tiles,
    memory: int,
    aligned: bool = False,
) -> jax.Array:
    """``multiply``, of the visits, and with all factors in one array.

    If ``aligned``, groups end where tiles do, none is empty, and no row is of none. Nothing is
    masked or left out, and TN only adds: a kernel to be estimated, not to be run.
    """
    count = seen.ends.shape[0] - 2
    shape = _Shape(kind, tiles, scales.shape[0] // count, count, seen.groups.shape[0], aligned)
    build = _of_groups if kind == "TN" else _of_rows
    kernel, grid, blocks, scratch = build(lhs, rhs, shape)
    return pl.pallas_call(
        kernel,
        out_shape=out,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=grid,
            in_specs=blocks[:2],
            out_specs=blocks[2],
            scratch_shapes=scratch,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=memory,
        ),
    )(*seen, scales, lhs, rhs)


class _Shape(NamedTuple):
    """A kernel's: how many factors and groups there are, and steps over the rows."""

    kind: Kind
    tiles: Tiles
    factors: int
    groups: int
    steps: int
    aligned: bool


def _of_rows(
    lhs: jax.Array,
    rhs: jax.Array,
    shape: _Shape,
) -> Any:
    """NN and NT: kernel, grid, blocks and scratch."""
    kind, (rows, inner, columns), factors, count, steps, aligned = shape
    depth = lhs.shape[1] // inner
    sums = sums_of(lhs, rhs)

    def kernel(*refs: Any) -> None:
        _, groups, _, scales, lhs_ref, rhs_ref, out_ref, *scratch = refs
        i, k = pl.program_id(1), pl.program_id(2)
        group = groups[i]

        def multiply() -> None:
            made = _dot(lhs_ref[...], rhs_ref[...], kind, sums)
            if depth == 1:
                put(made)
                return
            (sums_ref,) = scratch

            def begin() -> None:
                sums_ref[...] = made

            def add() -> None:
                sums_ref[...] += made

            pl.when(k == 0)(begin)
            pl.when((k > 0) & (k < depth - 1))(add)
            pl.when(k == depth - 1)(lambda: put(sums_ref[...] + made))

        def put(made: jax.Array) -> None:
            _put(out_ref, _scaled(made, scales, group, factors, count), refs, i, aligned)

        def put_nothing() -> None:
            _put(out_ref, jnp.zeros(out_ref.shape, jnp.float32), refs, i, aligned)

        if aligned:
            multiply()
            return
        pl.when(group < count)(multiply)
        pl.when((group == count) & (k == depth - 1))(put_nothing)

    if kind == "NN":
        matrix = pl.BlockSpec(
            (None, inner, columns), lambda j, i, k, e, g, p, s: (_at_most(g[i], count), k, j)
        )
        size = rhs.shape[2]
    else:
        matrix = pl.BlockSpec(
            (None, columns, inner), lambda j, i, k, e, g, p, s: (_at_most(g[i], count), j, k)
        )
        size = rhs.shape[1]
    blocks = [
        pl.BlockSpec((rows, inner), lambda j, i, k, e, g, p, s: (p[i], k)),
        matrix,
        pl.BlockSpec((rows, columns), lambda j, i, k, e, g, p, s: (p[i], j)),
    ]
    grid = pl.cdiv(size, columns), steps, depth
    return kernel, grid, blocks, [pltpu.VMEM((rows, columns), sums)] * (depth > 1)


def _of_groups(
    lhs: jax.Array,
    rhs: jax.Array,
    shape: _Shape,
) -> Any:
    """TN: kernel, grid, blocks and scratch."""
    kind, (rows, inner, columns), factors, count, total, aligned = shape
    sums = sums_of(lhs, rhs)

    def kernel(*refs: Any) -> None:
        ends, groups, _, scales, lhs_ref, rhs_ref, out_ref, sums_ref = refs
        i = pl.program_id(2)
        group = groups[i]
        is_first = (i == 0) | (groups[jnp.maximum(i - 1, 0)] != group)
        is_last = (i == total - 1) | (groups[jnp.minimum(i + 1, total - 1)] != group)

        def begin() -> None:
            sums_ref[...] = jnp.zeros_like(sums_ref)

        def add() -> None:
            sums_ref[...] += _dot(lhs_ref[...], rhs_ref[...], kind, sums)

        def add_some() -> None:
            # A float of another group may be NaN, which 0 times it is; integers are finite.
            mask_lhs = not jnp.issubdtype(lhs_ref.dtype, jnp.integer)
            left = _only(refs, i, lhs_ref[...]) if mask_lhs else lhs_ref[...]
            sums_ref[...] += _dot(left, _only(refs, i, rhs_ref[...]), kind, sums)

        def put() -> None:
            out_ref[...] = _scaled(sums_ref[...], scales, group, factors, count).astype(
                out_ref.dtype
            )

        if aligned:
            add()
            return
        is_inside = _is_inside(refs, i, rows)
        known = _at_most(group, count)
        has_rows = (group < count) & (ends[known] < ends[known + 1])
        pl.when(is_first)(begin)
        pl.when(is_inside & (group < count))(add)
        pl.when(~is_inside & has_rows)(add_some)
        pl.when(is_last & (group < count))(put)

    blocks = [
        pl.BlockSpec((rows, inner), lambda k, j, i, e, g, p, s: (p[i], k)),
        pl.BlockSpec((rows, columns), lambda k, j, i, e, g, p, s: (p[i], j)),
        pl.BlockSpec(
            (None, inner, columns),
            lambda k, j, i, e, g, p, s: (_at_most(g[i], count), k, j),
        ),
    ]
    grid = pl.cdiv(lhs.shape[1], inner), pl.cdiv(rhs.shape[1], columns), total
    return kernel, grid, blocks, [pltpu.VMEM((inner, columns), sums)]


def _at_most(group: Any, count: int) -> Any:
    """A group, the last one in place of none."""
    return jnp.minimum(group, count - 1)


def sums_of(lhs: jax.Array, rhs: jax.Array) -> Any:
    """The dtype in which products are added."""
    return jnp.int32 if lhs.dtype == rhs.dtype == jnp.int8 else jnp.float32


def _dot(lhs: jax.Array, rhs: jax.Array, kind: Kind, sums: Any) -> jax.Array:
    return lax.dot_general(lhs, rhs, _DIMENSIONS[kind], preferred_element_type=sums)


def _scaled(made: jax.Array, scales: Any, group: Any, factors: int, count: int) -> jax.Array:
    made = made.astype(jnp.float32)
    for n in range(factors):
        made = made * scales[n * count + group]
    return made


def _put(out_ref: Any, values: jax.Array, refs: Sequence[Any], i: Any, aligned: bool) -> None:
    """Stores the rows of a step's group."""
    dtype = out_ref.dtype

    def put_all() -> None:
        out_ref[...] = values.astype(dtype)

    def put_some() -> None:
        kept = out_ref[...].astype(jnp.float32)
        out_ref[...] = jnp.where(_mask(refs, i, values.shape), values, kept).astype(dtype)

    if aligned:
        put_all()
        return
    is_inside = _is_inside(refs, i, values.shape[0])
    pl.when(is_inside)(put_all)
    pl.when(~is_inside)(put_some)


def _is_inside(refs: Sequence[Any], i: Any, rows: int) -> Any:
    """True if all rows of a step's tile are of its group."""
    ends, groups, places = refs[:3]
    top = places[i] * rows
    return (ends[groups[i]] <= top) & (top + rows <= ends[groups[i] + 1])


def _mask(refs: Sequence[Any], i: Any, shape: tuple[int, ...]) -> jax.Array:
    """True if a row of a step's tile is of its group."""
    ends, groups, places = refs[:3]
    row = lax.broadcasted_iota(jnp.int32, shape, 0) + places[i] * shape[0]
    return (ends[groups[i]] <= row) & (row < ends[groups[i] + 1])


def _only(refs: Sequence[Any], i: Any, values: jax.Array) -> jax.Array:
    """Values, 0 where a row is not of the step's group; by integers, which every chip selects."""
    words = {1: jnp.int8, 2: jnp.int16, 4: jnp.int32}[values.dtype.itemsize]
    wide = lax.bitcast_convert_type(values, words).astype(jnp.int32)
    kept = jnp.where(_mask(refs, i, values.shape), wide, 0).astype(words)
    return lax.bitcast_convert_type(kept, values.dtype)
