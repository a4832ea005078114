"""Kernels for TPUs give the emulation's codes bit for bit, and the TPU compiler takes them."""

import functools
import importlib.util
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from srjit.numerics import random_bits, rounding, scaling
from srjit.numerics.elements import ELEMENTS
from srjit.numerics.shards import of_shards
from srjit.targets.tpu import kernels
from targets import instructions

KEY = (jnp.uint32(0xDEADBEEF), jnp.uint32(12345))
CONVERTED = ["float8_e4m3fn", "float8_e5m2", "bfloat16"]
TILES = [(32, 128), (64, 256), (256, 2048)]
SHAPES = [(64, 256), (40, 300), (5, 7), (1, 1), (2, 64, 130)]
# With the operations that every chip has, and with the conversions that some have.
WAYS = [(name, False) for name in kernels.CARRIERS] + [(name, True) for name in CONVERTED]
ROUNDINGS = {"nearest": None, "stochastic": KEY}
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


@functools.partial(jax.jit, static_argnames="element")
def emulated(x, element, encode, key):
    bits = None if key is None else random_bits.random_bits(key, x)
    rounded = rounding.round_to_grid(x.astype(jnp.float32) * encode, element, bits)
    return rounded.astype(kernels.CARRIERS[element.name])


STATIC = ("element", "transposed", "with_amax", "converts", "tile")
quantize_kernel = instructions.interpreted()(
    jax.jit(kernels.quantize_kernel, static_argnames=STATIC)
)
amax_kernel = instructions.interpreted()(jax.jit(kernels.amax_kernel, static_argnames="tile"))
quantize_plainly = jax.jit(kernels.quantize_plainly, static_argnames=STATIC[:3])


def kernel(x, element, encode, key, tile=TILES[0], transposed=False, converts=False):
    return quantize_kernel(
        x,
        jnp.float32(encode),
        *(key or ()),
        element=element,
        transposed=transposed,
        converts=converts,
        tile=tile,
    )


def assert_same_bits(got, expected):
    assert got.dtype == expected.dtype and got.shape == expected.shape
    unsigned = np.dtype(f"u{got.dtype.itemsize}")
    np.testing.assert_array_equal(
        np.asarray(got).view(unsigned), np.asarray(expected).view(unsigned)
    )


