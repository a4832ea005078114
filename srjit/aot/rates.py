"""Speeds of a unit by its compiler's estimate, by element types and operand order.

The types that enter a unit do not tell alone: some chips take 8-bit floats and multiply them at the
rate of bfloat16. So the compiler is asked, with one large product of each kind.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from srjit.aot.compiled_program import products_of
from srjit.aot.compilers import mesh_of, optimized
from srjit.targets import Target

SIZE = 4096  # of all three dimensions: large enough that memory does not matter
_DTYPES = {
    "s8": jnp.int8,
    "u8": jnp.uint8,
    "s4": jnp.int4,
    "u4": jnp.uint4,
    "bf16": jnp.bfloat16,
    "f8e4m3fn": jnp.float8_e4m3fn,
    "f8e5m2": jnp.float8_e5m2,
    "f4e2m1fn": jnp.float4_e2m1fn,
}


def rate(target: Target, lhs: str, rhs: str, order: str) -> float | None:
    """A target's speed in units of bfloat16's, by its compiler's estimate.

    Args:
      target: one whose compiler makes estimates.
      lhs, rhs: element types, as HLO calls them.
      order: as of ``Multiplication``.

    Returns:
      None where the compiler does not tell, or multiplies other types than these.
    """
    if lhs not in _DTYPES or rhs not in _DTYPES or not order:
        return None
    one, other = _cycles(target, "bf16", "bf16", "NN"), _cycles(target, lhs, rhs, order)
    return one / other if one and other else None


@functools.cache
def _cycles(target: Target, lhs: str, rhs: str, order: str) -> int | None:
    one = mesh_of(target, {"one": 1})
    place = NamedSharding(one, PartitionSpec())
    shapes = [
        jax.ShapeDtypeStruct((SIZE, SIZE), _DTYPES[name], sharding=place) for name in (lhs, rhs)
    ]
    dimensions = (((1 if order[0] == "N" else 0,), (0 if order[1] == "N" else 1,)), ((), ()))
    integers = all(jnp.issubdtype(s.dtype, jnp.integer) for s in shapes)

    def product(a: Any, b: Any) -> Any:
        wide = jnp.int32 if integers else jnp.float32
        out = jax.lax.dot_general(a, b, dimensions, preferred_element_type=wide)
        return out.astype(jnp.bfloat16)

    with jax.set_mesh(one):  # not the mesh that a caller may have set
        lowered = jax.jit(product).lower(*shapes)
    module, _ = optimized(target, lowered)
    for executed in module.executed():
        for found, _ in products_of(module, executed):
            if found.kind == (lhs, rhs, order):
                return executed.instruction.cycles
    return None
