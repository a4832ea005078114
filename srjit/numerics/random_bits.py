"""Random bits as a function of a key and an element's index: nothing is stored or carried.

``mix`` hashes scalars into keys: a 64-bit Feistel network of lowbias32 (C. Wellons, "Prospecting
for hash functions", 2018). ``hash_bits`` hashes every element's index under a key: an affine
function of the index that the key chooses (as universal hashing does: L. Carter, M. Wegman,
"Universal classes of hash functions", 1979), scrambled by two products. The first has a factor that
depends on the upper half of the word itself: so no difference of two words survives it. A constant
factor lets 2^31 through, and the elements that differ by it then share noise. ``threefry_bits`` is
the slow reference for audits (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex_core
from jax.extend.random import threefry2x32_p
from jax.interpreters import ad, batching, mlir

from srjit import _compat, _stack
from srjit.choices import Rng, unknown_name
from srjit.numerics.symbolic import all_known, is_known, may_repeat, word

Key = tuple[jax.Array, jax.Array]

_A, _B = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_GOLDEN = np.uint32(0x9E3779B9)


def _lowbias32(h: jax.Array) -> jax.Array:
    """A word all of whose bits depend on all bits of h."""
    h = (h ^ (h >> np.uint32(16))) * _A
    return whole((h ^ (h >> np.uint32(15))) * _B)


def whole(word: jax.Array) -> jax.Array:
    """A word whose lower bits are as good as its upper ones."""
    return word ^ (word >> np.uint32(16))


def scrambled(h: jax.Array, upper: jax.Array) -> jax.Array:
    """A word whose upper 24 bits depend on all bits of h, as hard to tell from noise as may be.

    Two h may give one word, so that under one ``upper`` the probability of a word below a limit is
    up to 2^-15 from what it should be. Keys have 2^16 of them: over keys it is within 2^-28.

    Args:
      h: the index's place on the key's ``line``.
      upper: the upper half of a factor, and 1: the third word of ``line``.
    """
    h = h * ((h >> np.uint32(16)) | upper)
    return (h ^ (h >> np.uint32(15))) * _B


def mix(key: Key, number: Any) -> Key:
    """A key for ``number`` (uint32 scalar or array) under ``key``: two uint32 of number's shape.

    XLA:CPU compiles equal kernels once, and the kernels of all sites are equal if no site's number
    is in them. It puts scalar constants into kernels but not arrays; the barrier is so that this
    array does not become a scalar.
    """
    if isinstance(number, int):
        return _mix_first(key, np.array([number, 0], np.uint32))
    return _mix(key, number)


@jax.jit  # traced once, whatever the number: programs have a thousand of these
def _mix_first(key: Key, numbers: Any) -> Key:
    return _mix(key, lax.optimization_barrier(numbers)[0])


@jax.jit
def _mix(key: Key, number: Any) -> Key:
    a, b = key
    b = b ^ _lowbias32(a ^ jnp.asarray(number, jnp.uint32))
    a = a + _lowbias32(b + _GOLDEN)
    b = b ^ _lowbias32(a ^ _GOLDEN)
    return a, b


def hash_bits(key: Key, index: jax.Array) -> jax.Array:
    """32 random bits for every ``index`` (uint32) under ``key``, of which the upper 24 are good."""
    factor, term, upper = line(key)
    return scrambled(index * factor + term, upper)


def line(key: Key) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(factor, term, upper): ``hash_bits`` is scrambled(index * factor + term, upper)."""
    factor = key[0] | np.uint32(1)
    return factor, key[1], factor & np.uint32(0xFFFF0001)


def threefry_bits(key: Key, index: jax.Array) -> jax.Array:
    """32 random bits for every ``index`` (uint32) under ``key``, by Threefry-2x32."""
    a, b = (jnp.broadcast_to(word, index.shape) for word in key)
    return threefry2x32_p.bind(a, b, index, jnp.zeros_like(index))[0]


_GENERATORS = {"hash": hash_bits, "threefry": threefry_bits}