@pytest.mark.crossed(2)
@pytest.mark.parametrize("rounding_name", ROUNDINGS)
@pytest.mark.parametrize(("name", "converts"), WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
def test_codes_are_the_emulations(dtype, shape, name, converts, rounding_name):
    element, key = ELEMENTS[name], ROUNDINGS[rounding_name]
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    encode = jnp.float32(0.5 * element.max if element.max < 1e30 else 1.7)
    got = kernel(x, element, encode, key, converts=converts)
    assert_same_bits(got, emulated(x, element, encode, key))


@pytest.mark.parametrize("name", kernels.CARRIERS)
def test_every_tiling_draws_the_same_bits(name):
    x = jax.random.normal(jax.random.key(1), (96, 300), jnp.float32)
    first, *others = (kernel(x, ELEMENTS[name], 40.0, KEY, tile) for tile in TILES)
    for other in others:
        assert_same_bits(other, first)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("rounding_name", ROUNDINGS)
@pytest.mark.parametrize(("name", "converts"), WAYS)
def test_every_bfloat16_gets_the_emulations_code(name, converts, rounding_name):
    words = jnp.arange(2**16, dtype=jnp.uint16).reshape(256, 256)
    x = jax.lax.bitcast_convert_type(words, jnp.bfloat16)
    x = jnp.where(jnp.isnan(x), 0, x)  # the scale of a tensor that has one is NaN
    element, key = ELEMENTS[name], ROUNDINGS[rounding_name]
    for encode in (1.0, 0.7):
        assert_same_bits(
            kernel(x, element, encode, key, converts=converts),
            emulated(x, element, jnp.float32(encode), key),
        )


@pytest.mark.parametrize(("name", "converts"), [w for w in WAYS if w[0] != "bfloat16"])
def test_fractions_at_the_edge_of_the_noise_round_as_the_emulation(name, converts):
    # 0, the smallest noise and its neighbours, and all but one: where < and <= differ.
    element = ELEMENTS[name]
    step = (
        1.0
        if element.mantissa_bits is None
        else 2.0 ** (element.min_exponent - element.mantissa_bits)
    )
    parts = [0, 2.0**-26, 2.0**-24, 2.0**-24 + 2.0**-40, 0.5, 1 - 2.0**-24, 1]
    t = np.array([n + f for n in range(7) for f in parts], np.float32)
    y, k = np.meshgrid(
        np.concatenate([t, -t]) * np.float32(step), np.array([0, 1, 2, 2**23, 2**24 - 2, 2**24 - 1])
    )
    bits = jnp.asarray((k << 8 | 0x5A).astype(np.uint32))
    y = jnp.asarray(y.astype(np.float32))
    dtype = kernels.CARRIERS[name]
    expected = jax.jit(rounding.round_to_grid, static_argnums=1)(y, element, bits).astype(dtype)
    of = instructions.interpreted()(kernels.converted) if converts else kernels._codes
    held = jnp.dtype(jnp.int8) if element.is_integer else dtype
    got = jax.jit(functools.partial(of, element=element, dtype=held))(y, bits=bits)
    assert_same_bits(got, expected)


@pytest.mark.parametrize("shape", [(96, 300), (2, 64, 128)])
def test_both_orientations_hold_the_same_codes(shape):
    x = jax.random.normal(jax.random.key(2), shape, jnp.bfloat16)
    for name in kernels.CARRIERS:
        codes, turned = kernel(x, ELEMENTS[name], 30.0, KEY, transposed=True)
        assert_same_bits(turned, jnp.moveaxis(codes, -1, 0))


def test_transpose_is_a_transposition():
    codes = jax.random.randint(jax.random.key(3), (96, 300), -127, 127, jnp.int8)
    with instructions.interpreted():
        assert_same_bits(kernels.transpose_kernel(codes, tile=TILES[0]), codes.T)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("special", [0.0, 1e-42, -5.0, np.inf, np.nan])
def test_amax_is_the_emulations(shape, special):
    x = np.full(shape, 2.0**-140, np.float32)
    x[(-1,) * len(shape)] = special
    assert_same_bits(amax_kernel(x, tile=TILES[0]), scaling.amax(x))


def test_examples_of_a_batch_draw_bits_of_their_own():
    x = jax.random.normal(jax.random.key(4), (3, 64, 128), jnp.bfloat16)
    int8, encode = ELEMENTS["int8"], jnp.float32(40)
    batched = jax.vmap(lambda x: kernels.quantize(x, int8, encode, KEY))(x)
    assert_same_bits(batched, emulated(x, int8, encode, KEY))


def test_shards_draw_the_bits_of_their_keys():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    x = jax.random.normal(jax.random.key(5), (64, 128), jnp.float32)
    int8, encode = ELEMENTS["int8"], jnp.float32(40)
    rows = PartitionSpec("data")

    def shard(quantize, x):
        return quantize(x, int8, encode, of_shards(KEY, ["data"]))

    run = functools.partial(jax.shard_map, mesh=mesh, in_specs=rows, out_specs=rows)
    got, expected = (
        jax.jit(run(functools.partial(shard, f)))(x) for f in (kernels.quantize, emulated)
    )
    assert_same_bits(got, expected)


def test_what_does_not_fit_is_said():
    int8 = ELEMENTS["int8"]
    assert kernels.fits((8, 128), jnp.bfloat16, int8)
    assert kernels.fits((2, 32, 7), jnp.float32, int8)
    assert not kernels.fits((2, 31, 7), jnp.float32, int8)  # a copy, to make it a matrix
    assert not kernels.fits((128,), jnp.float32, int8)
    assert not kernels.fits((0, 128), jnp.float32, int8)
    assert not kernels.fits((8, 128), jnp.float64, int8)
    assert not kernels.fits((8, 128), jnp.float32, ELEMENTS["float4_e2m1fn"])


@pytest.fixture(params=TOPOLOGIES)
def tpu(request, monkeypatch):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu: pip install 'srjit[aot]'")
    from jax.experimental import topologies

    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[request.param])
    return jax.sharding.SingleDeviceSharding(topology.devices[0])


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("shape", [(512, 4096), (40, 300)])
def test_the_tpu_compiler_takes_every_kernel(tpu, shape):
    x, encode = jax.ShapeDtypeStruct(shape, jnp.bfloat16), jax.ShapeDtypeStruct((), jnp.float32)
    words = (jax.ShapeDtypeStruct((), jnp.uint32),) * 2
    codes = jax.ShapeDtypeStruct(shape, jnp.int8)

    def every(x, codes, encode, *words):
        yield kernels.amax(x)
        yield kernels.transpose(codes)
        for name, key, transposed in itertools.product(
            kernels.CARRIERS, (None, words), (False, True)
        ):
            yield kernels.quantize(x, ELEMENTS[name], encode, key, transposed=transposed)

    jitted = jax.jit(lambda *args: list(every(*args)), in_shardings=tpu, out_shardings=tpu)
    compiled = jitted.lower(x, codes, encode, *words).compile().as_text()
    assert compiled.count('"tpu_custom_call"') == 2 + 4 * len(kernels.CARRIERS)


