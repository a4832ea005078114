"""Whether elements whose hash inputs differ by few signed powers of two have noise in common.

``python tests/numerics/differences.py [--keys N]`` prints the differences whose rounding decisions
correlate most. ``--old`` is the hash that srjit had before, for which it finds 2^31 + 2^15.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from oracles import noise as oracle
from srjit.numerics.random_bits import hash_bits

FRACTIONS = (1 / 2, 1 / 4, 3 / 4, 1 / 16)
INPUTS = ("index", "scrambled")
FALSE_ALARM = 1e-6
CHUNK = 64

Hash = Callable[[tuple[jax.Array, jax.Array], jax.Array], jax.Array]


def old_hash(key: tuple[jax.Array, jax.Array], index: jax.Array) -> jax.Array:
    """Constant factors only."""
    h = index * (key[0] | np.uint32(1)) + key[1]
    return oracle.xorshift(oracle.xorshift(h, 16) * oracle.A, 15) * oracle.B


def differences() -> np.ndarray:
    """uint32: all sums of up to three signed powers of two, of each pair d and -d one."""
    found = {0}
    for _ in range(3):
        found |= {(d + sign * 2**i) % 2**32 for d in found for i in range(32) for sign in (1, -1)}
    return np.array(sorted(d for d in found if 0 < d <= 2**31), np.uint32)


# Tests compile without optimizations; this one is worth them.
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": "2"}
)
def _sums(hashed: Hash, keys: jax.Array, index: jax.Array, chunk: jax.Array) -> jax.Array:
    """Σ (up - p)(up' - p), by (where the difference is, fraction, difference)."""
    a, b = keys
    first = hashed((a, b), index)

    def one(d: jax.Array) -> jax.Array:
        pairs = first, hashed((a, b), index + d), hashed((a, b + d), index)
        one_up, *others = ([(w >> 8 < p * 2.0**24) - p for p in FRACTIONS] for w in pairs)
        return jnp.stack(
            [jnp.stack([x @ y for x, y in zip(one_up, o, strict=True)]) for o in others]
        )

    return jnp.moveaxis(jax.lax.map(one, chunk), 0, -1)


def correlations(hashed: Hash, apart: np.ndarray, keys: int) -> np.ndarray:
    """Correlations at differences ``apart``, by (input, fraction, difference).

    Inputs are the element's index, and the number that the hash makes of it first.
    """
    words = np.random.default_rng(0).integers(0, 2**32, (3, keys), dtype=np.uint32)
    padded = np.append(apart, np.ones(-len(apart) % CHUNK, np.uint32))
    sums = [
        np.asarray(_sums(hashed, (words[0], words[1]), words[2], chunk))
        for chunk in padded.reshape(-1, CHUNK)
    ]
    p = np.array(FRACTIONS)[:, None]
    return np.concatenate(sums, -1)[..., : len(apart)] / (keys * p * (1 - p))


def bounds(tests: int, keys: int) -> np.ndarray:
    """Bernstein's limit, by fraction: the largest of so many exceeds it once in a million runs."""
    p = np.array(FRACTIONS)[:, None]
    log = np.log(2 * tests / FALSE_ALARM)
    most = np.maximum(p, 1 - p) ** 2 / (p * (1 - p))
    return np.sqrt(2 * log / keys + (most * log / 3 / keys) ** 2) + most * log / 3 / keys


def correlated(hashed: Hash, apart: np.ndarray, keys: int) -> list[tuple[str, str]]:
    """(input, difference) of those that correlate."""
    found = correlations(hashed, apart, keys)
    over = np.abs(found) > bounds(found.size, keys)
    return [(INPUTS[i], hex(apart[d])) for i, d in np.argwhere(over.any(1))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--old", action="store_true")
    options = parser.parse_args()
    apart = differences()
    found = correlations(old_hash if options.old else hash_bits, apart, options.keys)
    limits = bounds(found.size, options.keys)
    over = int((np.abs(found) > limits).sum())
    print(f"{found.size} correlations over {options.keys} keys: {over} are over their limits")
    for flat in itertools.islice(np.argsort(-np.abs(found / limits).ravel()), 5):
        place, p, d = np.unravel_index(flat, found.shape)
        print(
            f"{INPUTS[place]} {apart[d]:#010x} fraction {FRACTIONS[p]:.4f}: "
            f"{found[place, p, d]:+.4f} (limit {limits[p, 0]:.4f})"
        )


if __name__ == "__main__":
    main()
