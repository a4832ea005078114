"""What an equation multiplies: its product, its size, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from srjit.products.product import DotProduct, PrimitiveProduct, Product


def product_of(eqn: Any) -> Product | None:
    """The product that an equation computes; None where srjit has no rule for its form."""
    ranks = tuple(v.aval.ndim for v in eqn.invars[:2])
    return product_from(eqn.primitive, eqn.params, ranks)


def product_from(primitive: Any, params: Any, ranks: tuple[int, ...]) -> Product | None:
    """The product of a primitive with its parameters, for operands of these ranks."""
    if primitive.name == "dot_general":
        out_sharding = params.get("out_sharding")
        return DotProduct.of(
            params["dimension_numbers"], (ranks[0], ranks[1]), params["precision"], out_sharding
        )
    if primitive.name == "conv_general_dilated":
        return PrimitiveProduct.convolution(primitive, dict(params))
    return PrimitiveProduct.ragged(primitive, dict(params), ranks[0])


def flops_of(eqn: Any) -> int:
    """Multiplications and additions of one execution; rows past the groups are counted."""
    lhs, rhs = (v.aval for v in eqn.invars[:2])
    out = eqn.outvars[0].aval
    params = eqn.params
    if eqn.primitive.name == "conv_general_dilated":
        kernel = params["dimension_numbers"].rhs_spec
        return 2 * out.size * rhs.size // max(rhs.shape[kernel[0]], 1)
    if eqn.primitive.name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        return 2 * out.size * math.prod(lhs.shape[d] for d in contract)
    numbers = params["ragged_dot_dimension_numbers"]
    (contract, _), _ = numbers.dot_dimension_numbers
    groups = out.shape[0] if set(numbers.lhs_ragged_dimensions) & set(contract) else 1
    return 2 * out.size * math.prod(lhs.shape[d] for d in contract) // max(groups, 1)


def extents_of(eqn: Any) -> tuple[int, int, int]:
    """(rows, columns, contraction); of one group of a convolution, of all of a ragged product."""
    lhs, rhs = (v.aval for v in eqn.invars[:2])
    params = eqn.params
    if eqn.primitive.name == "conv_general_dilated":
        features = max(rhs.shape[params["dimension_numbers"].rhs_spec[0]], 1)
        groups = params["feature_group_count"] * params["batch_group_count"]
        return eqn.outvars[0].aval.size // features, features // groups, rhs.size // features
    grouped: Sequence[int] = ()
    if eqn.primitive.name == "dot_general":
        (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = params["dimension_numbers"]
    else:
        numbers = params["ragged_dot_dimension_numbers"]
        grouped = numbers.rhs_group_dimensions
        (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = numbers.dot_dimension_numbers

    def free(shape: Sequence[int], *taken: int) -> int:
        return math.prod(n for d, n in enumerate(shape) if d not in taken)

    return (
        free(lhs.shape, *lhs_contract, *lhs_batch),
        free(rhs.shape, *rhs_contract, *rhs_batch, *grouped),
        math.prod(lhs.shape[d] for d in lhs_contract),
    )