def random_bits(key: Key, like: jax.Array, rng: Rng = "hash") -> jax.Array:
    """uint32 bits of ``like``'s shape, functions of (key, position of the element in ``like``).

    Under ``jax.vmap`` the batch counts as a leading dimension, so examples do not share noise
    (where 32 bits do not count it all, each has a key of its own);
    inside ``shard_map`` shards do, unless the key is theirs: see ``shards.py``.
    """
    if rng not in _GENERATORS:
        raise unknown_name("rng", rng, _GENERATORS)
    key = tuple(example_key_p.bind(*key, like)) if not key[0].shape else key
    rows = _leading_rows(like.shape)
    if rows:
        key = mix(key, _row_index(like.shape, rows))
    return _GENERATORS[rng](key, element_index_p.bind(like))


def row_stride(columns: int) -> int:
    """The distance between the indices of an element and the one below it.

    An odd number: multiples of powers of two leave a part of a word alone, and two rounds of a
    hash do not make up for it.
    """
    return columns | 1


def strides(shape: Sequence[int]) -> list[int]:
    """The distance between the indices of neighbours along each dimension."""
    *leading, columns = shape
    stride = row_stride(columns) if is_known(columns) else columns + 1 - columns % 2
    return [*(math.prod(leading[d + 1 :]) * stride for d in range(len(leading))), 1]


def _leading_rows(shape: tuple[int, ...]) -> int:
    """The number of leading dimensions to cut off so that 32 bits index the rest."""
    if not all_known(shape):
        return 0  # where it may have more elements, users are told
    padded = (*shape[:-1], *map(row_stride, shape[-1:]))
    return next(d for d in range(len(shape) + 1) if math.prod(padded[d:]) <= 2**32)


def _index(shape: tuple[int, ...], steps: Iterable[int]) -> jax.Array:
    """Sums of position * step modulo 2^32, over leading dimensions."""
    index = jnp.zeros(shape, jnp.uint32)
    for d, stride in enumerate(steps):
        index = index + lax.broadcasted_iota(jnp.uint32, shape, d) * word(stride)
    return index


def _row_index(shape: tuple[int, ...], rows: int) -> jax.Array:
    """Row-major position in ``rows`` leading dimensions."""
    return _index(shape, [math.prod(shape[d + 1 : rows]) for d in range(rows)])


def _element_index(like: jax.Array) -> jax.Array:
    """Row-major position in an array of rows that are ``row_stride`` long."""
    return _index(like.shape, strides(like.shape) if like.shape else ())


# A primitive because vmap has to see it: the batch becomes a leading dimension of the index.
element_index_p = jex_core.Primitive("srjit_element_index")


element_index_p.def_impl(_element_index)


@element_index_p.def_abstract_eval
def _element_index_type(like: Any) -> Any:
    return like.update(dtype=jnp.dtype(jnp.uint32), weak_type=False)


def _element_index_batch(args: Any, dims: Any) -> Any:
    return element_index_p.bind(jnp.moveaxis(args[0], dims[0], 0)), 0


mlir.register_lowering(element_index_p, mlir.lower_fun(_element_index, multiple_results=False))
batching.primitive_batchers[element_index_p] = _element_index_batch


# A primitive because vmap has to see it: where 32 bits do not index the whole batch, each of its
# entries gets a key of its own.
example_key_p = jex_core.Primitive("srjit_example_key")
example_key_p.multiple_results = True


def _key_as_it_is(a: jax.Array, b: jax.Array, like: Any) -> list[jax.Array]:
    return [a, b]


example_key_p.def_impl(_key_as_it_is)


@example_key_p.def_abstract_eval
def _example_key_type(a: Any, b: Any, like: Any) -> Any:
    return [a, b]


def _example_key_batch(args: Any, dims: Any) -> Any:
    a, b, like = args
    if dims[0] is not None or dims[1] is not None:
        return [a, b], dims[:2]
    like = jnp.moveaxis(like, dims[2], 0)
    key = a, b = tuple(example_key_p.bind(a, b, like))
    if not _leading_rows(like.shape):
        return [a, b], (None, None)
    return list(mix(key, jnp.arange(like.shape[0], dtype=jnp.uint32))), (0, 0)


