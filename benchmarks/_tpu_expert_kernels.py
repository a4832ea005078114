"""What kernels of products with groups would take on a TPU, by their schedule and by bytes.

    python benchmarks/_tpu_expert_kernels.py CHIP LHS RHS ROWS INNER COLUMNS GROUPS

Prints a JSON object by kind of product: tiles, and cycles by both models. The schedule is that of a
few steps in which no tile has rows of two groups, times the steps that groups need none of which
ends with a tile. Whole programs do not survive the profile: so this is a process of its own.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import _tpu_profile as profile  # isort: skip  (before JAX)

import jax
import jax.numpy as jnp

from srjit.products.ragged_dot import Extents, GroupedMatrices, Kind
from srjit.targets.tpu import group_kernels, group_tiles
from srjit.targets.tpu.chips import CHIPS

STEPS, GROUPS = 32, 16  # of what is compiled: XLA keeps smaller operands in vector memory


def cycles(chip: str, kind: Kind, lhs: Any, rhs: Any, extents: Extents) -> dict[str, Any]:
    """Of one product, whose result is bfloat16."""
    rows, inner, columns, groups = extents
    memory = CHIPS[chip].kernel_memory
    ordered = {
        "NN": (groups, inner, columns),
        "NT": (groups, columns, inner),
        "TN": (rows, columns),
    }
    known, given = GroupedMatrices(kind), ((rows, inner), ordered[kind])
    tiles = CHIPS[chip].tiles(known, given, groups, lhs.itemsize)
    assert tiles is not None
    depth = 1 if kind == "TN" else inner // tiles.inner
    tall, deep, wide = STEPS * tiles.rows, min(depth, 3) * tiles.inner, tiles.columns
    shapes = {
        "NN": ((tall, deep), (GROUPS, deep, wide), (tall, wide)),
        "NT": ((tall, deep), (GROUPS, wide, deep), (tall, wide)),
        "TN": ((tall, deep), (tall, wide), (GROUPS, deep, wide)),
    }[kind]
    a, b, out = (
        jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, (lhs, rhs, jnp.bfloat16), strict=True)
    )

    def run(a: Any, b: Any, ends: Any, owners: Any, places: Any, scales: Any) -> Any:
        seen = group_kernels.Visits(ends, owners, places)
        return group_kernels.multiply_visited(
            a, b, seen, scales, kind=kind, out=out, tiles=tiles, memory=memory, aligned=True
        )

    numbers = [((GROUPS + 2,), jnp.int32), *[((STEPS,), jnp.int32)] * 2]
    scalars = [jax.ShapeDtypeStruct(*n) for n in (*numbers, ((2 * GROUPS,), jnp.float32))]
    found = profile.profile_of(chip, run, a, b, *scalars)
    step = None if found is None else found / STEPS / min(depth, 3)
    many = group_tiles.steps(rows, tiles.rows, groups) - 1
    across = -(-columns // tiles.columns) * (-(-inner // tiles.inner) if kind == "TN" else depth)
    sizes = lhs.itemsize, rhs.itemsize, 2
    return {
        "tiles": tiles,
        "step": step,
        "profile": None if step is None else step * many * across,
        "bytes": group_tiles.moved(kind, extents, tiles, sizes) * CHIPS[chip].cycles_per_byte,
    }


def main(chip: str, activation: str, gradient: str, *extents: str) -> None:
    rows, inner, columns, groups = map(int, extents)
    x, ct = jnp.dtype(activation), jnp.dtype(gradient)
    products: dict[Kind, Any] = {
        "NN": (x, x, (rows, inner, columns, groups)),
        "NT": (ct, x, (rows, columns, inner, groups)),
        "TN": (x, ct, (rows, inner, columns, groups)),
    }
    print(json.dumps({kind: cycles(chip, kind, *given) for kind, given in products.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
