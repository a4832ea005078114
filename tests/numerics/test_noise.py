"""Noise is a fixed function of (key, element), and no two uses of it have anything in common."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from oracles import noise as oracle
from srjit.numerics import random_bits
from srjit.numerics.encode import quantize, stochastic_round
from srjit.numerics.formats import FORMATS
from srjit.numerics.quantization import Quantization

from . import battery, differences, streams

RNG = np.random.default_rng(0)
FALSE_ALARM = 1e-6


def words(*shape: int) -> np.ndarray:
    return RNG.integers(0, 2**32, shape, dtype=np.uint32)


def bits(key, shape: tuple[int, ...], rng: str = "hash") -> np.ndarray:
    return np.asarray(random_bits.random_bits(random_bits.as_key(key), jnp.zeros(shape), rng))


# What the noise is


def test_the_hash_is_the_one_that_is_documented():
    a, b, index = words(3, 10_000)
    np.testing.assert_array_equal(
        random_bits.hash_bits((a, b), index), oracle.hash_bits((a, b), index)
    )


def test_mixing_is_the_one_that_is_documented():
    a, b, number = words(3, 10_000)
    np.testing.assert_array_equal(random_bits.mix((a, b), number), oracle.mix((a, b), number))
    np.testing.assert_array_equal(
        random_bits.mix_words(np.array([1, 2, 3], np.uint32)),
        oracle.mix_words(*map(np.uint32, (1, 2, 3))),
    )


def test_threefry_gives_the_published_numbers():
    """Known answers of Random123's distribution (kat_vectors)."""
    zero, ones = np.zeros(1, np.uint32), np.full(1, 2**32 - 1, np.uint32)
    assert [hex(w[0]) for w in oracle.threefry2x32((zero, zero), (zero, zero))] == [
        "0x6b200159",
        "0x99ba4efe",
    ]
    assert [hex(w[0]) for w in oracle.threefry2x32((ones, ones), (ones, ones))] == [
        "0x1cb996fc",
        "0xbb002be7",
    ]
    a, b, index = words(3, 1000)
    for i in range(4):
        key = (jnp.uint32(a[i]), jnp.uint32(b[i]))
        expected = oracle.threefry2x32((a[i : i + 1], b[i : i + 1]), (index, np.zeros_like(index)))
        np.testing.assert_array_equal(
            random_bits.threefry_bits(key, jnp.asarray(index)), expected[0]
        )


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (2, 3, 4), (0, 3)])
@pytest.mark.parametrize("rng", ["hash", "threefry"])
def test_an_element_has_the_word_of_its_index(rng: str, shape: tuple[int, ...]):
    position = oracle.element_index(shape).ravel()
    key = oracle.mix_words(np.uint32(9), np.uint32(0))
    if rng == "hash":
        expected = oracle.hash_bits(key, position)
    else:
        counter = (position, np.zeros_like(position))
        expected = oracle.threefry2x32(tuple(w * np.ones_like(position) for w in key), counter)[0]
    np.testing.assert_array_equal(bits(9, shape, rng).ravel(), expected)


def test_rows_of_more_elements_than_words_can_count_have_keys_of_their_own(monkeypatch):
    assert random_bits._leading_rows((2**16, 2**16 - 1)) == 0
    assert random_bits._leading_rows((2**16, 2**16)) == 1
    assert random_bits._leading_rows((3, 2**31)) == 1
    assert random_bits._leading_rows((2, 2**20, 2**13)) == 2
    assert jax.eval_shape(
        lambda: random_bits.random_bits(random_bits.as_key(0), jnp.zeros((4, 2**31)))
    ).shape == (4, 2**31)
    monkeypatch.setattr(random_bits, "_leading_rows", lambda shape: 1)
    position = oracle.element_index((3, 4))
    key = oracle.mix_words(np.uint32(9), np.uint32(0))
    keys = oracle.mix(key, np.arange(3, dtype=np.uint32)[:, None])
    np.testing.assert_array_equal(bits(9, (3, 4)), oracle.hash_bits(keys, position))


# Keys


STEPS = [
    (5, [5, np.int32(5), np.uint8(5), np.array(5), jnp.int32(5), jnp.uint32(5), jnp.int8(5)]),
    (-1, [-1, np.int64(-1), np.array(-1), jnp.int32(-1), jnp.int8(-1)]),
    (2**40 + 3, [2**40 + 3, np.int64(2**40 + 3), np.array(2**40 + 3), np.uint64(2**40 + 3)]),
]


