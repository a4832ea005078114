"""What TPU compilers estimate of a bare product: element types, and the order of its operands.

    python benchmarks/tpu_rates.py [CHIP ...]

The figures that ``srjit/targets/tpu.py`` chooses by. Nothing runs: cycles are the compiler's own
estimate, for (4096 x 8192) . (8192 x 16384). In an order such as NT the first letter is of the left
operand (N: it contracts its last dimension), the second of the right (N: it contracts its first).
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from srjit.targets import compilers

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


def cycles(chip: str, dtype: Any, out: Any, order: str) -> int:
    """Estimated cycles of one product."""
    (lhs_dim, rhs_dim), lhs, rhs = ORDERS[order]
    numbers = (((lhs_dim,), (rhs_dim,)), ((), ()))

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return lax.dot_general(a, b, numbers, preferred_element_type=out).astype(jnp.bfloat16)

    args = jax.ShapeDtypeStruct(lhs, dtype), jax.ShapeDtypeStruct(rhs, dtype)
    return compilers.estimated_cycles(compilers.compiled(chip, dot, args).as_text())


def transposition(chip: str) -> int:
    """Estimated cycles of a transposed copy of 8192 x 4096 codes."""
    codes = jax.ShapeDtypeStruct((8192, 4096), jnp.int8)
    compiled = compilers.compiled(chip, lambda x: lax.transpose(x, (1, 0)), (codes,))
    return compilers.estimated_cycles(compiled.as_text())


def main(chips: list[str]) -> None:
    for chip in chips or CHIPS:
        print(f"{chip}: thousands of cycles")
        print(
            "  " + " " * 14 + "".join(f"{order:>9}" for order in ORDERS) + "   of bfloat16's best"
        )
        best = None
        for name, (dtype, out) in TYPES.items():
            found = [cycles(chip, dtype, out, order) for order in ORDERS]
            best = best or min(found)
            ratios = " ".join(f"{best / n:.2f}" for n in found)
            print(f"  {name:14}" + "".join(f"{n / 1e3:9.0f}" for n in found) + f"   {ratios}")
        print(f"  transposed copy of 33.6 million codes: {transposition(chip) / 1e3:.0f}")


if __name__ == "__main__":
    main(sys.argv[1:])
