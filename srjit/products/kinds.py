"""The kinds of product that srjit quantizes: one entry in this table, and one file, each.

The table needs neither JAX nor MLIR, which reading a module would otherwise import: what a kind's
file defines is imported when it is first asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srjit.products.product import Product

OperandTypes = tuple[tuple[tuple[int, ...], Any], ...]  # shapes and dtypes
PrimitiveCall = tuple[Any, dict[str, Any]]  # a JAX primitive and its parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """Functions that make products of one kind, and tell their sizes.

    Attributes:
      product: the product of a primitive with its parameters, for operands of these ranks; None
        where srjit has no rule for such parameters.
      flops: multiplications and additions of one execution of an equation; rows past the groups
        are counted.
      extents: (rows, columns, contraction) of an equation; of one group of a convolution, of all of
        a ragged product.
      equation: the equation that an operation of a module was lowered from: of the operation's
        attributes, its operands and the dtype of its result. None: no operation is of this kind.
      attributes: of parameters, the attributes that ``equation`` reads them from, where
        ``layer="stablehlo"`` writes the product as a composite. None: JAX's own operation is read.
      primitive: the primitive that is written so.
    """

    product: Callable[[Any, dict[str, Any], tuple[int, ...]], Product | None]
    flops: Callable[[Any], int]
    extents: Callable[[Any], tuple[int, int, int]]
    equation: Callable[[Mapping[str, Any], OperandTypes, Any], PrimitiveCall] | None = None
    attributes: Callable[[dict[str, Any]], dict[str, tuple[int, ...]]] | None = None
    primitive: Any = None


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of product.

    Attributes:
      primitive: the name of the JAX primitive that computes it.
      label: its name in reports.
      file: the module whose ``RULES`` are its.
      operations: the operations of a module that compute it; of composites, their names.
    """

    primitive: str
    label: str
    file: str
    operations: tuple[str, ...] = ()

    @property
    def rules(self) -> Rules:
        """The ``RULES`` of its file."""
        return importlib.import_module(self.file).RULES


KINDS: dict[str, Kind] = {
    kind.primitive: kind
    for kind in (
        Kind(
            "dot_general", "dot", "srjit.products.dot", ("stablehlo.dot_general", "stablehlo.dot")
        ),
        Kind(
            "conv_general_dilated", "conv", "srjit.products.convolution", ("stablehlo.convolution",)
        ),
        Kind("ragged_dot_general", "ragged", "srjit.products.ragged_dot", ("srjit.ragged_dot",)),
    )
}


def of_operation(name: str) -> Kind | None:
    """The kind of product that an operation of a module, or a composite, computes."""
    return next((kind for kind in KINDS.values() if name in kind.operations), None)


def label_of(primitive: str) -> str:
    """The name of a product in reports."""
    return KINDS[primitive].label if primitive in KINDS else primitive


def product_of(eqn: Any) -> Product | None:
    """The product that an equation computes; None where srjit has no rule for its form."""
    ranks = tuple(v.aval.ndim for v in eqn.invars[:2])
    return product_from(eqn.primitive, eqn.params, ranks)


def product_from(primitive: Any, params: Any, ranks: tuple[int, ...]) -> Product | None:
    """The product of a primitive with its parameters, for operands of these ranks."""
    return KINDS[primitive.name].rules.product(primitive, dict(params), ranks)


def rules_of(eqn: Any) -> Rules:
    """The rules of an equation that computes a product."""
    return KINDS[eqn.primitive.name].rules
