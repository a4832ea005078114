"""Streams of the noise's words, each in an order that a program could read them in.

``python streams.py NAME [SEED]`` writes what rounding uses of one, the upper 24 bits of each word,
until the reader has had enough.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from srjit.numerics.random_bits import Key, hash_bits, mix, mix_words, row_stride

CHUNK = 1 << 20  # words


def _index(position: jax.Array, bits: int, above: int = 0) -> jax.Array:
    """``bits`` bits of a position, those above the lowest ``above``."""
    return (position >> np.uint32(above)) & np.uint32((1 << bits) - 1)


def by_element(key: Key, n: jax.Array) -> jax.Array:
    """One tensor, in memory's order."""
    return hash_bits(key, n)


def by_column(key: Key, n: jax.Array) -> jax.Array:
    """One tensor with rows of 4096, or almost, column after column."""
    stride = np.uint32(row_stride(4096))
    return hash_bits(key, _index(n, 20) * stride + _index(n, 12, 20))


def by_16_columns(key: Key, n: jax.Array) -> jax.Array:
    """Every 16th element of rows of 4096, row after row."""
    stride = np.uint32(row_stride(4096))
    return hash_bits(key, (n >> np.uint32(8)) * stride + _index(n, 8) * np.uint32(16))


def by_key(key: Key, n: jax.Array) -> jax.Array:
    """The first element under the keys that seeds 0, 1, 2, ... make."""
    return hash_bits(mix_words_of(key[0], n), jnp.zeros_like(n))


def by_step(key: Key, n: jax.Array) -> jax.Array:
    """An element of a quantization, under the integer steps 0, 1, 2, ..."""
    step = mix_words_of(n, jnp.zeros_like(n))
    return hash_bits(mix(step, key[0] & np.uint32(255)), jnp.full_like(n, 12345))


def by_quantization(key: Key, n: jax.Array) -> jax.Array:
    """The first element of quantizations 0, 1, 2, ..."""
    return hash_bits(mix(key, n), jnp.zeros_like(n))


def by_trip(key: Key, n: jax.Array) -> jax.Array:
    """An element of a quantization in a loop, trip after trip."""
    return hash_bits(mix(mix(key, np.uint32(3)), n), jnp.full_like(n, 77))


def mixed(key: Key, n: jax.Array) -> jax.Array:
    """4 elements of each of 4 trips of 8 quantizations of one step, step after step."""
    step = mix_words_of(key[0] + (n >> np.uint32(7)), jnp.zeros_like(n))
    trip = mix(mix(step, _index(n, 3, 4)), _index(n, 2, 2))
    return hash_bits(trip, _index(n, 2))


def mix_words_of(low: jax.Array, high: jax.Array) -> Key:
    """``mix_words([low, high])`` for arrays of words."""
    return jax.vmap(lambda a, b: mix_words(jnp.stack([a, b])))(*jnp.broadcast_arrays(low, high))


STREAMS: dict[str, Callable[[Key, jax.Array], jax.Array]] = {
    f.__name__: f
    for f in (
        by_element,
        by_column,
        by_16_columns,
        by_key,
        by_step,
        by_quantization,
        by_trip,
        mixed,
    )
}


def words(name: str, seed: int) -> Iterator[np.ndarray]:
    """Chunks of a stream. Its 2^32 words are followed by those of the next seed."""
    stream = jax.jit(STREAMS[name])
    for seed_now in itertools.count(seed):
        key = jax.jit(mix_words)(np.array([0x5EED, seed_now], np.uint32))
        for start in range(0, 2**32, CHUNK):
            yield np.asarray(stream(key, np.uint32(start) + jnp.arange(CHUNK, dtype=jnp.uint32)))


def main() -> None:
    name, seed = sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 0
    try:
        for chunk in words(name, seed):
            upper = chunk.astype("<u4").view(np.uint8).reshape(-1, 4)[:, 1:]
            sys.stdout.buffer.write(upper.tobytes())
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    main()
