"""Products of codes on TPUs, in the order in which a chip multiplies them fastest.

A product whose operands stand in the wrong order runs at the rate of bfloat16, or a little faster,
so codes are transposed first where that is cheaper: cheapest by the kernel that quantizes them, or
else by a kernel that does nothing else, or else by XLA.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from srjit.products.dot import DotProduct
from srjit.products.product import Product
from srjit.products.quantized import (
    Operand,
    ScaledValues,
    are_integers,
    multiply_values,
    values_of,
)
from srjit.targets.kernel_call import kernel_call
from srjit.targets.layouts import Order, order_of, pinned, turn
from srjit.targets.target import FASTER, Shapes, Specs
from srjit.targets.tpu import groups
from srjit.targets.tpu.chips import FP8, Chip, elements_of

T = TypeVar("T")

_GAIN = 0.05  # of a product's cycles, to be gained by an order at least: they are estimates


def multiply(
    chip: Chip, product: Product, lhs: Operand, rhs: Operand, *extras: jax.Array
) -> jax.Array:
    """See scaled_dot.Multiply."""
    pair = values_of(lhs), values_of(rhs)
    dtypes = {values.dtype.name for values in pair}
    if not isinstance(product, DotProduct):
        return multiply_values(product, lhs, rhs, *extras)
    product = dataclasses.replace(product, precision=None)
    integer = are_integers(lhs, rhs)
    if chip.has_rate(dtypes) and integer == (dtypes == {"int8"}):
        turned = _turned(lhs), _turned(rhs)
        if product.is_turned:  # the left operand is the one that the result's rows come from
            product, pair, turned = product.swapped, _swapped(pair), _swapped(turned)
        dtype = jnp.int32 if integer else jnp.float32
        fastest = functools.partial(_multiply_fastest, chip, product, dtype)
        return kernel_call(
            *pair,
            turned,
            kernel=functools.partial(fastest, True),
            formula=functools.partial(fastest, False),
            platform="tpu",
            partitions=True,  # XLA's own operations, and kernels that are calls of their own
        )
    if dtypes <= FP8 | {"bfloat16"}:  # exact in bfloat16
        return product(*(values.astype(jnp.bfloat16) for values in pair), dtype=jnp.float32)
    return multiply_values(product, lhs, rhs)


def _turned(operand: Operand) -> jax.Array | None:
    return operand.turned if isinstance(operand, ScaledValues) else None


def turns(chip: Chip, product: Product, shapes: Shapes, specs: Specs) -> tuple[bool, bool]:
    """See targets.Target."""
    if not isinstance(product, DotProduct) or not chip.has_rate(elements_of(specs)):
        return False, False
    if product.is_turned:
        rhs, lhs = turns(chip, product.swapped, _swapped(shapes), _swapped(specs))
        return lhs, rhs
    costs = [math.prod(shape) * chip.beside for shape in shapes]
    wanted = _sides_to_turn(chip, product, shapes, costs)
    fitting = [side for side in wanted if _is_last_first(turn(product, side)[1])]
    return 0 in fitting, 1 in fitting


def is_native(chip: Chip, product: Product, shapes: Shapes, specs: Specs) -> bool:
    """See targets.Target."""
    if product.along(2) is not None:
        return not groups.hindrance(chip, product, shapes, specs)
    if not isinstance(product, DotProduct) or not chip.has_rate(elements_of(specs)):
        return False
    if product.is_turned:
        return is_native(chip, product.swapped, _swapped(shapes), _swapped(specs))
    # By the dearest copies, which every program can have.
    costs = [math.prod(shape) * chip.turning for shape in shapes]
    for side in _sides_to_turn(chip, product, shapes, costs):
        product = turn(product, side)[0]
    return chip.rate / chip.orders[order_of(product) or "TN"] > FASTER * chip.plain


def hindrance(chip: Chip, product: Product, shapes: Shapes, specs: Specs) -> str:
    """See targets.Target."""
    has_groups = product.along(2) is not None and chip.has_rate(elements_of(specs))
    return groups.hindrance(chip, product, shapes, specs) if has_groups else ""


def _swapped(pair: tuple[T, T]) -> tuple[T, T]:
    return pair[1], pair[0]


def _sides_to_turn(
    chip: Chip, product: DotProduct, shapes: Shapes, costs: Sequence[float]
) -> list[int]:
    """The operands of which a copy, at these ``costs`` in cycles, is multiplied faster."""
    order = order_of(product)
    if order is None:
        return []
    cycles = product.operations(*shapes) / chip.rate

    def cost(wanted: Order) -> float:
        copied = (c for c, a, b in zip(costs, order, wanted, strict=True) if a != b)
        return cycles * chip.orders[wanted] + sum(copied)

    best = min(chip.orders, key=cost)
    if cost(order) - cost(best) < _GAIN * cycles:
        return []
    return [side for side in (0, 1) if best[side] != order[side]]


def _multiply_fastest(
    chip: Chip,
    product: DotProduct,
    dtype: Any,
    kernels: bool,
    lhs: jax.Array,
    rhs: jax.Array,
    turned: tuple[jax.Array | None, jax.Array | None],
) -> jax.Array:
    """The product, of copies of operands where that takes fewer cycles.

    Without ``kernels`` that make copies, those in ``turned`` were not made either.
    """
    from srjit.targets.tpu import (
        kernels as tpu_kernels,  # Pallas takes a tenth of a second to import
    )

    # Pinned, or XLA would give codes that are also used transposed the layout of that use.
    operands = [pinned(lhs), pinned(rhs)]
    copies: list[tuple[float, Callable[[jax.Array], jax.Array]]] = []
    for side, codes in enumerate(operands):
        permutation = turn(product, side)[1]
        by_kernel = kernels and _is_last_first(permutation)
        given = turned[side]
        if by_kernel and given is not None:
            copies.append((0.0, lambda _, given=given: given))
        elif by_kernel and tpu_kernels.can_transpose(codes):
            copies.append((codes.size * chip.transposing, tpu_kernels.transpose))
        else:
            cost = codes.size * chip.turning
            copies.append((cost, lambda x, to=permutation: pinned(lax.transpose(x, to))))
    shapes = operands[0].shape, operands[1].shape
    for side in _sides_to_turn(chip, product, shapes, [cycles for cycles, _ in copies]):
        # The barriers keep the codes that are saved for the backward pass the untransposed ones,
        # and XLA from folding the transposition into the multiplication.
        codes = lax.optimization_barrier(operands[side])
        operands[side] = lax.optimization_barrier(copies[side][1](codes))
        product = turn(product, side)[0]
    return product(*operands, dtype=dtype)


def _is_last_first(permutation: Sequence[int]) -> bool:
    last = len(permutation) - 1
    return tuple(permutation) == (last, *range(last))
