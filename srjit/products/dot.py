"""Matrix products: ``dot_general``."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from srjit import _compat
from srjit.products.kinds import OperandTypes, PrimitiveCall, Rules
from srjit.products.product import Product

Labels = tuple[int, ...]
_LHS = 0

# What a product's operation says of itself: see DotProduct.sums.
SUMS = "srjit_sums"


@dataclasses.dataclass(frozen=True)
class DotProduct(Product):
    """``dot_general``, dimensions named by labels as in an einsum.

    Attributes:
      lhs, rhs, out: one label a dimension; a label of both operands that is not of ``out`` is
        contracted.
      precision: as of ``lax.dot_general``.
      out_sharding: of the result, for explicitly sharded programs.
      is_turned: whether all that the program does with the result, a matrix, is to transpose it:
        compilers then multiply the other way around.
      sums: HLO's name of the dtype in which partial products are to be added, should a compiler
        shard the contraction; empty: in that of the product.
    """

    lhs: Labels
    rhs: Labels
    out: Labels
    precision: Any = None
    out_sharding: Any = None
    is_turned: bool = False
    sums: str = ""

    @classmethod
    def of(cls, primitive: Any, params: Mapping[str, Any], ndims: tuple[int, ...]) -> DotProduct:
        """From the parameters of ``dot_general`` and the ranks of its operands."""
        (lc, rc), (lb, rb) = params["dimension_numbers"]
        lhs = tuple(range(ndims[0]))
        paired = dict(zip((*rc, *rb), (*lc, *lb), strict=True))
        rhs = tuple(paired.get(d, ndims[0] + d) for d in range(ndims[1]))
        free_lhs = tuple(d for d in lhs if d not in (*lc, *lb))
        out = (*lb, *free_lhs, *(label for label in rhs if label not in lhs))
        return cls(lhs, rhs, out, params["precision"], params.get("out_sharding"))

    def __call__(self, lhs: jax.Array, rhs: jax.Array, *extras: jax.Array, dtype: Any) -> jax.Array:
        """See Product."""
        dot = self.untransposed()
        sharding = {"out_sharding": dot.out_sharding} if dot.out_sharding else {}
        said = set_xla_metadata(**{SUMS: self.sums}) if self.sums else contextlib.nullcontext()
        with said:
            out = lax.dot_general(
                lhs,
                rhs,
                dot.dot_dimensions()[1],
                precision=self.precision,
                preferred_element_type=dtype,
                **sharding,
            )
        return self.transposed(out)

    def untransposed(self) -> DotProduct:
        """The product as ``dot_general`` returns it."""
        order = self.dot_dimensions()[0]
        sharding = self.out_sharding
        if order != self.out and sharding is not None:
            axes = tuple(sharding.spec) + (None,) * (len(self.out) - len(sharding.spec))
            spec = sharding.spec.update(partitions=tuple(axes[self.out.index(d)] for d in order))
            sharding = sharding.update(spec=spec)
        return dataclasses.replace(self, out=order, out_sharding=sharding)

    def transposed(self, out: jax.Array) -> jax.Array:
        """The result of the ``untransposed`` product as that of this one."""
        order = self.dot_dimensions()[0]
        return out if order == self.out else lax.transpose(out, [order.index(d) for d in self.out])

    def dot_dimensions(self) -> tuple[Labels, Any]:
        """Labels of what ``dot_general`` returns, and its dimension numbers."""
        both = [d for d in self.lhs if d in self.rhs]
        batch = [d for d in self.out if d in both]
        contract = [d for d in both if d not in self.out]
        order = (
            *batch,
            *(d for d in self.lhs if d not in both),
            *(d for d in self.rhs if d not in both),
        )
        numbers = tuple(
            tuple(tuple(side.index(d) for d in dims) for side in (self.lhs, self.rhs))
            for dims in (contract, batch)
        )
        return order, numbers

    def groups(self, side: int) -> tuple[Labels, Labels, Labels]:
        """An operand's labels: those of a batch, those free, and those contracted."""
        labels, other = (self.lhs, self.rhs) if side == _LHS else (self.rhs, self.lhs)
        batch = tuple(d for d in labels if d in other and d in self.out)
        free = tuple(d for d in labels if d not in other and d in self.out)
        return batch, free, tuple(d for d in labels if d not in self.out)

    def shape(self, lhs: tuple[int, ...], rhs: tuple[int, ...]) -> tuple[int, ...]:
        """The result's shape, of operands' shapes."""
        sizes = dict(zip(self.lhs + self.rhs, lhs + rhs, strict=True))
        return tuple(sizes[d] for d in self.out)

    def operations(self, lhs: tuple[int, ...], rhs: tuple[int, ...]) -> int:
        """Multiplications and additions, of operands' shapes."""
        sizes = dict(zip(self.lhs + self.rhs, lhs + rhs, strict=True))
        return 2 * math.prod(sizes.values())

    @property
    def swapped(self) -> DotProduct:
        """The same of the operands the other way around."""
        return dataclasses.replace(self, lhs=self.rhs, rhs=self.lhs, is_turned=False)

    def transpose(self, side: int, operand: Any) -> DotProduct:
        """See Product."""
        sharding = _compat.explicit_sharding(operand)
        if side == _LHS:
            return DotProduct(self.out, self.rhs, self.lhs, self.precision, sharding)
        return DotProduct(self.lhs, self.out, self.rhs, self.precision, sharding)

    def batch(self, mapped: tuple[bool, ...]) -> DotProduct:
        """See Product."""
        new = (max((*self.lhs, *self.rhs), default=-1) + 1,)
        return dataclasses.replace(
            self,
            lhs=new * mapped[0] + self.lhs,
            rhs=new * mapped[1] + self.rhs,
            out=new + self.out,
            out_sharding=None,
            is_turned=False,
        )

    def contracting(self, side: int) -> tuple[int, ...]:
        """See Product."""
        labels, other = (self.lhs, self.rhs) if side == _LHS else (self.rhs, self.lhs)
        # In the order of rhs for both, so that blocks of both run along the same elements.
        order = [d for d in self.rhs if d in self.lhs and d not in self.out]
        return tuple(labels.index(d) for d in order if d in other)

    def rotates(self, transposed: int | None = None) -> bool:
        """See Product."""
        return bool(self.contracting(_LHS))

    def equation(self) -> PrimitiveCall:
        """See Product."""
        return lax.dot_general_p, {
            "dimension_numbers": self.dot_dimensions()[1],
            "precision": self.precision,
            "preferred_element_type": None,
            "out_sharding": self.out_sharding,
        }