@pytest.mark.parametrize(("step", "spellings"), STEPS, ids=["5", "-1", "2**40+3"])
def test_a_step_is_one_number_whatever_holds_it(step: int, spellings: list[object]):
    expected = oracle.mix_words(np.uint32(step % 2**32), np.uint32(step >> 32 & 0xFFFFFFFF))
    for spelling in spellings:
        assert tuple(map(int, random_bits.as_key(spelling))) == tuple(map(int, expected))


def test_a_64_bit_step_on_a_device_is_the_same_number():
    with jax.enable_x64(True):
        for step in (2**40 + 3, -1):
            on_device = random_bits.as_key(jnp.int64(step))
            assert tuple(map(int, on_device)) == tuple(map(int, random_bits.as_key(step)))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_keys_of_any_implementation_will_do(impl: str):
    key = jax.random.key(3, impl=impl)
    data = np.asarray(jax.random.key_data(key))
    assert tuple(map(int, random_bits.as_key(key))) == tuple(map(int, oracle.mix_words(*data)))


def test_keys_and_steps_that_differ_give_different_noise():
    keys = [
        *(jax.random.key(seed) for seed in range(100, 120)),
        *(jax.random.key(seed, impl="rbg") for seed in range(20)),
        *range(20),
        *(2**32 * n for n in range(1, 20)),
        *range(-20, 0),
    ]
    drawn = {bits(key, (4,)).tobytes() for key in keys}
    assert len(drawn) == len(keys)


def test_traced_keys_give_the_noise_of_concrete_ones():
    for key in (jax.random.key(1), jnp.int32(7)):
        np.testing.assert_array_equal(
            jax.jit(lambda key: random_bits.random_bits(random_bits.as_key(key), jnp.zeros(9)))(
                key
            ),
            bits(key, (9,)),
        )


# Transformations


X = jax.random.normal(jax.random.key(0), (6, 5, 40))


@jax.jit
def drawn(x: jax.Array) -> jax.Array:
    return random_bits.random_bits(random_bits.as_key(1), x)


def test_vmapped_examples_have_the_noise_of_a_leading_dimension():
    np.testing.assert_array_equal(jax.jit(jax.vmap(drawn))(X), drawn(X))
    np.testing.assert_array_equal(jax.vmap(drawn, in_axes=1)(X), drawn(jnp.moveaxis(X, 1, 0)))
    np.testing.assert_array_equal(jax.jit(jax.vmap(jax.vmap(drawn)))(X), drawn(X))
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(drawn, in_axes=2))(X), drawn(jnp.moveaxis(X, 2, 0))
    )


HUGE = (3, 32768, 65536)  # 3 * 2^31 elements, of which XLA computes a slice only


@pytest.mark.parametrize("mapped", [1, 2])
def test_examples_that_32_bits_do_not_count_share_no_noise(mapped: int):
    def draw(x: jax.Array) -> jax.Array:
        return random_bits.random_bits(random_bits.as_key(1), x)

    for _ in range(mapped):
        draw = jax.vmap(draw)

    def piece(*start: int) -> np.ndarray:
        def sliced() -> jax.Array:
            limit = [start[0] + 1, start[1] + 1, start[2] + 1000]
            return jax.lax.slice(draw(jnp.zeros(HUGE, jnp.bfloat16)), start, limit)

        compiled = jax.jit(sliced).lower().compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 10**8
        return np.asarray(compiled()).ravel()

    # Flat positions of the last two differ by 2^32, but for what rows are longer by.
    assert not np.mean(piece(0, 1, 0) == piece(2, 0, 1))
    assert not np.mean(piece(0, 0, 0) == piece(2, 0, 0))


def test_a_small_batch_costs_no_more_keys():
    key = (jnp.uint32(1), jnp.uint32(2))
    mapped = jax.jit(jax.vmap(lambda x: random_bits.random_bits(key, x))).lower(X).as_text()
    alone = jax.jit(lambda x: random_bits.random_bits(key, x)).lower(X).as_text()
    assert mapped.count("stablehlo.multiply") == alone.count("stablehlo.multiply")


def test_a_vmapped_key_gives_each_example_the_noise_of_its_key():
    x = jnp.ones(30)
    keys = jax.random.split(jax.random.key(0), 4)
    mapped = jax.vmap(lambda key: random_bits.random_bits(random_bits.as_key(key), x))(keys)
    np.testing.assert_array_equal(mapped, [bits(key, (30,)) for key in keys])


