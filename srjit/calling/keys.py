"""The forms of ``sr_key`` between a call and the program that it runs.

A typed key or a small integer goes into the jitted function as it is, because that is the fast way.
What cannot go in as it is, or means something else than "this is the key", gets a type of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from srjit import _compat
from srjit.numerics.random_bits import Key, as_key, int_words, mix

_HOST_TYPES = (int, float, complex, str, tuple, list, np.generic, np.ndarray)


class Counted(NamedTuple):
    """The key of one call of a wrapper that counts: its base key, and the call's number."""

    base: Any
    number: Any


class IfNeeded(NamedTuple):
    """A key, if there is one, of a call that nothing can differentiate."""

    key: Any


class Stateful(NamedTuple):
    """A call's key, with the histories of its delayed scales."""

    key: Any
    state: Any


class Words(NamedTuple):
    """The two key words themselves, as one array."""

    words: Any


class Uncounted(NamedTuple):
    """No key: the call is inside another transformation, where its base key cannot count."""


class MissingKeyError(TypeError):
    """A program draws noise, and no key was given."""

    @classmethod
    def of(cls, name: str) -> MissingKeyError:
        """The error for the function called ``name``."""
        return cls(
            f"{name} rounds stochastically and needs a key: call it with sr_key=, a typed PRNG "
            "key such as jax.random.fold_in(key, step) or an integer step. Outside of jit, grad, "
            "vmap and scan, srjit(..., key=jax.random.key(0)) counts its calls instead; for "
            "inference there is srjit(..., mode='inference'), which rounds to nearest"
        )

    @classmethod
    def of_uncounted(cls, name: str) -> MissingKeyError:
        """The error where the base key of the function called ``name`` cannot count."""
        return cls(
            f"{name} rounds stochastically, and its key= cannot count calls inside another jit, "
            "grad, vmap or scan (Keras' fit, nnx.jit and eqx.filter_jit are such): what is around "
            "it is traced once and runs many times, with the same noise each time. Pass sr_key= "
            "there: a typed PRNG key such as jax.random.fold_in(key, step), or an integer step, "
            "made of an argument of the function around; for inference there is "
            "srjit(..., mode='inference'), which rounds to nearest"
        )


def as_argument(sr_key: Any) -> Any:
    """Returns a key as a jitted function can take it, with all its bits.

    Raises:
      TypeError: it is a Python or NumPy value, and not an integer.
    """
    if not isinstance(sr_key, _HOST_TYPES):
        return sr_key
    if type(sr_key) is not int:
        sr_key = _integer(sr_key)
    return sr_key if -(2**31) <= sr_key < 2**31 else int_words(sr_key)


def as_words(sr_key: Any) -> Any:
    """An integer of any kind as ``(low, high)``, whatever its size; other keys as they are."""
    if isinstance(sr_key, _HOST_TYPES):
        return int_words(_integer(sr_key))
    concrete = isinstance(sr_key, jax.Array) and not isinstance(sr_key, Tracer)
    if concrete and not sr_key.shape and jnp.issubdtype(sr_key.dtype, jnp.integer):
        return int_words(int(sr_key))
    return sr_key


def step_of(sr_key: Any, key: Any) -> Any:
    """The number of a call's step: an integer ``sr_key``, a counted call's, or None.

    Args:
      sr_key: as it was given.
      key: what was made of it, or of a base key.
    """
    if isinstance(key, Counted):
        return int(key.number)
    is_integer = isinstance(sr_key, (int, np.integer)) or (
        isinstance(sr_key, (jax.Array, np.ndarray)) and jnp.issubdtype(sr_key.dtype, jnp.integer)
    )
    return sr_key if is_integer else None


def sent(key: Any, others: Any) -> Any:
    """Returns a key whose words are where the other arguments are, if a guard forbids sending them.

    ``jax.jit`` sends numbers of the host by itself, which is faster than ``jax.device_put``, and
    which ``jax.transfer_guard`` calls implicit. What a user has committed stays where it is.

    Args:
      key: what a jitted function takes as its key.
      others: its other arguments, and shardings of them.
    """
    if not _compat.transfers_are_guarded():
        return key
    leaves = [x for x in jax.tree.leaves(others) if not isinstance(x, Tracer)]
    shardings = [x.sharding for x in leaves if isinstance(x, jax.Array) and x.committed]
    shardings += [x for x in leaves if isinstance(x, jax.sharding.Sharding)]
    place = next(iter(shardings), None)
    if isinstance(place, jax.sharding.NamedSharding):
        place = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())

    def put(x: Any) -> Any:
        stays = isinstance(x, Tracer) or (isinstance(x, jax.Array) and x.committed)
        return x if stays else jax.device_put(x, place)

    return jax.tree.map(put, key)


def _integer(sr_key: Any) -> int:
    if isinstance(sr_key, int) and not isinstance(sr_key, bool):
        return sr_key
    is_numpy = isinstance(sr_key, (np.generic, np.ndarray))
    if is_numpy and not sr_key.shape and np.issubdtype(sr_key.dtype, np.integer):
        return int(sr_key)
    if not isinstance(sr_key, tuple):
        as_key(sr_key)  # says what is wrong with it
    raise TypeError(
        f"expected a typed PRNG key (jax.random.key(seed)) or an integer step, got {sr_key!r}"
    )


def key_words(key: Any) -> Key:
    """The two key words of a call's key.

    Raises:
      TypeError: it is not a key.
    """
    if isinstance(key, Words):
        return key.words[0], key.words[1]
    if isinstance(key, Counted):
        return mix(as_key(key.base), key.number)
    return as_key(key)
