"""Bilinear products, their transposes and their batching, apart from how they are computed.

A product takes two arrays and, for ragged ones, group sizes. Its transposes are products again, so
that the forward product, dgrad and wgrad are one kind of thing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from srjit import _compat

Labels = tuple[int, ...]
_LHS, _RHS = 0, 1


class Product(Protocol):
    """A bilinear map ``(lhs, rhs, *extras) -> out``."""

    def __call__(self, lhs: jax.Array, rhs: jax.Array, *extras: jax.Array, dtype: Any) -> jax.Array:
        """The product, accumulated and returned in ``dtype``."""
        ...

    def transpose(self, side: int, operand: Any) -> Product:
        """For side 0: the product (ct, rhs) -> lhs cotangent; for 1: (lhs, ct) -> rhs cotangent.

        Args:
          side: the operand to differentiate.
          operand: that operand's aval.
        """
        ...

    def batch(self, mapped: tuple[bool, ...]) -> Product:
        """The product under vmap, mapped operands having a new leading dimension."""
        ...

    def contracting(self, side: int) -> tuple[int, ...]:
        """Dimensions of an operand that are summed over, blocks running along the last."""
        ...

    @property
    def can_rotate(self) -> bool:
        """Whether a Hadamard transform of both operands along the contraction cancels."""
        ...

    def masks(self, which: int) -> bool:
        """Whether some rows (of 0: lhs, 1: rhs, 2: out) mean nothing."""
        ...

    def mask(self, which: int, x: jax.Array, *extras: jax.Array) -> jax.Array:
        """x (0: lhs, 1: rhs, 2: out) with zeros in the rows that mean nothing, if it has any."""
        ...

    def equation(self) -> tuple[Any, dict[str, Any]]:
        """The JAX primitive that computes it, and its parameters."""
        ...


@dataclasses.dataclass(frozen=True)
class DotProduct:
    """``dot_general``, dimensions named by labels as in an einsum.

    Attributes:
      lhs, rhs, out: one label a dimension; a label of both operands that is not of ``out`` is
        contracted.
      precision: as of ``lax.dot_general``.
      out_sharding: of the result, for explicitly sharded programs.
      is_turned: whether all that the program does with the result, a matrix, is to transpose it:
        compilers then multiply the other way around.
    """

    lhs: Labels
    rhs: Labels
    out: Labels
    precision: Any = None
    out_sharding: Any = None
    is_turned: bool = False

    @classmethod
    def of(
        cls, dimension_numbers: Any, ndims: tuple[int, int], precision: Any, out_sharding: Any
    ) -> DotProduct:
        """From the parameters of ``dot_general`` and the ranks of its operands."""
        (lc, rc), (lb, rb) = dimension_numbers
        lhs = tuple(range(ndims[0]))
        paired = dict(zip((*rc, *rb), (*lc, *lb), strict=True))
        rhs = tuple(paired.get(d, ndims[0] + d) for d in range(ndims[1]))
        free_lhs = tuple(d for d in lhs if d not in (*lc, *lb))
        out = (*lb, *free_lhs, *(label for label in rhs if label not in lhs))
        return cls(lhs, rhs, out, precision, out_sharding)

    def __call__(self, lhs: jax.Array, rhs: jax.Array, *extras: jax.Array, dtype: Any) -> jax.Array:
        """The product, accumulated and returned in ``dtype``."""
        dot = self.untransposed()
        sharding = {"out_sharding": dot.out_sharding} if dot.out_sharding else {}
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

    @property
    def can_rotate(self) -> bool:
        """See Product."""
        return bool(self.contracting(_LHS))

    def masks(self, which: int) -> bool:
        """See Product."""
        return False

    def mask(self, which: int, x: jax.Array, *extras: jax.Array) -> jax.Array:
        """See Product."""
        return x

    def equation(self) -> tuple[Any, dict[str, Any]]:
        """See Product."""
        return lax.dot_general_p, {
            "dimension_numbers": self.dot_dimensions()[1],
            "precision": self.precision,
            "preferred_element_type": None,
            "out_sharding": self.out_sharding,
        }


Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class PrimitiveProduct:
    """A bilinear JAX primitive: a convolution or a ragged dot.

    Attributes:
      primitive: the primitive.
      params: its parameters, as items.
      contractions: the dimensions of both operands that blocks run along, of the product itself and
        of its two transposes (where the cotangent stands for the operand).
      rotatable: for the same three, whether a Hadamard transform along them cancels.
      tails: for ragged products, the dimension of (lhs, rhs, out) whose rows past the groups mean
        nothing; None where there is no such dimension.
    """

    primitive: Any
    params: tuple[tuple[str, Any], ...]
    contractions: tuple[Pair, Pair, Pair]
    rotatable: tuple[bool, bool, bool]
    tails: tuple[int | None, int | None, int | None] = (None, None, None)

    @classmethod
    def convolution(cls, primitive: Any, params: dict[str, Any]) -> PrimitiveProduct:
        """Of ``conv_general_dilated``: the feature, or the batch for the gradient of a kernel."""
        lhs, rhs, out = params["dimension_numbers"]
        plain = params["feature_group_count"] == params["batch_group_count"] == 1
        pairs = (lhs[1], rhs[1]), (out[1], rhs[0]), (lhs[0], out[0])
        return cls(primitive, tuple(sorted(params.items())), pairs, (plain,) * 3)

    @classmethod
    def ragged(cls, primitive: Any, params: dict[str, Any], ndim: int) -> PrimitiveProduct | None:
        """Of ``ragged_dot_general``, its ragged dimension free or contracted; None if batched."""
        numbers = params["ragged_dot_dimension_numbers"]
        (lc, rc), (lb, rb) = numbers.dot_dimension_numbers
        (ragged,) = numbers.lhs_ragged_dimensions
        items = tuple(sorted(params.items()))
        free = [d for d in range(ndim) if d not in (*lc, *lb)]
        if ragged in lc:  # a wgrad: both operands have the ragged rows, the result has none
            other = rc[lc.index(ragged)]
            pairs = (ragged, other), (ragged, other), (ragged, other)
            return cls(primitive, items, pairs, (False, False, False), (ragged, other, None))
        if ragged in lb or len(lc) != 1:
            return None
        rhs_free = [
            d for d in range(ndim + 1) if d not in (*rc, *rb, *numbers.rhs_group_dimensions)
        ]
        out = len(lb) + free.index(ragged)
        columns = (len(lb) + len(free), rhs_free[0])
        pairs = (lc[0], rc[0]), columns, (ragged, out)
        return cls(primitive, items, pairs, (True, True, False), (ragged, None, out))

    def __call__(self, lhs: jax.Array, rhs: jax.Array, *extras: jax.Array, dtype: Any) -> jax.Array:
        """The product, accumulated and returned in ``dtype``."""
        params = dict(self.params)
        if "preferred_element_type" in params:
            params["preferred_element_type"] = jnp.dtype(dtype)
        return self.primitive.bind(lhs, rhs, *extras, **params).astype(dtype)

    def transpose(self, side: int, operand: Any) -> TransposedProduct:
        """See Product."""
        return TransposedProduct(self, side, operand.shape)

    def batch(self, mapped: tuple[bool, ...]) -> VmappedProduct:
        """See Product."""
        return VmappedProduct(self, mapped)

    def pair(self, transposed: int | None) -> Pair:
        """What blocks run along, in the product (None) or in a transpose."""
        return self.contractions[0 if transposed is None else transposed + 1]

    def contracting(self, side: int) -> tuple[int, ...]:
        """See Product."""
        return (self.contractions[0][side],)

    @property
    def can_rotate(self) -> bool:
        """See Product."""
        return self.rotatable[0]

    def can_rotate_transposed(self, side: int) -> bool:
        """Whether a Hadamard transform cancels in a transpose."""
        return self.rotatable[side + 1]

    def masks(self, which: int) -> bool:
        """See Product."""
        return self.tails[which] is not None

    def equation(self) -> tuple[Any, dict[str, Any]]:
        """See Product."""
        return self.primitive, dict(self.params)

    def mask(self, which: int, x: jax.Array, *extras: jax.Array) -> jax.Array:
        """x (0: lhs, 1: rhs, 2: out) with zeros in rows past the groups."""
        tail = self.tails[which]
        if tail is None:
            return x
        rows = jnp.sum(extras[0])
        inside = lax.broadcasted_iota(rows.dtype, x.shape, tail) < rows
        return jnp.where(inside, x, jnp.zeros_like(x))


@dataclasses.dataclass(frozen=True)
class TransposedProduct:
    """A transpose of another product, taken by JAX.

    Attributes:
      of: the product.
      side: the operand whose cotangent this computes; its place is taken by the cotangent.
      shape: that operand's shape.
    """

    of: PrimitiveProduct | VmappedProduct | TransposedProduct
    side: int
    shape: tuple[int, ...]

    def __call__(self, lhs: jax.Array, rhs: jax.Array, *extras: jax.Array, dtype: Any) -> jax.Array:
        """The product, accumulated and returned in ``dtype``."""
        ct, other = (lhs, rhs) if self.side == _LHS else (rhs, lhs)
        other = other.astype(dtype)

        def forward(t: jax.Array) -> jax.Array:
            pair = (t, other) if self.side == _LHS else (other, t)
            return self.of(*pair, *extras, dtype=dtype)

        transposed = jax.linear_transpose(forward, jax.ShapeDtypeStruct(self.shape, dtype))
        return transposed(ct.astype(dtype))[0]

    def transpose(self, side: int, operand: Any) -> TransposedProduct:
        """See Product."""
        return TransposedProduct(self, side, operand.shape)

    def batch(self, mapped: tuple[bool, ...]) -> VmappedProduct:
        """See Product."""
        return VmappedProduct(self, mapped)

    def contracting(self, side: int) -> tuple[int, ...]:
        """See Product."""
        return (self.pair(None)[side],)

    def pair(self, transposed: int | None) -> Pair:
        """What blocks run along; there is no transpose of a transpose."""
        return self.of.pair(self.side)

    @property
    def can_rotate(self) -> bool:
        """See Product."""
        return self.of.can_rotate_transposed(self.side)

    def can_rotate_transposed(self, side: int) -> bool:
        """There is no transpose of a transpose."""
        return False

    def masks(self, which: int) -> bool:
        """See Product."""
        return self.of.masks(self._of(which))

    def equation(self) -> tuple[Any, dict[str, Any]]:
        """See Product."""
        return self.of.equation()

    def mask(self, which: int, x: jax.Array, *extras: jax.Array) -> jax.Array:
        """x (0: lhs, 1: rhs, 2: out) with zeros in rows past the groups."""
        return self.of.mask(self._of(which), x, *extras)

    def _of(self, which: int) -> int:
        return {self.side: 2, 2: self.side}.get(which, which)


@dataclasses.dataclass(frozen=True)
class VmappedProduct:
    """Another product under vmap: flagged operands have a leading dimension more."""

    of: PrimitiveProduct | TransposedProduct | VmappedProduct
    mapped: tuple[bool, ...]

    def __call__(self, lhs: jax.Array, rhs: jax.Array, *extras: jax.Array, dtype: Any) -> jax.Array:
        """The product, accumulated and returned in ``dtype``."""
        axes = tuple(0 if m else None for m in self.mapped)
        return jax.vmap(functools.partial(self.of, dtype=dtype), in_axes=axes)(lhs, rhs, *extras)

    def transpose(self, side: int, operand: Any) -> TransposedProduct:
        """See Product."""
        return TransposedProduct(self, side, operand.shape)

    def batch(self, mapped: tuple[bool, ...]) -> VmappedProduct:
        """See Product."""
        return VmappedProduct(self, mapped)

    def pair(self, transposed: int | None) -> Pair:
        """What blocks run along, in the product (None) or in a transpose."""
        lhs, rhs = self.of.pair(transposed)  # type: ignore[union-attr]
        return lhs + (self.mapped[0] or transposed == _LHS), rhs + (
            self.mapped[1] or transposed == _RHS
        )

    def contracting(self, side: int) -> tuple[int, ...]:
        """See Product."""
        return tuple(d + self.mapped[side] for d in self.of.contracting(side))

    @property
    def can_rotate(self) -> bool:
        """See Product."""
        return self.of.can_rotate

    def can_rotate_transposed(self, side: int) -> bool:
        """Whether a Hadamard transform cancels in a transpose."""
        return self.of.can_rotate_transposed(side)  # type: ignore[union-attr]

    def masks(self, which: int) -> bool:
        """See Product."""
        return self.of.masks(which)

    def equation(self) -> tuple[Any, dict[str, Any]]:
        """See Product."""
        return self.of.equation()

    def mask(self, which: int, x: jax.Array, *extras: jax.Array) -> jax.Array:
        """x (0: lhs, 1: rhs, 2: out) with zeros in rows past the groups."""
        mapped = (*self.mapped[:2], True)[which]
        axes = (0 if mapped else None, *(0 if m else None for m in self.mapped[2:]))
        if all(axis is None for axis in axes):
            return self.of.mask(which, x, *extras)
        return jax.vmap(functools.partial(self.of.mask, which), in_axes=axes)(x, *extras)
