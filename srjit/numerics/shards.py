"""Shards that draw noise of their own, inside ``shard_map`` and ``pmap``.

Where types tell along which mesh axes a value differs (``check_vma=True``), its shards along these
have noise of their own, and copies of it share theirs. Where they do not (``check_vma=False``,
``pmap``), every shard has its own, but inside ``shared_noise``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
from jax import lax

from srjit import _compat
from srjit.numerics.random_bits import Key, mix

_SHARED = "srjit.shared_noise="


def shared_noise(*axes: str) -> Any:
    """Returns a context: what is rounded inside is rounded alike on all shards along ``axes``.

    For what every device has a copy of, such as replicated parameters: copies that are rounded
    alike stay copies. Needed where JAX does not know what is a copy: inside ``pmap`` and
    ``shard_map(check_vma=False)``. Without ``axes`` it says that nothing inside is a copy.

    Args:
      axes: names of mesh axes.

    Raises:
      TypeError: a name is no string.

    Example:
      >>> with srjit.shared_noise("data"):
      ...     params = jax.tree.map(lambda p, g: p - lr * g, params, lax.pmean(grads, "data"))
    """
    if wrong := [axis for axis in axes if type(axis) is not str]:
        raise TypeError(f"shared_noise takes names of mesh axes, got {wrong[0]!r}")
    return jax.named_scope(_SHARED + ",".join(axes))


def shared_axes(names: Iterable[str]) -> frozenset[str]:
    """The axes that the scopes on a name stack say to share noise along."""
    said = [n.removeprefix(_SHARED) for n in names if n.startswith(_SHARED)]
    return frozenset(axis for names in said for axis in names.split(",") if axis)


def refuse_around(name: str) -> None:
    """Raises ValueError if there is a ``shared_noise`` around a call, which it does not enter."""
    if is_declared(_compat.current_scopes()):
        raise ValueError(
            f"shared_noise is around a call of {name}: write it inside of that function, around "
            "what rounds copies"
        )


def may_be_copies(axes: Iterable[str]) -> str:
    """For messages: what to say of parameters that are rounded inside a region without types."""
    names = ", ".join(map(repr, sorted(axes)))
    return (
        f"parameters are written back inside a region over {names} whose types do not tell what is "
        "a copy (pmap, shard_map(check_vma=False)): every shard rounds by noise of its own, and "
        f"copies drift apart. Write the update of copies under srjit.shared_noise({names}), that "
        "of shards under srjit.shared_noise(), or use shard_map's check_vma=True"
    )


def is_declared(names: Iterable[str]) -> bool:
    """True if a scope on a name stack says what is a copy, be it nothing."""
    return any(n.startswith(_SHARED) for n in names)


def untyped_axes() -> frozenset[str]:
    """The mesh axes of the regions around what is being traced whose types tell nothing."""
    axes = jax.sharding.get_abstract_mesh().manual_axes
    return frozenset(a for a in axes if not _compat.varying_axes(lax.axis_index(a)))


def guessed_axes() -> frozenset[str]:
    """``untyped_axes`` where no ``shared_noise`` says what is a copy."""
    return frozenset() if is_declared(_compat.current_scopes()) else untyped_axes()


def of_shards(key: Key, axes: Iterable[str]) -> Key:
    """A key of its own for every shard along mesh ``axes``, inside ``shard_map``."""
    for axis in sorted(axes):
        key = mix(key, lax.axis_index(axis))
    return key


def of_typed_shards(key: Key, like: jax.Array) -> Key:
    """``of_shards`` along the axes over which ``like`` differs by its type."""
    return of_shards(key, _own(_compat.varying_axes(like)))


def of_all_shards(key: Key, like: jax.Array) -> Key:
    """``of_typed_shards``, and along the axes of which types tell nothing."""
    return of_shards(key, _own({*_compat.varying_axes(like), *untyped_axes()}))


def _own(axes: Iterable[str]) -> frozenset[str]:
    return frozenset(axes) - shared_axes(_compat.current_scopes())
