"""What TPU compilers estimate of a bare product: element types, and the order of its operands.

    python benchmarks/tpu_rates.py [CHIP ...]

The figures that ``srjit/targets/tpu/`` chooses by. Nothing runs: cycles are the compiler's own
estimate, for (4096 x 8192) . (8192 x 16384). In an order such as NT the first letter is of the left
operand (N: it contracts its last dimension), the second of the right (N: it contracts its first).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import _measuring as measuring
from srjit import targets
from srjit.aot.compilers import devices_of, optimized

CHIPS = ("v5e", "v5p", "v6e", "tpu7x")
M, K, N = 4096, 8192, 16384
ORDERS = {
    "NN": ((1, 0), (M, K), (K, N)),
    "NT": ((1, 1), (M, K), (N, K)),
    "TN": ((0, 0), (K, M), (K, N)),
    "TT": ((0, 1), (K, M), (N, K)),
}
TYPES: dict[str, tuple[Any, Any]] = {
    "bfloat16": (jnp.bfloat16, jnp.float32),
    "int8": (jnp.int8, jnp.int32),
    "int4": (jnp.int4, jnp.int32),
    "float8_e4m3fn": (jnp.float8_e4m3fn, jnp.float32),
    "float8_e5m2": (jnp.float8_e5m2, jnp.float32),
}


def cycles(chip: str, fun: Callable[..., Any], *shapes: tuple[tuple[int, ...], Any]) -> int:
    """Estimated cycles of a function of arrays, compiled for one chip."""
    target = targets.get(chip)
    device = jax.sharding.SingleDeviceSharding(devices_of(target)[0])
    args = [jax.ShapeDtypeStruct(shape, dtype, sharding=device) for shape, dtype in shapes]
    module, _ = optimized(target, jax.jit(fun).lower(*args))
    return sum(found.instruction.cycles or 0 for found in module.executed())


def product(chip: str, dtype: Any, out: Any, order: str) -> int:
    """Estimated cycles of one product."""
    (lhs_dim, rhs_dim), lhs, rhs = ORDERS[order]
    numbers = (((lhs_dim,), (rhs_dim,)), ((), ()))

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return lax.dot_general(a, b, numbers, preferred_element_type=out).astype(jnp.bfloat16)

    return cycles(chip, dot, (lhs, dtype), (rhs, dtype))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("chips", nargs="*", default=CHIPS, metavar="CHIP", help=", ".join(CHIPS))
    parser.add_argument("--quick", action="store_true", help="bfloat16 and int8 alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    types = ("bfloat16", "int8") if given.quick else tuple(TYPES)
    figures: dict[str, dict[str, Any]] = {}
    for chip in given.chips:
        print(f"{chip}: thousands of cycles")
        print("  " + " " * 14 + "".join(f"{o:>9}" for o in ORDERS) + "   over bfloat16's best")
        rows = {n: {o: product(chip, *TYPES[n], o) for o in ORDERS} for n in types}
        best = min(rows["bfloat16"].values())
        for name, row in rows.items():
            ratios = " ".join(f"{best / n:.2f}" for n in row.values())
            print(
                f"  {name:14}" + "".join(f"{n / 1e3:9.0f}" for n in row.values()) + f"   {ratios}"
            )
        turned = cycles(chip, lambda x: lax.transpose(x, (1, 0)), ((8192, 4096), jnp.int8))
        print(f"  a transposed copy of 33.6 million codes: {turned / 1e3:.0f}", flush=True)
        figures[chip] = {**rows, "transposed copy": turned}
    measuring.write_json(given.json, figures)


if __name__ == "__main__":
    main()