@pytest.mark.crossed(1, most=6)
@pytest.mark.parametrize(("name", "converts"), WAYS)
@pytest.mark.parametrize("shape", [(40, 300), (96, 256), (2, 64, 130)])
def test_amax_comes_with_the_codes(shape, name, converts):
    normal = jax.random.normal(jax.random.key(4), shape, jnp.bfloat16)
    element, encode = ELEMENTS[name], jnp.float32(30.0)
    options = {"element": element, "transposed": True, "with_amax": True}
    for special in (1.0, -7e4, np.nan, np.inf):
        x = normal.at[(-1,) * len(shape)].set(special)
        *codes, largest, hidden = quantize_kernel(
            x, encode, *KEY, **options, converts=converts, tile=TILES[0]
        )
        *plain_codes, plain, plain_hidden = quantize_plainly(x, encode, *KEY, **options)
        np.testing.assert_array_equal(largest, scaling.amax(x.astype(jnp.float32)))
        np.testing.assert_array_equal(plain, largest)
        np.testing.assert_array_equal(hidden, largest if element.is_integer else 0)
        np.testing.assert_array_equal(plain_hidden, hidden)
        shown = np.asarray(plain_codes[0], np.float32)[(-1,) * len(shape)]
        assert np.isfinite(special) or not (np.isfinite(shown) and np.isfinite(plain_hidden))
        if np.isfinite(special):
            for one, other in zip(codes, plain_codes, strict=True):
                assert_same_bits(one, other)
        elif not element.is_integer:  # what it is does not matter, but that it is not finite
            for one, other in zip(codes, plain_codes, strict=True):
                a, b = (np.asarray(c, np.float32) for c in (one, other))
                np.testing.assert_array_equal(*(np.where(np.isfinite(c), c, 0) for c in (a, b)))
                np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))


@pytest.mark.parametrize("name", kernels.CARRIERS)
def test_no_code_hides_a_smaller_word(name):
    # The smallest subnormals under the largest factor that a scale can give, and all of bfloat16.
    words = jnp.concatenate(
        [jnp.arange(300, dtype=jnp.uint32), jnp.arange(2**16, dtype=jnp.uint32) << 16]
    )
    x = jax.lax.bitcast_convert_type(words, jnp.float32)
    for encode in (2.0**126, 1.0):
        for value in (x, x.astype(jnp.bfloat16)):
            codes = quantize_plainly(value, jnp.float32(encode), *KEY, element=ELEMENTS[name])
            for one, code in (
                (value[1:2], codes[1:2]),
                (value[7:300], codes[7:300]),
                (value, codes),
            ):
                np.testing.assert_array_equal(
                    kernels._amax_beside(one, code), scaling.amax(one.astype(jnp.float32))
                )
