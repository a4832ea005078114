"""Bilinear products, their transposes and their batching, apart from how they are computed.

A product takes two arrays and, for ragged ones, group sizes. Its transposes are products again, so
that the forward product, dgrad and wgrad are one kind of thing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from srjit.products.kinds import Equation, Operands

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


Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class PrimitiveProduct:
    """A bilinear JAX primitive, whose transposes JAX takes.

    Attributes:
      primitive: the primitive.
      params: its parameters, as items.
      contractions: the dimensions of both operands that blocks run along, of the product itself and
        of its two transposes (where the cotangent stands for the operand).
      rotatable: for the same three, whether a Hadamard transform along them cancels.
      tails: for ragged products, the dimension of (lhs, rhs, out) whose rows past the groups (the
        first extra operand) mean nothing; None where there is no such dimension.
    """

    primitive: Any
    params: tuple[tuple[str, Any], ...]
    contractions: tuple[Pair, Pair, Pair]
    rotatable: tuple[bool, bool, bool]
    tails: tuple[int | None, int | None, int | None] = (None, None, None)

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


def bound(fun: Callable[..., Any], operands: Operands) -> Equation:
    """The primitive that a function binds, with all parameters, those of this JAX version too.

    Raises:
      ValueError: it binds more than one.
    """
    with jax.enable_x64(True):
        structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in operands]
        eqns = jax.make_jaxpr(fun)(*structs).eqns
    if len(eqns) != 1:
        raise ValueError("its operands or its result are of other types than JAX's")
    return eqns[0].primitive, dict(eqns[0].params)
