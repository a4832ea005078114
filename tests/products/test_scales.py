"""Scales of products do not make zeros of normal numbers, nor infinities of finite ones."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srjit
from srjit.numerics.scaling import split
from srjit.products.dot import DotProduct
from srjit.products.quantized import emulated, scaled_dot

RNG = np.random.default_rng(0)
X, W = (RNG.standard_normal(s).astype(np.float32) for s in ((8, 32), (32, 16)))
PRODUCT = DotProduct((0, 1), (1, 2), (0, 2))
SPECS = {
    "int8": {"format": "int8"},
    "channels": {"format": "int8", "granularity": "channel"},
    "fp8": {"format": "fp8_e4m3"},
    "e5m2": {"format": "fp8_e5m2"},
    "mxfp8": {"format": "mxfp8"},
    "nvfp4": {"format": "nvfp4"},
    "squares": {"format": "nvfp4", "granularity": "square"},
}


def multiplied(x: np.ndarray, w: np.ndarray, *specs: Any) -> np.ndarray:
    """The product of operands so quantized, or as they are for None."""
    return np.asarray(_compiled(*(s and tuple(s.items()) for s in specs))(x, w))


@functools.cache
def _compiled(*specs: Any) -> Any:
    def fun(x: jax.Array, w: jax.Array) -> jax.Array:
        axes = (-1,), (0,)
        operands = [
            o if s is None else emulated(o, srjit.Quantization(**dict(s), axis=axis), None)
            for o, s, axis in zip((x, w), specs, axes, strict=True)
        ]
        return scaled_dot(PRODUCT, *operands, dtype=jnp.float32)

    return jax.jit(fun)


def dequantized(x: np.ndarray, spec: Any, axis: int) -> np.ndarray:
    """The values of an operand's codes, with blocks along an axis."""
    quantization = srjit.Quantization(**spec, axis=(axis,))
    return np.asarray(srjit.quantize(x, quantization).dequantize())


@pytest.mark.crossed(1)
@pytest.mark.parametrize("which", ["both", "lhs", "rhs"])
@pytest.mark.parametrize("name", SPECS)
def test_products_scale_with_their_operands_as_long_as_they_are_normal(name: str, which: str):
    spec = SPECS[name]
    specs = {"both": (spec, spec), "lhs": (spec, None), "rhs": (None, spec)}[which]
    plain = multiplied(X, W, *specs)
    # Tensors whose scales are normal numbers, however small their product is; and large ones.
    pairs = (-60, -55), (-108, 0), (-108, 90), (0, -108), (-100, -12), (120, -108), (60, 55)
    # Terms of sums of what is no code may be flushed, as in the program itself.
    terms = 0 if which == "both" and name != "mxfp8" else 32 * 2.0**-126
    for a, b in pairs:
        scaled = multiplied(np.ldexp(X, a), np.ldexp(W, b), *specs)
        expected = np.ldexp(plain.astype(np.float64), a + b)
        normal = np.abs(expected) > 2.0**-125  # the others may be flushed
        np.testing.assert_allclose(scaled[normal], expected[normal], 0, terms, err_msg=f"{a}, {b}")
        assert normal.mean() > 0.9


@pytest.mark.parametrize("name", SPECS)
def test_the_smallest_normal_operands_do_not_vanish(name: str):
    """With coarser codes, where a scale would be subnormal."""
    for exponent in range(-121, -108):
        x = np.ldexp(np.clip(np.abs(X), 2.0**-4, 1), exponent)
        got = multiplied(x, np.abs(W), SPECS[name], SPECS[name]).astype(np.float64)
        expected = x.astype(np.float64) @ np.abs(W)
        worst = np.abs(got / expected - 1).max()
        assert worst < (0.35 if exponent < -116 else 0.15), (exponent, worst)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("which", ["both", "lhs", "rhs"])
def test_one_large_number_makes_nothing_infinite(name: str, which: str):
    spec = SPECS[name]
    specs = {"both": (spec, spec), "lhs": (spec, None), "rhs": (None, spec)}[which]
    x, w = X.copy(), np.clip(W, -1, 1)
    x[3, 5] = 3e38
    got = multiplied(x, w, *specs)
    assert np.isfinite(got).all()
    x, w = (o if q is None else dequantized(o, q, -1 if o is x else 0)
            for o, q in zip((x, w), specs, strict=True))  # fmt: skip
    # The largest value of a block is the format's own, but for NVFP4's scales of 3 bits.
    assert abs(x[3, 5] / 3e38 - 1) <= 2.0**-4
    sizes = np.abs(x[3]).astype(np.float64) @ np.abs(w)
    off = np.abs(got[3] - x[3].astype(np.float64) @ w)
    assert (off <= 40 * 2.0**-24 * sizes).all()  # 32 terms, summed and scaled in float32
    # The product of both scales is infinite, and no result is.
    x, w = X.copy(), W * np.float32(1e5)
    x[3], w[5] = 0, 0
    x[3, 5] = 3e38
    assert np.isfinite(multiplied(x, w, *specs)).all()


def test_a_scale_is_its_two_parts_and_their_products_are_normal():
    exponents = np.arange(-126, 128)
    scale = np.ldexp(np.float32(1.9999999), exponents)
    rest, power = map(np.asarray, jax.jit(split)(scale))
    np.testing.assert_array_equal(rest * power * power, scale)
    assert ((rest >= 1) & (rest < 4)).all() and (np.frexp(power)[0] == 0.5).all()
    a, b = rest * power, power  # of any two scales
    assert (np.multiply.outer(b, b) >= 2.0**-126).all() and np.isfinite(
        np.multiply.outer(b, b)
    ).all()
    small = scale <= 2.0**121  # as large as the scale of anything is
    with np.errstate(over="ignore"):
        both = np.multiply.outer(a[small], a[small])
    assert (both >= 2.0**-126).all() and np.isfinite(both).all()


@pytest.mark.parametrize("recipe", ["int8", "fp8", "nvfp4", "int4"])
def test_small_gradients_reach_both_operands(recipe: str):
    t = RNG.standard_normal((8, 16)).astype(np.float32)

    def step(w: jax.Array, x: jax.Array, t: jax.Array) -> Any:
        return jax.vjp(lambda w, x: x @ w, w, x)[1](t)

    fun = srjit.srjit(step, recipe=recipe)
    ones = fun(W, X, t, sr_key=1)
    for exponent in (-104, -112):
        smalls = fun(W, X, np.ldexp(t, exponent), sr_key=1)
        for one, small in zip(ones, smalls, strict=True):
            expected = np.ldexp(np.asarray(one, np.float64), exponent)
            assert np.abs(small - expected).max() < 0.3 * np.abs(expected).max()
