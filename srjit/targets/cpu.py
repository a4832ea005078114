"""CPUs: every format, exactly, as fast as XLA's CPU dots go.

Integer codes are exact in bfloat16, and a bfloat16 dot that accumulates in float32 is exact while
sums stay below 2^24, so a contraction of up to 2^24 / 127^2 = 1040 codes runs as one such dot: on
CPUs with AVX512-BF16 that is the fastest there is. Longer ones are cut, and added as integers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics.products import DotProduct, Product
from srjit.numerics.scaled_dot import multiply_codes
from srjit.targets import Target, register


def multiply(
    product: Product, lhs: jax.Array, rhs: jax.Array, *extras: jax.Array, integer: bool
) -> jax.Array:
    """See scaled_dot.Multiply."""
    return multiply_codes(product, lhs, rhs, *extras, integer=integer)


register(Target(name="cpu", platform="cpu", recipe="int8", multiply=multiply))
