"""NaN and Inf come out where they went in, zeros stay zeros, and no shape is refused."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srjit.numerics.arrays import dequantize
from srjit.numerics.encode import quantize
from srjit.numerics.formats import FORMATS
from srjit.numerics.quantization import Quantization
from srjit.numerics.scale_layouts import FLOAT32, NVFP4
from srjit.products.quantized import emulated

LAYOUTS = [(f.name, g) for f in FORMATS.values() for g in f.scales.granularities]
SEPARATE = [
    (name, granularity)
    for name, granularity in LAYOUTS
    if granularity in ("channel", "block") and FORMATS[name].scales is not NVFP4
]
STATIC = [f.name for f in FORMATS.values() if f.scales is FLOAT32]
BAD = [math.nan, math.inf, -math.inf]
SHAPE = (34, 50)
GAUSSIAN = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


@functools.partial(jax.jit, static_argnums=1)
def there_and_back(x: jax.Array, spec: Quantization) -> jax.Array:
    key = None if spec.rounding == "nearest" else 1
    return dequantize(quantize(x, spec, key))


@functools.partial(jax.jit, static_argnums=1)
def operand(x: jax.Array, spec: Quantization) -> tuple[jax.Array, jax.Array]:
    """A quantized operand's values, and the factor of the result."""
    scaled = emulated(x, spec, None)
    return scaled.values, jnp.float32(1) if scaled.scale is None else scaled.scale


@pytest.mark.parametrize(
    ("name", "granularity", "rounding"),
    [
        *((*layout, "nearest") for layout in LAYOUTS),
        *((name, None, "stochastic") for name in FORMATS),
    ],
)
def test_what_is_not_finite_stays_visible(name: str, granularity: str | None, rounding: str):
    spec = Quantization(format=name, granularity=granularity, rounding=rounding)
    for bad in BAD:
        x = GAUSSIAN.copy()
        x[5, 7] = x[33, 49] = bad
        back = np.asarray(there_and_back(x, spec))
        assert not np.isfinite(back[[5, 33], [7, 49]]).any()


@pytest.mark.parametrize(("name", "granularity"), LAYOUTS)
def test_what_is_not_finite_stays_visible_in_programs(name: str, granularity: str):
    for bad in BAD:
        x = GAUSSIAN.copy()
        x[5, 7] = bad
        values, scale = operand(x, Quantization(format=name, granularity=granularity))
        assert not np.isfinite(np.asarray(values.astype(jnp.float32) * scale)[5, 7])


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", STATIC)
def test_static_scales_do_not_hide_what_is_not_finite(name: str, bad: float):
    spec = Quantization(format=name, granularity="tensor", scaling="static", amax=4.0)
    x = GAUSSIAN.copy()
    x[3, 3] = bad
    assert not np.isfinite(there_and_back(x, spec))[3, 3]
    assert np.isfinite(there_and_back(GAUSSIAN, spec)).all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", FORMATS)
def test_hadamard_transforms_do_not_hide_what_is_not_finite(name: str, bad: float):
    x = GAUSSIAN.copy()
    x[3, 20] = bad
    back = np.asarray(there_and_back(x, Quantization(format=name, hadamard=True)))
    assert not np.isfinite(back[3, 16:32]).any()


@pytest.mark.parametrize(("name", "granularity"), SEPARATE)
def test_rows_with_scales_of_their_own_stay_finite(name: str, granularity: str):
    x = GAUSSIAN.copy()
    x[5, 7] = math.inf
    back = np.asarray(there_and_back(x, Quantization(format=name, granularity=granularity)))
    assert np.isfinite(back[:5]).all()


@pytest.mark.crossed(1)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(("name", "granularity"), LAYOUTS)
def test_zeros_stay_zeros(name: str, granularity: str, rounding: str):
    spec = Quantization(format=name, granularity=granularity, rounding=rounding)
    assert not np.asarray(there_and_back(np.zeros(SHAPE, np.float32), spec)).any()
    rows = np.where(np.arange(34)[:, None] == 9, GAUSSIAN, np.float32(0))
    assert not np.asarray(there_and_back(rows, spec))[rows == 0].any()


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (1, 1), (0,), (0, 8), (8, 0), (2, 1, 3)], ids=str
)
@pytest.mark.parametrize(("name", "granularity"), LAYOUTS)
def test_every_shape_is_quantized(name: str, granularity: str, shape: tuple[int, ...]):
    spec = Quantization(format=name, granularity=granularity, rounding="stochastic")
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    q = jax.eval_shape(lambda x: quantize(x, spec, 1), x)
    assert (q.codes.shape, q.codes.dtype) == (shape, FORMATS[name].storage.dtype)
    assert jax.eval_shape(dequantize, q).shape == shape


@pytest.mark.parametrize("shape", [(), (1,), (0, 8)], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_small_and_empty_arrays_come_back(name: str, shape: tuple[int, ...]):
    """One number is its own largest, so that it is within a rounding of itself."""
    back = np.asarray(there_and_back(np.full(shape, 3.0, np.float32), Quantization(format=name)))
    np.testing.assert_allclose(back, np.full(shape, 3.0, np.float32), rtol=2**-5)


@pytest.mark.parametrize("name", FORMATS)
def test_a_hadamard_transform_pads_its_contraction(name: str):
    spec = Quantization(format=name, hadamard=True)
    q = jax.eval_shape(lambda x: quantize(x, spec), GAUSSIAN)
    assert q.codes.shape == (34, 64)
