"""Ragged products: ``ragged_dot_general``, whose groups of rows meet matrices of their own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
from jax import lax

from srjit import _compat
from srjit.products import dot
from srjit.products.kinds import OperandTypes, PrimitiveCall, Rules
from srjit.products.product import Along, PrimitiveProduct, Product, TransposedProduct, bound

# Of matrices: NN and NT are rows times a matrix of each group, in T with what is contracted last;
# TN contracts the rows of two matrices, for a matrix of each group.
Kind = Literal["NN", "NT", "TN"]
Extents = tuple[int, int, int, int]
_NUMBERS: Mapping[Kind, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "NN": ((((1,), (1,)), ((), ())), (0,), (0,)),
    "NT": ((((1,), (2,)), ((), ())), (0,), (0,)),
    "TN": ((((0,), (0,)), ((), ())), (0,), ()),
}


@dataclasses.dataclass(frozen=True)
class GroupedMatrices:
    """A product of matrices with groups.

    Attributes:
      kind: which.
      is_swapped: whether the right operand comes first.
    """

    kind: Kind
    is_swapped: bool = False

    def __call__(self, lhs: jax.Array, rhs: jax.Array, sizes: jax.Array, dtype: Any) -> jax.Array:
        """The product, accumulated in ``dtype``, of operands in their order here."""
        numbers = lax.RaggedDotDimensionNumbers(*_NUMBERS[self.kind])
        return lax.ragged_dot_general(lhs, rhs, sizes, numbers, preferred_element_type=dtype)

    def extents(self, lhs: tuple[int, ...], rhs: tuple[int, ...], groups: int) -> Extents:
        """Rows, what is contracted (TN: rows of a group's result), columns, and groups."""
        columns = rhs[1] if self.kind == "NT" else rhs[-1]
        return lhs[0], lhs[1], columns, groups if self.kind == "TN" else rhs[0]


def matrices_of(product: Product) -> GroupedMatrices | None:
    """A product with groups as products of matrices; None if it is not that."""
    if isinstance(product, TransposedProduct):
        of = matrices_of(product.of)
        return None if of is None or of.is_swapped else _TRANSPOSES.get((of.kind, product.side))
    if not isinstance(product, PrimitiveProduct) or product.primitive is not RULES.primitive:
        return None
    numbers = dict(product.params)["ragged_dot_dimension_numbers"]
    (contracting, batch) = numbers.dot_dimension_numbers
    own = (
        (tuple(map(tuple, contracting)), tuple(map(tuple, batch))),
        tuple(numbers.lhs_ragged_dimensions),
        tuple(numbers.rhs_group_dimensions),
    )
    return next((GroupedMatrices(kind) for kind, known in _NUMBERS.items() if known == own), None)


_TRANSPOSES = {
    ("NN", 0): GroupedMatrices("NT"),
    ("NN", 1): GroupedMatrices("TN"),
    ("NT", 0): GroupedMatrices("NN"),
    ("NT", 1): GroupedMatrices("TN", is_swapped=True),
}

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
