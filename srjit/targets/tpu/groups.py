"""Products with groups on TPUs: by kernels, of codes, or of bfloat16 where those have no rate.

XLA's own have no scales of groups, and some of them do not fit in vector memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from srjit.products.product import Product
from srjit.products.quantized import Operand, are_integers, factored, values_of
from srjit.products.ragged_dot import matrices_of
from srjit.targets.kernel_call import kernel_call
from srjit.targets.target import Shapes, Specs
from srjit.targets.tpu.chips import FP8, INT8, Chip, elements_of
from srjit.targets.tpu.group_tiles import LANES

_RESULTS = ("bfloat16", "float32")
_EXACT = FP8 | INT8 | {"bfloat16"}  # in bfloat16


def multiply(
    chip: Chip,
    product: Product,
    lhs: Operand,
    rhs: Operand,
    *extras: jax.Array,
    factors: Sequence[jax.Array],
    dtype: Any,
) -> jax.Array | None:
    """See quantized.MultiplyGroups."""
    known, pair = matrices_of(product), [values_of(lhs), values_of(rhs)]
    (sizes,) = extras
    if known is None or jnp.dtype(dtype).name not in _RESULTS or sizes.ndim != 1:
        return None
    names = {values.dtype.name for values in pair}
    integer = are_integers(lhs, rhs)
    if not chip.has_rate(names) or integer != (names == {"int8"}):
        if not names <= _EXACT:
            return None
        pair, integer = [values.astype(jnp.bfloat16) for values in pair], False
    shapes, size = (pair[0].shape, pair[1].shape), pair[0].dtype.itemsize
    tiles = chip.tiles(known, shapes, sizes.shape[0], size)
    if tiles is None or any(f.size not in (1, sizes.shape[0]) for f in factors):
        return None

    def formula(lhs: jax.Array, rhs: jax.Array, sizes: jax.Array, *factors: jax.Array) -> jax.Array:
        operands = (rhs, lhs) if known.is_swapped else (lhs, rhs)
        out = known(*operands, sizes, jnp.int32 if integer else jnp.float32)
        return factored(product, out, factors, (sizes,), dtype)

    def kernel(lhs: jax.Array, rhs: jax.Array, sizes: jax.Array, *factors: jax.Array) -> jax.Array:
        from srjit.targets.tpu import group_kernels  # Pallas takes a tenth of a second to import

        operands = (rhs, lhs) if known.is_swapped else (lhs, rhs)
        return group_kernels.multiply(
            *operands,
            sizes,
            [jnp.broadcast_to(f.reshape(-1), sizes.shape) for f in factors],
            kind=known.kind,
            out=jax.eval_shape(formula, lhs, rhs, sizes, *factors),
            tiles=tiles,
            memory=chip.kernel_memory,
        )

    return kernel_call(*pair, sizes, *factors, kernel=kernel, formula=formula, platform="tpu")


def hindrance(chip: Chip, product: Product, shapes: Shapes, specs: Specs) -> str:
    """Why no kernel multiplies the codes of a product with groups; empty if one does."""
    known, groups = matrices_of(product), _groups(product, shapes)
    if known is None:
        return "kernels know products of matrices with groups alone"
    if not chip.has_rate(elements_of(specs)):
        return f"{chip.name} has no rate of its own for such codes"
    if any(spec is not None and spec.shared != "tensor" for spec in specs):
        return "kernels know one scale of each group"
    if chip.tiles(known, shapes, groups, 1) is None:
        return (
            f"kernels know {LANES} rows at least, and multiples of {LANES} of the other dimensions"
        )
    return ""


def _groups(product: Product, shapes: Shapes) -> int:
    """The number of groups that an operand tells; 1 where none does."""
    along = product.along(1)
    return 1 if along is None or along.is_ragged else shapes[1][along.dim]