def extents(numbers: Any, eqn: Any, grouped: Sequence[int] = ()) -> tuple[int, int, int]:
    """(rows, columns, contraction) of an equation with dimension numbers of a dot.

    Args:
      numbers: the dimension numbers.
      eqn: the equation.
      grouped: dimensions of the right operand that are no columns.
    """
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = numbers
    lhs, rhs = (v.aval.shape for v in eqn.invars[:2])

    def free(shape: Sequence[int], *taken: int) -> int:
        return math.prod(n for d, n in enumerate(shape) if d not in taken)

    return (
        free(lhs, *lhs_contract, *lhs_batch),
        free(rhs, *rhs_contract, *rhs_batch, *grouped),
        math.prod(lhs[d] for d in lhs_contract),
    )


def flops(numbers: Any, eqn: Any) -> int:
    """Multiplications and additions of an equation with dimension numbers of a dot."""
    (contract, _), _ = numbers
    lhs, out = eqn.invars[0].aval, eqn.outvars[0].aval
    return 2 * out.size * math.prod(lhs.shape[d] for d in contract)


def precision_of(attributes: Mapping[str, Any]) -> Any:
    """An operation's precision as JAX has it: None, or one for each operand."""
    both = tuple(getattr(lax.Precision, name) for name in attributes.get("precision_config", ()))
    return None if set(both) <= {lax.Precision.DEFAULT} else both


def _equation(attributes: Mapping[str, Any], operands: OperandTypes, dtype: Any) -> PrimitiveCall:
    plain = ((len(operands[0][0]) - 1,), (0,)), ((), ())  # of stablehlo.dot
    return lax.dot_general_p, {
        "dimension_numbers": attributes.get("dot_dimension_numbers", plain),
        "precision": precision_of(attributes),
    }


RULES = Rules(
    product=DotProduct.of,
    flops=lambda eqn: flops(eqn.params["dimension_numbers"], eqn),
    extents=lambda eqn: extents(eqn.params["dimension_numbers"], eqn),
    equation=_equation,
)
