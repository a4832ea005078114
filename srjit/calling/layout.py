"""Shardings of the arguments of a call, where a plan depends on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding

from srjit.calling.arguments import Arguments

# For each leaf of a call's arguments, how it is sharded; None: on one device, or nobody knows.
# Empty if nothing is sharded.
Layout = tuple[NamedSharding | None, ...]


class Run(Protocol):
    """A function of a key and a call's arguments."""

    def __call__(
        self, key: Any, args: Sequence[Any], kwargs: dict[str, Any], layout: Layout = ()
    ) -> Any:
        """Its result; ``layout`` is that of the arguments."""
        ...


def layout_of(
    args: Sequence[Any], kwargs: dict[str, Any], in_shardings: Sequence[Any] = ()
) -> Layout:
    """The layout of a call.

    Args:
      args, kwargs: of the call; ``jax.ShapeDtypeStruct`` will do in place of arrays.
      in_shardings: of ``jax.jit``, for each of args; shardings of several leaves too.
    """
    given = Arguments.of(args, kwargs)
    said: dict[int, NamedSharding | None] = {}
    for position, prefix in enumerate(in_shardings):
        numbers = [i for i, owner in enumerate(given.owners) if owner == position]
        leaves = _spread(prefix, args[position]) if prefix is not None else []
        if len(leaves) == len(numbers):
            said |= dict(zip(numbers, map(_named, leaves), strict=True))
    found = tuple(said.get(i) or _sharding_of(leaf) for i, leaf in enumerate(given.leaves))
    return found if any(found) else ()


def _spread(prefix: Any, arg: Any) -> list[Any]:
    """A sharding for each leaf of an argument; none if they do not fit."""

    def all_of(sharding: Any, part: Any) -> Any:
        return jax.tree.map(lambda _: sharding, part)

    def is_sharding(x: Any) -> bool:
        return x is None or isinstance(x, (jax.sharding.Sharding, jax.sharding.PartitionSpec))

    try:
        spread = jax.tree.map(all_of, prefix, arg, is_leaf=is_sharding)
    except ValueError:  # JAX says what is wrong with it
        return []
    return jax.tree.leaves(spread, is_leaf=is_sharding)


def _sharding_of(leaf: Any) -> NamedSharding | None:
    is_struct = isinstance(leaf, jax.ShapeDtypeStruct)
    if is_struct or (isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)):
        return _named(leaf.sharding)
    return None


def _named(sharding: Any) -> NamedSharding | None:
    if isinstance(sharding, jax.sharding.PartitionSpec):
        mesh = jax.sharding.get_mesh()
        sharding = None if mesh.empty else NamedSharding(mesh, sharding)
    is_on_many = isinstance(sharding, NamedSharding) and sharding.mesh.size > 1
    return sharding if is_on_many else None
