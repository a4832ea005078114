"""Models of conversions by hardware are what is published of them, for all noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srjit.numerics.elements import ELEMENTS
from srjit.targets.codes import float_code
from srjit.targets.gpu import ptx
from targets import instructions

NAMES = ["float4_e2m1fn", "float8_e4m3fn", "float8_e5m2"]
NOISE = np.arange(2**16, dtype=np.int32)
CONVERSIONS = {name: (name, name) for name in NAMES} | {
    "E2M1 as E4M3": ("float4_e2m1fn", "float8_e4m3fn")
}


def values_of(element):
    """Every magnitude of a grid, by code."""
    count = {"float4_e2m1fn": 8, "float8_e4m3fn": 0x7F, "float8_e5m2": 0x7C}[element.name]
    codes = np.arange(count, dtype=np.uint8)
    return codes.view(np.uint8).astype(np.uint8), decoded(codes, element)


def decoded(codes, element):
    """Oracle: a code's number, from the definition of its fields."""
    m = element.mantissa_bits
    exponent, mantissa = codes >> m, codes & (1 << m) - 1
    step = 2.0 ** (np.maximum(exponent, 1) - 1.0 + element.min_exponent - m)
    return (mantissa + (exponent > 0) * 2**m) * step


def inputs(element):
    """Between all neighbours: ends, what 16 bits can tell from them and what they cannot."""
    _, grid = values_of(element)
    parts = [0, 2.0**-20, 2.0**-16, 3 * 2.0**-17, 0.25, 1 / 3, 0.5, 0.7, 1 - 2.0**-16, 1 - 2.0**-19]
    some = slice(None, None, 1 if len(grid) == 8 else 3)  # more than one of every binade
    low, high = grid[:-1][some, None], grid[1:][some, None]
    y = (low + (high - low) * np.array(parts)).astype(np.float32)
    return y.ravel()


@pytest.mark.parametrize("name", NAMES)
def test_every_noise_rounds_up_as_often_as_the_fraction_says(name):
    element = ELEMENTS[name]
    _, grid = values_of(element)
    y = inputs(element)
    floor = np.searchsorted(grid, y, side="right") - 1
    fraction = (y - grid[floor]) / (grid[np.minimum(floor + 1, len(grid) - 1)] - grid[floor])
    count = jax.jit(
        jax.vmap(
            lambda y: instructions.carried_code(y, jnp.asarray(NOISE), element).sum(dtype=jnp.int32)
        )
    )
    ups = (
        np.concatenate(
            [np.asarray(count(part)) for part in np.array_split(jnp.asarray(y), 8)]
        ).astype(np.int64)
        - floor.astype(np.int64) * 2**16
    )
    np.testing.assert_array_equal(ups, np.floor(fraction * 2**16))


@pytest.mark.parametrize("name", NAMES)
def test_more_noise_never_rounds_down(name):
    element = ELEMENTS[name]
    y = jnp.asarray(inputs(element))
    codes = jax.jit(
        lambda y: instructions.carried_code(y[:, None], jnp.asarray(NOISE[None, ::255]), element)
    )
    assert (np.diff(np.asarray(codes(y)), axis=1) >= 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sign", [1, -1])
def test_ends_are_what_they_are(name, sign):
    element = ELEMENTS[name]
    _, grid = values_of(element)
    largest, last = float(grid[-1]), float(grid[-1] - grid[-2])
    y = sign * np.float32([*grid, largest + 0.9 * last, 3 * largest, 3e38, np.inf, 0, 1e-42])
    expected = [*range(len(grid)), *[len(grid) - 1] * 4, 0, 0]
    for noise in (0, 1, 0x8000, 0xFFFF):
        codes = instructions.carried_code(jnp.asarray(y), jnp.int32(noise), element)
        np.testing.assert_array_equal(codes, expected)
    signs = np.asarray(ptx.signed(jnp.asarray(y), jnp.zeros(y.shape, jnp.int32), element))
    assert ((signs > 0) == np.signbit(y)).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_numbers_round_up_as_rarely_as_they_should(name):
    element = ELEMENTS[name]
    step = 2.0 ** (element.min_exponent - element.mantissa_bits)
    for power in range(-18, 0):
        y = jnp.float32(1.5 * step * 2.0**power)
        ups = np.asarray(instructions.carried_code(y, jnp.asarray(NOISE), element)).sum()
        assert ups == int(1.5 * 2.0 ** (power + 16))


@pytest.mark.parametrize("name", NAMES)
def test_every_bit_of_a_word_is_for_the_pair_that_is_published(name):
    element = ELEMENTS[name]
    bits = [np.int32(np.uint32(1 << i).view(np.int32)) for i in range(32)]
    is_wide = name != "float4_e2m1fn"
    for i, word in enumerate(bits):
        upper_pair = i >= 16 if is_wide else i // 8 % 2 == 1
        fields = [int(f) for f in instructions.noise_fields(jnp.int32(word), element)]
        taken = fields[2:] if upper_pair else fields[:2]
        assert [f.bit_count() for f in taken] == [1, 1]
        assert sum(fields) == sum(taken)
        # What is high in the one is low in the other: the upper 8 bits share nothing.
        assert (taken[0] >= 256) != (taken[1] >= 256)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_words_hold_codes_in_memorys_order(name):
    grid, carrier = (ELEMENTS[n] for n in CONVERSIONS[name])
    conversion = ptx.Conversion(grid, carrier)
    numbers = np.float32([0, -0.5, 1, -1.5, 2, -3, 4, -6])[: conversion.per_word]
    values = [jnp.float32(n) for n in numbers]
    for word in (
        instructions.nearest(values, conversion),
        instructions.stochastic(values, conversion, [jnp.int32(0x1234567)] * (len(values) // 4)),
    ):
        codes = np.asarray(word).reshape(1).view(np.uint8)
        if conversion.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], -1).ravel()
        assert (codes == numbers.astype(jnp.dtype(carrier.name)).view(np.uint8)).all()


@pytest.mark.parametrize("name", NAMES)
def test_nearest_is_the_cast_of_the_dtype(name):
    element = ELEMENTS[name]
    _, grid = values_of(element)
    y = np.concatenate([inputs(element), (grid[1:] + grid[:-1]) / 2]).astype(np.float32)
    y = y[y <= element.max]
    np.testing.assert_array_equal(
        float_code(jnp.asarray(y), element, None), y.astype(jnp.dtype(element.name)).view(np.uint8)
    )


def test_nan_is_what_the_format_has_for_it():
    for name, code in {"float4_e2m1fn": 7, "float8_e4m3fn": 0x7F, "float8_e5m2": 0x7F}.items():
        element = ELEMENTS[name]
        conversion = ptx.Conversion(element, element)
        values = [jnp.float32(np.nan)] + [jnp.float32(0)] * (conversion.per_word - 1)
        noise = [jnp.int32(-1)] * (conversion.per_word // 4)
        assert int(instructions.nearest(values, conversion)) == code
        assert int(instructions.stochastic(values, conversion, noise)) == code
