"""The noise as its definition says, in NumPy: for every key and index one word, once for all."""

from __future__ import annotations

import numpy as np

U = np.uint32
Key = tuple[np.ndarray, np.ndarray]

A, B, GOLDEN = U(0x7FEB352D), U(0x846CA68B), U(0x9E3779B9)
START = (U(0x243F6A88), U(0x85A308D3))


def xorshift(h: np.ndarray, bits: int) -> np.ndarray:
    return h ^ (h >> U(bits))


def lowbias32(h: np.ndarray) -> np.ndarray:
    """C. Wellons, "Prospecting for hash functions", 2018."""
    return xorshift(xorshift(xorshift(h, 16) * A, 15) * B, 16)


def mix(key: Key, number: np.ndarray) -> Key:
    """Three rounds of a Feistel network."""
    a, b = key
    with np.errstate(over="ignore"):
        b = b ^ lowbias32(a ^ number)
        a = a + lowbias32(b + GOLDEN)
        b = b ^ lowbias32(a ^ GOLDEN)
    return a, b


def mix_words(*words: np.ndarray) -> Key:
    """Words, the first first, mixed into the digits of pi."""
    key = START
    for word in words:
        key = mix(key, word)
    return key


def hash_bits(key: Key, index: np.ndarray) -> np.ndarray:
    """An affine function with an odd factor; times its own upper half; once more, xorshifted."""
    factor, term = key[0] | U(1), key[1]
    with np.errstate(over="ignore"):
        h = index * factor + term
        h = h * ((factor >> U(16) << U(16)) + (h >> U(16) | U(1)))
        return xorshift(h, 15) * B


def element_index(shape: tuple[int, ...]) -> np.ndarray:
    """Row-major positions in an array whose rows are of odd length, one longer if need be."""
    columns = shape[-1] if shape else 1
    row, column = np.divmod(np.arange(np.prod(shape, dtype=int)), max(columns, 1))
    return (row * (columns | 1) + column).astype(U).reshape(shape)


def threefry2x32(key: Key, counter: Key) -> Key:
    """Threefry-2x32 with 20 rounds (Salmon et al., SC'11)."""
    keys = (*key, key[0] ^ key[1] ^ U(0x1BD11BDA))
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    with np.errstate(over="ignore"):
        x, y = counter[0] + keys[0], counter[1] + keys[1]
        for group in range(5):
            for r in rotations[group % 2]:
                x = x + y
                y = (y << U(r) | y >> U(32 - r)) ^ x
            x = x + keys[(group + 1) % 3]
            y = y + keys[(group + 2) % 3] + U(group + 1)
    return x, y