@pytest.mark.parametrize("name", FORMATS)
def test_vmapped_examples_do_not_share_noise(name: str):
    spec = Quantization(format=name, rounding="stochastic")
    same = jnp.broadcast_to(X[0, 0], (6, 40))
    codes = jax.jit(jax.vmap(lambda x: quantize(x, spec, 3).codes))(same)
    assert len({np.asarray(row).tobytes() for row in codes}) == 6


@pytest.mark.parametrize("name", ["mxfp8", "mxfp4", "int4"])  # whose scales need no other example
def test_a_vmapped_quantization_is_that_of_the_whole_batch(name: str):
    spec = Quantization(format=name, rounding="stochastic")
    mapped = jax.jit(jax.vmap(lambda x: quantize(x, spec, 3)))(X)
    whole = jax.jit(lambda x: quantize(x, spec, 3))(X)
    np.testing.assert_array_equal(mapped.codes, whole.codes)
    np.testing.assert_array_equal(mapped.scale, whole.scale)


def test_checkpoint_jit_scan_and_loops_draw_the_same_noise():
    x = X[0]
    np.testing.assert_array_equal(jax.checkpoint(drawn)(x), drawn(x))
    np.testing.assert_array_equal(drawn.__wrapped__(x), drawn(x))
    np.testing.assert_array_equal(jax.lax.map(drawn, X), jnp.stack([drawn(x) for x in X]))


# Correlations, all two-sided. Numbers of pairs are many, so bounds hold for all of them together.


N = 2**18
KEY = tuple(jnp.uint32(w) for w in oracle.mix_words(np.uint32(2026)))
INDEX = jnp.arange(N, dtype=jnp.uint32)
COUNT = 64

FAMILIES = {
    "quantizations": lambda n: random_bits.hash_bits(random_bits.mix(KEY, n), INDEX),
    "steps": lambda n: random_bits.hash_bits(
        random_bits.mix(random_bits.mix_words(jnp.stack([n, jnp.uint32(0)])), np.uint32(3)), INDEX
    ),
    "trips": lambda n: random_bits.hash_bits(
        random_bits.mix(random_bits.mix(KEY, np.uint32(3)), n), INDEX
    ),
    "examples": lambda n: random_bits.hash_bits(KEY, INDEX + n * np.uint32(N)),
    "rows": lambda n: random_bits.hash_bits(KEY, INDEX * np.uint32(COUNT) + n),
    "seeds": lambda n: random_bits.hash_bits(
        random_bits.mix_words(jnp.stack([jnp.uint32(0), n])), INDEX
    ),
}


@functools.cache
def family(name: str) -> np.ndarray:
    """COUNT draws of N words."""
    return np.asarray(jax.jit(jax.vmap(FAMILIES[name]))(jnp.arange(COUNT, dtype=jnp.uint32)))


def bound(pairs: int) -> float:
    """How far the largest of so many |z| goes once in a million."""
    return float(stats.norm.isf(FALSE_ALARM / 2 / pairs))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_two_draws_correlate(name: str):
    u = (family(name) >> 8).astype(np.float32) * np.float32(2.0**-24) - np.float32(0.5)
    above = np.triu_indices(len(u), 1)
    for v in (u, u**2 - np.float32(1 / 12)):  # values, and distances from the middle
        v = v / v.std(axis=1, keepdims=True)
        z = (v @ v.T)[above] / np.sqrt(N)
        assert np.abs(z).max() < bound(z.size)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_bit_of_a_draw_goes_with_the_same_bit_of_another(name: str):
    draws = family(name)[:16]
    for bit in range(8, 32):
        signs = (draws >> np.uint32(bit) & 1).astype(np.float32) * 2 - 1
        z = (signs @ signs.T)[np.triu_indices(len(draws), 1)] / np.sqrt(N)
        assert np.abs(z).max() < bound(24 * z.size)


def test_no_element_goes_with_another_across_keys():
    """Pairs of elements, near and far, under 2^20 quantizations of one key."""
    keys = random_bits.mix(KEY, jnp.arange(2**20, dtype=jnp.uint32))
    apart = [*range(1, 65), *(2**k for k in range(7, 32)), 2**32 - 1]

    @jax.jit
    def u(index: jax.Array) -> jax.Array:
        return (random_bits.hash_bits(keys, index) >> 8).astype(jnp.float32) * 2.0**-24 - 0.5

    first = np.asarray(u(np.uint32(1000)))
    z = [first @ np.asarray(u(np.uint32((1000 + d) % 2**32))) * 12 / 2**10 for d in apart]
    assert np.abs(z).max() < bound(len(z))


