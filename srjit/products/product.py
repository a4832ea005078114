"""Bilinear products, their transposes and their batching, apart from how they are computed.

A product takes two arrays and, for ragged ones, group sizes. Its transposes are products again, so
that the forward product, dgrad and wgrad are one kind of thing.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from srjit.products.kinds import OperandTypes, PrimitiveCall

Pair = tuple[int, int]
_LHS, _RHS = 0, 1


class Product(abc.ABC):
    """A bilinear map ``(lhs, rhs, *extras) -> out``.

    Its own transposes and batching are JAX's, of one pair of dimensions that blocks run along.
    """

    @abc.abstractmethod
    def __call__(self, lhs: jax.Array, rhs: jax.Array, *extras: jax.Array, dtype: Any) -> jax.Array:
        """The product, accumulated and returned in ``dtype``."""

    @abc.abstractmethod
    def equation(self) -> PrimitiveCall:
        """The JAX primitive that computes it, and its parameters."""

    def pair(self, transposed: int | None = None) -> Pair:
        """The dimensions of both operands that blocks run along, here or in a transpose.

        Args:
          transposed: of which operand the transpose is the gradient, the cotangent in its place.
        """
        raise NotImplementedError

    def rotates(self, transposed: int | None = None) -> bool:
        """Whether a Hadamard transform of both operands cancels, here or in a transpose."""
        raise NotImplementedError

    def tail(self, which: int) -> int | None:
        """The dimension of 0: lhs, 1: rhs, 2: out whose rows past the groups mean nothing."""
        return None

    def transpose(self, side: int, operand: Any) -> Product:
        """For side 0: the product (ct, rhs) -> lhs cotangent; for 1: (lhs, ct) -> rhs cotangent.

        Args:
          side: the operand to differentiate.
          operand: that operand's aval.
        """
        return TransposedProduct(self, side, operand.shape)

    def batch(self, mapped: tuple[bool, ...]) -> Product:
        """The product under vmap, mapped operands having a new leading dimension."""
        return VmappedProduct(self, mapped)

    def contracting(self, side: int) -> tuple[int, ...]:
        """Dimensions of an operand that are summed over, blocks running along the last."""
        return (self.pair()[side],)

    @property
    def can_rotate(self) -> bool:
        """Whether a Hadamard transform of both operands along the contraction cancels."""
        return self.rotates()

    def masks(self, which: int) -> bool:
        """Whether some rows (of 0: lhs, 1: rhs, 2: out) mean nothing."""
        return self.tail(which) is not None

    def mask(self, which: int, x: jax.Array, *extras: jax.Array) -> jax.Array:
        """x (0: lhs, 1: rhs, 2: out) with zeros in the rows that mean nothing, if it has any."""
        tail = self.tail(which)
        if tail is None:
            return x
        rows = jnp.sum(extras[0])
        inside = lax.broadcasted_iota(rows.dtype, x.shape, tail) < rows
        return jnp.where(inside, x, jnp.zeros_like(x))


@dataclasses.dataclass(frozen=True)
class PrimitiveProduct(Product):
    """A bilinear JAX primitive, whose transposes JAX takes.

    Attributes:
      primitive: the primitive.
      params: its parameters, as items.
      pairs: as of ``pair``: of the product itself, and of its two transposes.
      rotating: for the same three, as of ``rotates``.
      tails: for ragged products, whose first extra operand is the groups' sizes, as of ``tail``.
    """

    primitive: Any
    params: tuple[tuple[str, Any], ...]
    pairs: tuple[Pair, Pair, Pair]
    rotating: tuple[bool, bool, bool]
    tails: tuple[int | None, int | None, int | None] = (None, None, None)

    def __call__(self, lhs: jax.Array, rhs: jax.Array, *extras: jax.Array, dtype: Any) -> jax.Array:
        """See Product."""
        params = dict(self.params)
        if "preferred_element_type" in params:
            params["preferred_element_type"] = jnp.dtype(dtype)
        return self.primitive.bind(lhs, rhs, *extras, **params).astype(dtype)

    def equation(self) -> PrimitiveCall:
        """See Product."""
        return self.primitive, dict(self.params)

    def pair(self, transposed: int | None = None) -> Pair:
        """See Product."""
        return self.pairs[0 if transposed is None else transposed + 1]

    def rotates(self, transposed: int | None = None) -> bool:
        """See Product."""
        return self.rotating[0 if transposed is None else transposed + 1]

    def tail(self, which: int) -> int | None:
        """See Product."""
        return self.tails[which]


@dataclasses.dataclass(frozen=True)
class TransposedProduct(Product):
    """A transpose of another product, taken by JAX.

    Attributes:
      of: the product.
      side: the operand whose cotangent this computes; its place is taken by the cotangent.
      shape: that operand's shape.
    """

    of: Product
    side: int
    shape: tuple[int, ...]

    def __call__(self, lhs: jax.Array, rhs: jax.Array, *extras: jax.Array, dtype: Any) -> jax.Array:
        """See Product."""
        ct, other = (lhs, rhs) if self.side == _LHS else (rhs, lhs)
        other = other.astype(dtype)

        def forward(t: jax.Array) -> jax.Array:
            pair = (t, other) if self.side == _LHS else (other, t)
            return self.of(*pair, *extras, dtype=dtype)

        transposed = jax.linear_transpose(forward, jax.ShapeDtypeStruct(self.shape, dtype))
        return transposed(ct.astype(dtype))[0]

    def equation(self) -> PrimitiveCall:
        """See Product."""
        return self.of.equation()

    def pair(self, transposed: int | None = None) -> Pair:
        """See Product; nothing is known of a transpose of a transpose."""
        return self.of.pair(self.side)

    def rotates(self, transposed: int | None = None) -> bool:
        """See Product."""
        return transposed is None and self.of.rotates(self.side)

    def tail(self, which: int) -> int | None:
        """See Product."""
        return self.of.tail({self.side: 2, 2: self.side}.get(which, which))


@dataclasses.dataclass(frozen=True)
class VmappedProduct(Product):
    """Another product under vmap: flagged operands have a leading dimension more."""

    of: Product
    mapped: tuple[bool, ...]

    def __call__(self, lhs: jax.Array, rhs: jax.Array, *extras: jax.Array, dtype: Any) -> jax.Array:
        """See Product."""
        axes = tuple(0 if m else None for m in self.mapped)
        return jax.vmap(functools.partial(self.of, dtype=dtype), in_axes=axes)(lhs, rhs, *extras)

    def equation(self) -> PrimitiveCall:
        """See Product."""
        return self.of.equation()

    def pair(self, transposed: int | None = None) -> Pair:
        """See Product."""
        lhs, rhs = self.of.pair(transposed)
        return lhs + (self.mapped[0] or transposed == _LHS), rhs + (
            self.mapped[1] or transposed == _RHS
        )

    def rotates(self, transposed: int | None = None) -> bool:
        """See Product."""
        return self.of.rotates(transposed)

    def tail(self, which: int) -> int | None:
        """See Product."""
        tail = self.of.tail(which)
        return None if tail is None else tail + (*self.mapped[:2], True)[which]

    def mask(self, which: int, x: jax.Array, *extras: jax.Array) -> jax.Array:
        """See Product."""
        mapped = (*self.mapped[:2], True)[which]
        axes = (0 if mapped else None, *(0 if m else None for m in self.mapped[2:]))
        if all(axis is None for axis in axes):
            return self.of.mask(which, x, *extras)
        return jax.vmap(functools.partial(self.of.mask, which), in_axes=axes)(x, *extras)


@functools.lru_cache(maxsize=1024)
def bound(fun: Callable[..., Any], operands: OperandTypes, **options: Any) -> PrimitiveCall:
    """The primitive that a function binds, with all parameters, those of this JAX version too.

    Args:
      fun: a function of ``jax.lax``.
      operands: shapes and dtypes of its arrays.
      **options: of the function, hashable.

    Raises:
      ValueError: it binds more than one.
    """
    with jax.enable_x64(True):
        structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in operands]
        eqns = jax.make_jaxpr(functools.partial(fun, **options))(*structs).eqns
    if len(eqns) != 1:
        raise ValueError("its operands or its result are of other types than JAX's")
    return eqns[0].primitive, dict(eqns[0].params)
