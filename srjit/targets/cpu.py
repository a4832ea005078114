"""CPUs: every format, exactly, as fast as XLA's CPU dots go.

The fastest dot that XLA:CPU has is the bfloat16 one that accumulates in float32 (where the CPU has
AVX512-BF16 or AMX), and codes of every format are exact in bfloat16. Integer codes outside of loops
are held in it from the start: two bytes each instead of one, and no conversion before every
product. Sums of integer codes are exact in float32 up to 2^24, which is 1040 products of 127 * 127;
longer contractions are cut there and the parts added in int32, or, if that makes too many,
multiplied as int8. A left operand that contracts a leading dimension costs such a dot two thirds of
its speed, so it is transposed first, into a copy that XLA cannot fold back into the dot.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from srjit.numerics.symbolic import all_known
from srjit.products.dot import DotProduct
from srjit.products.product import Product
from srjit.products.quantized import Operand, are_integers, multiply_values, values_of
from srjit.targets.target import Compiler, Target

_EXACT = 2**24 // 127**2  # products of int8 codes that float32 adds without rounding
_MOST_PIECES = 4  # beyond, an int8 dot is as fast and one operation
_HELD_BY_BFLOAT16 = ("int8", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def multiply(product: Product, lhs: Operand, rhs: Operand, *extras: jax.Array) -> jax.Array:
    """See scaled_dot.Multiply."""
    a, b = values_of(lhs), values_of(rhs)
    dtypes = (a.dtype.name, b.dtype.name)
    if not isinstance(product, DotProduct) or any(d not in _HELD_BY_BFLOAT16 for d in dtypes):
        return multiply_values(product, lhs, rhs, *extras)
    integer = are_integers(lhs, rhs)
    product = dataclasses.replace(product, precision=None)
    turned, dot = _contraction_last(a, product)
    cuts = _cuts(dot, turned, b) if integer else [(turned, b)]
    if len(cuts) > _MOST_PIECES:
        return multiply_values(product, lhs, rhs)
    product = dot
    bf16 = jnp.bfloat16
    # XLA would fold transpositions of operands and result into the dot after it has checked that
    # its runtime supports the dot, and then fail when it runs: barriers keep the dot as it is.
    fixed = lax.optimization_barrier
    dot = product.untransposed()
    parts = [
        fixed(dot(*fixed((a.astype(bf16), b.astype(bf16))), dtype=jnp.float32)) for a, b in cuts
    ]
    if len(parts) > 1:
        parts = [functools.reduce(jnp.add, [p.astype(jnp.int32) for p in parts])]
    return product.transposed(parts[0])


def _contraction_last(lhs: jax.Array, product: DotProduct) -> tuple[jax.Array, DotProduct]:
    """The left operand with its contracted dimensions last, in memory too."""
    summed = product.groups(0)[2]
    order = (*(label for label in product.lhs if label in product.out), *summed)
    if not summed or order == product.lhs:
        return lhs, product
    # The barrier keeps the codes that are saved for the backward pass the untransposed ones.
    turned = lax.transpose(lax.optimization_barrier(lhs), [product.lhs.index(d) for d in order])
    pinned = with_layout_constraint(turned, Layout(tuple(range(turned.ndim))))
    return pinned, dataclasses.replace(product, lhs=order)


def _cuts(product: DotProduct, lhs: jax.Array, rhs: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """The operands in pieces of contractions short enough for exact sums.

    Too many of them where the length of the contraction is not known.
    """
    (contract_lhs, contract_rhs), _ = product.dot_dimensions()[1]
    sizes = [lhs.shape[d] for d in contract_lhs]
    if not all_known(sizes):
        return [(lhs, rhs)] * (_MOST_PIECES + 1)
    length = math.prod(sizes)
    if length <= _EXACT:
        return [(lhs, rhs)]
    longest = max(range(len(sizes)), key=sizes.__getitem__)
    size = sizes[longest]
    count = math.ceil(size / max(_EXACT * size // length, 1))
    bounds = [size * i // count for i in range(count + 1)]
    axes = contract_lhs[longest], contract_rhs[longest]
    return [
        (lax.slice_in_dim(lhs, a, b, axis=axes[0]), lax.slice_in_dim(rhs, a, b, axis=axes[1]))
        for a, b in itertools.pairwise(bounds)
    ]


TARGETS = (
    Target(
        name="cpu",
        kinds=("cpu",),
        recipe="int8",
        multiply=multiply,
        integers="bfloat16",
        compiler=Compiler(platform="cpu"),
    ),
)