@pytest.mark.parametrize("function", ["index", "key[1]", "number mixed in"])
def test_one_bit_of_an_input_changes_every_bit_of_the_noise_half_the_time(function: str):
    n = 2**16
    r = [jnp.asarray(w) for w in words(3, n)]

    def draw(a: jax.Array, flip: jax.Array) -> jax.Array:
        if function == "index":
            return random_bits.hash_bits((r[1], r[2]), a ^ flip)
        if function == "key[1]":
            return random_bits.hash_bits((r[1], a ^ flip), r[2])
        return random_bits.hash_bits(random_bits.mix((r[1], r[2]), a ^ flip), jnp.uint32(1))

    @jax.jit
    def changes(bit: jax.Array) -> jax.Array:
        changed = draw(r[0], jnp.uint32(0)) ^ draw(r[0], jnp.uint32(1) << bit)
        bits = changed[:, None] >> jnp.arange(8, 32, dtype=jnp.uint32) & 1
        return bits.astype(jnp.int32).sum(0)

    counts = np.array([changes(jnp.uint32(bit)) for bit in range(32)])
    z = (2 * counts - n) / np.sqrt(n)
    assert np.abs(z).max() < bound(z.size)


@pytest.mark.parametrize("keys", [10_000, pytest.param(200_000, marks=pytest.mark.nightly)])
def test_no_difference_of_three_powers_of_two_or_fewer_correlates(keys: int):
    assert not differences.correlated(random_bits.hash_bits, differences.differences(), keys)


def test_a_hash_of_constant_factors_correlates_at_one_difference():
    apart = np.array([1, 2**15, 2**31, 2**31 - 2**15, 2**30 + 2**14], np.uint32)
    found = differences.correlated(differences.old_hash, apart, 10_000)
    assert found == [("scrambled", "0x7fff8000")]


def test_a_word_takes_eight_operations():
    key = (jnp.uint32(1), jnp.uint32(2))
    jaxpr = jax.make_jaxpr(lambda i: random_bits.hash_bits(key, i))(jnp.zeros(5, jnp.uint32))
    on_arrays = [e.primitive.name for e in jaxpr.eqns if e.outvars[0].aval.shape]
    assert len([name for name in on_arrays if name != "broadcast_in_dim"]) == 8


# Batteries


@pytest.mark.parametrize("name", streams.STREAMS)
def test_streams_are_random(name: str):
    assert not list(battery.rejections(next(streams.words(name, seed=1))[: 2**19]))


def lcg(n: int) -> np.ndarray:
    state = itertools.accumulate(range(n), lambda s, _: (1103515245 * s + 12345) % 2**31, initial=1)
    return np.fromiter(itertools.islice(state, n), np.uint32) << np.uint32(1)


NOT_RANDOM = {
    "a counter": np.arange(2**18, dtype=np.uint32),
    "Weyl's sequence": np.arange(2**18, dtype=np.uint32) * np.uint32(0x9E3779B9),
    "a linear congruential generator": lcg(2**17),
    "one round of the hash": oracle.xorshift(
        oracle.xorshift(np.arange(2**18, dtype=np.uint32) * oracle.GOLDEN, 16) * oracle.A, 15
    ),
    "every word twice": np.repeat(words(2**16), 2),
    "rows of 1024 that are the same": np.tile(words(2**10), 2**7),
    "16 bits": words(2**17) & np.uint32(0xFFFF0000),
}


@pytest.mark.parametrize("name", NOT_RANDOM)
def test_the_battery_rejects_what_is_not_random(name: str):
    assert next(battery.rejections(NOT_RANDOM[name]), None)


def test_the_battery_accepts_a_generator_that_is_known_to_be_good():
    good = np.random.default_rng(1).integers(0, 2**32, 2**19, dtype=np.uint32)
    assert not list(battery.rejections(good))


def test_threefry_rounds_with_its_own_noise():
    x = jnp.full(2**16, 0.3)
    up = {rng: np.asarray(stochastic_round(x, "int8", 1, rng=rng)) for rng in ("hash", "threefry")}
    assert (up["hash"] != up["threefry"]).any()
    for codes in up.values():
        assert abs(codes.mean() - 0.3) < bound(1) * np.sqrt(0.21 / 2**16)
