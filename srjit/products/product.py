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

from srjit.numerics.groups import Groups
from srjit.products.kinds import OperandTypes, PrimitiveCall

Pair = tuple[int, int]
_LHS, _RHS = 0, 1


@dataclasses.dataclass(frozen=True)
class Along:
    """The place of the groups in an array of a ragged product.

    Attributes:
      ndim: the array's rank.
      dim: the dimension along which they are.
      is_ragged: whether rows of groups stand there, one group after the other, and past all groups
        rows that mean nothing; else every entry is a group.
      before: dimensions for those of the groups' sizes before the last, should there be any.
    """

    ndim: int
    dim: int
    is_ragged: bool = True
    before: tuple[int, ...] = ()


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
        """True if a Hadamard transform of both operands cancels, here or in a transpose."""
        raise NotImplementedError

    def along(self, which: int) -> Along | None:
        """The place of groups in 0: lhs, 1: rhs, 2: out of a ragged product; None of another."""
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
        """True if a Hadamard transform of both operands along the contraction cancels."""
        return self.rotates()

    def masks(self, which: int) -> bool:
        """True if rows of 0: lhs, 1: rhs, 2: out stand in groups, past which they mean nothing."""
        along = self.along(which)
        return along is not None and along.is_ragged

    def groups_of(self, which: int, shape: tuple[int, ...], *extras: jax.Array) -> Groups | None:
        """The groups that rows of 0: lhs, 1: rhs, 2: out, of that shape, stand in, if they do."""
        along = self.along(which)
        if along is None or not along.is_ragged:
            return None
        rows = shape[along.dim]
        return Groups.of(extras[0], rows, along.ndim, along.dim, along.before)

    def mask(self, which: int, x: jax.Array, *extras: jax.Array) -> jax.Array:
        """x (0: lhs, 1: rhs, 2: out) with zeros in the rows that mean nothing, if it has any."""
        groups = self.groups_of(which, x.shape, *extras)
        return x if groups is None else jnp.where(groups.inside, x, jnp.zeros_like(x))

    def by_group(self, which: int, to: int, scale: jax.Array) -> jax.Array | None:
        """Scales of groups of 0: lhs, 1: rhs, 2: out, for another of them; None if they vary more.

        Both are of their array's rank, with the groups in place of the rows that stand in them.
        """
        here, there = self.along(which), self.along(to)
        if here is None or there is None or scale.size != scale.shape[here.dim]:
            return None
        return scale.reshape([scale.size if d == there.dim else 1 for d in range(there.ndim)])


@dataclasses.dataclass(frozen=True)
class PrimitiveProduct(Product):
    """A bilinear JAX primitive, whose transposes JAX takes.

    Attributes:
      primitive: the primitive.
      params: its parameters, as items.
      pairs: as of ``pair``: of the product itself, and of its two transposes.
      rotating: for the same three, as of ``rotates``.
      groups: of ragged products, whose first extra operand is the groups' sizes: as of ``along``.
    """

    primitive: Any
    params: tuple[tuple[str, Any], ...]
    pairs: tuple[Pair, Pair, Pair]
    rotating: tuple[bool, bool, bool]
    groups: tuple[Along | None, Along | None, Along | None] = (None, None, None)

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

    def along(self, which: int) -> Along | None:
        """See Product."""
        return self.groups[which]


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

    def along(self, which: int) -> Along | None:
        """See Product."""
        return self.of.along(self._of(which))

    def groups_of(self, which: int, shape: tuple[int, ...], *extras: jax.Array) -> Groups | None:
        """See Product."""
        return self.of.groups_of(self._of(which), shape, *extras)

    def by_group(self, which: int, to: int, scale: jax.Array) -> jax.Array | None:
        """See Product."""
        return self.of.by_group(self._of(which), self._of(to), scale)

    def _of(self, which: int) -> int:
        """The number that an array of this has in the other product."""
        return {self.side: 2, 2: self.side}.get(which, which)


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

    def along(self, which: int) -> Along | None:
        """See Product."""
        along, more = self.of.along(which), int(self._is_mapped(which))
        if along is None:
            return None
        before = tuple(d + more for d in along.before)
        return Along(along.ndim + more, along.dim + more, along.is_ragged, before)

    def groups_of(self, which: int, shape: tuple[int, ...], *extras: jax.Array) -> Groups | None:
        """See Product."""
        is_mapped = self._is_mapped(which)
        inner = functools.partial(self.of.groups_of, which, shape[is_mapped:])
        axes = tuple(0 if m else None for m in self.mapped[2:])
        if 0 in axes:
            return jax.vmap(inner, in_axes=axes)(*extras)
        groups = inner(*extras)
        if groups is None or not is_mapped:
            return groups
        ids = jnp.broadcast_to(groups.ids, (shape[0], *groups.ids.shape))
        return dataclasses.replace(groups, ids=ids)

    def by_group(self, which: int, to: int, scale: jax.Array) -> jax.Array | None:
        """See Product; examples may have scales of their own."""
        inner = functools.partial(self.of.by_group, which, to)
        if self._is_mapped(which) and scale.shape[0] > 1:
            return jax.vmap(inner)(scale) if self._is_mapped(to) else None
        found = inner(scale[0] if self._is_mapped(which) else scale)
        return found if found is None or not self._is_mapped(to) else found[None]

    def _is_mapped(self, which: int) -> bool:
        return (*self.mapped[:2], True)[which]


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