mlir.register_lowering(example_key_p, mlir.lower_fun(_key_as_it_is, multiple_results=True))
batching.primitive_batchers[example_key_p] = _example_key_batch


def _no_derivative(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "stochastic rounding has no derivative: round y = jax.lax.stop_gradient(x), and for the "
        "derivative of its mean, which is x, take x + (rounded - y)"
    )


for _primitive in (example_key_p, element_index_p):
    ad.primitive_jvps[_primitive] = _no_derivative


def as_key(key: Any) -> Key:
    """The two key words of a typed PRNG key of any implementation, or of an integer step.

    Raises:
      TypeError: key is neither, for example a raw uint32 array or a batch of keys.
    """
    return mix_words(key_data(key))


def key_data(key: Any) -> Any:
    """The uint32 words of a typed PRNG key, or ``[low, high]`` of an integer; see ``as_key``."""
    if isinstance(key, tuple):
        return jnp.stack(key)
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape:
            raise TypeError(f"expected one PRNG key, got an array of keys of shape {key.shape}")
        return jax.random.key_data(key)
    if isinstance(key, np.ndarray) and not key.shape:
        key = key.item()  # all its 64 bits; on a device they may be 32
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return jnp.stack(int_words(key))
    if not isinstance(key, (jax.Array, np.ndarray)) or not jnp.issubdtype(key.dtype, jnp.integer):
        raise TypeError(
            f"expected a typed PRNG key (jax.random.key(seed)) or an integer step, got {key!r}"
        )
    if key.shape:
        raise TypeError(
            f"expected a typed PRNG key, got a raw {key.dtype}{list(key.shape)} array: make it "
            "with jax.random.key(seed), or wrap it with jax.random.wrap_key_data(key)"
        )
    low = jnp.asarray(key).astype(jnp.uint32)
    if key.dtype.itemsize == 8:
        high = (jnp.asarray(key) >> 32).astype(jnp.uint32)
    else:  # sign-extended, so that a step is one number whatever holds it
        high = jnp.where(key < 0, np.uint32(2**32 - 1), np.uint32(0))
    return jnp.stack([low, high])


def int_words(step: Any) -> tuple[np.uint32, np.uint32]:
    """(low, high) of a Python integer modulo 2^64: what a jitted function can take."""
    word = int(step) % 2**64
    return np.uint32(word % 2**32), np.uint32(word >> 32)


def mix_words(words: Any) -> Key:
    """Any number of uint32 words as one key."""
    return _mix_words(jnp.asarray(words, jnp.uint32).reshape(-1))


@functools.partial(jax.jit, inline=True)  # compiled once where nothing is traced
def _mix_words(words: jax.Array) -> Key:
    # A loop, so that XLA computes the key once, not again in every kernel that draws noise.
    a, b = (jnp.full_like(words, digits, shape=()) for digits in (0x243F6A88, 0x85A308D3))  # of pi
    return lax.scan(lambda key, word: (mix(key, word), None), (a, b), words)[0]


def warn_of_repetition(name: str, key: Any, shape: Sequence[Any] = ()) -> None:
    """Warns where every trip of a loop calls ``name`` with one key, made outside of the loop.

    And where what it rounds has a symbolic ``shape`` that may have more elements than noise.
    Not seen are the argument of an inner ``jax.jit`` that was traced before, and a key made in the
    loop of what does not change in it.
    """
    if key is not None and _compat.loop_around(key):
        message = (
            f"{name} is called in a loop (scan, map, fori_loop, while_loop) with a key from "
            "outside of it: every trip draws the same noise. Fold the trip's number into the key, "
            "with jax.random.fold_in(key, i); or split the key before the loop, one key a trip, "
            "and scan over the keys"
        )
        _stack.warn(message)
    if message := may_repeat(shape):
        _stack.warn(f"{name}: {message}")
