"""Ragged products: ``ragged_dot_general``, whose groups of rows meet matrices of their own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from jax import lax

from srjit import _compat
from srjit.products import dot
from srjit.products.kinds import OperandTypes, PrimitiveCall, Rules
from srjit.products.product import Along, PrimitiveProduct, bound

_FIELDS = (
    "lhs_contracting", "rhs_contracting", "lhs_batch", "rhs_batch", "lhs_ragged", "rhs_group",
)  # fmt: skip


def _product(
    primitive: Any, params: dict[str, Any], ranks: tuple[int, ...]
) -> PrimitiveProduct | None:
    """Its ragged dimension is free or contracted; None if it is one of a batch."""
    numbers = params["ragged_dot_dimension_numbers"]
    (lc, rc), (lb, rb) = numbers.dot_dimension_numbers
    (ragged,) = numbers.lhs_ragged_dimensions
    make = functools.partial(PrimitiveProduct, primitive, tuple(sorted(params.items())))
    free = [d for d in range(ranks[0]) if d not in (*lc, *lb)]
    if ragged in lc:  # a wgrad: both operands have the ragged rows, the result has none
        at = lc.index(ragged)
        pair = ragged, rc[at]
        rank = 1 + ranks[0] + ranks[1] - 2 * len(lc) - len(lb)
        groups = (
            Along(ranks[0], ragged, before=(*lb, *lc[:at])),
            Along(ranks[1], rc[at], before=(*rb, *rc[:at])),
            Along(rank, 0, is_ragged=False),
        )
        return make((pair, pair, pair), (False, False, False), groups)
    if ragged in lb or len(lc) != 1:
        return None
    (group,) = numbers.rhs_group_dimensions
    columns = next(d for d in range(ranks[0] + 1) if d not in (*rc, *rb, group))
    out = len(lb) + free.index(ragged)
    groups = (
        Along(ranks[0], ragged, before=(*lb, *free[: free.index(ragged)])),
        Along(ranks[1], group, is_ragged=False),
        Along(ranks[0] + ranks[1] - 2 * len(lc) - len(lb) - 1, out, before=tuple(range(out))),
    )
    pairs = (lc[0], rc[0]), (len(lb) + len(free), columns), (ragged, out)
    return make(pairs, (True, True, False), groups)


def _flops(eqn: Any) -> int:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contract, _), _ = numbers.dot_dimension_numbers
    summed = set(numbers.lhs_ragged_dimensions) & set(contract)
    groups = eqn.outvars[0].aval.shape[0] if summed else 1
    return dot.flops(numbers.dot_dimension_numbers, eqn) // max(groups, 1)


def _extents(eqn: Any) -> tuple[int, int, int]:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    return dot.extents(numbers.dot_dimension_numbers, eqn, numbers.rhs_group_dimensions)


def _attributes(params: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    numbers = params["ragged_dot_dimension_numbers"]
    contracting, batch = numbers.dot_dimension_numbers
    values = (*contracting, *batch, numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions)
    return {name: tuple(map(int, v)) for name, v in zip(_FIELDS, values, strict=True)}


def _equation(attributes: Mapping[str, Any], operands: OperandTypes, dtype: Any) -> PrimitiveCall:
    given = attributes["composite_attributes"]
    floats = tuple((shape, dtype) for shape, _ in operands[:2])
    lc, rc, lb, rb, ragged, group = (given[field] for field in _FIELDS)
    return bound(
        lax.ragged_dot_general,
        (*floats, operands[2]),
        ragged_dot_dimension_numbers=lax.RaggedDotDimensionNumbers(
            ((lc, rc), (lb, rb)), ragged, group
        ),
        preferred_element_type=dtype,
    )


RULES = Rules(
    product=_product,
    flops=_flops,
    extents=_extents,
    equation=_equation,
    attributes=_attributes,
    primitive=_compat.ragged_dot_general_p,
)
