"""Codes and scales equal, bit for bit, what the specifications' arithmetic gives in NumPy."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from oracles import scales as oracle
from oracles.grids import GRIDS
from srjit.numerics import scaling
from srjit.numerics.arrays import QuantizedArray, dequantize
from srjit.numerics.elements import ELEMENTS
from srjit.numerics.encode import quantize, stochastic_round
from srjit.numerics.formats import FORMATS
from srjit.numerics.quantization import Quantization
from srjit.numerics.scale_layouts import E8M0, FLOAT32, NVFP4
from srjit.products.quantized import emulated

from .support import assert_same_bits

FLT_MAX = np.finfo(np.float32).max
RNG = np.random.default_rng(20)


def log_uniform(low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
    """Magnitudes from 2^low to 2^high, both signs."""
    with np.errstate(over="ignore", under="ignore"):
        magnitudes = np.exp2(RNG.uniform(low, high, shape)).astype(np.float32)
    return np.minimum(magnitudes, FLT_MAX) * RNG.choice(np.float32([-1, 1]), shape)


def outlier(size: float) -> np.ndarray:
    x = RNG.standard_normal((48, 64)).astype(np.float32)
    x[17, 33] = size
    return x


def gaussian(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


SHAPE = (48, 64)
NORMAL = {
    "gaussian": gaussian(*SHAPE),
    "all equal": np.full(SHAPE, 0.3, np.float32),
    "single outlier": outlier(1e4),
    "single huge outlier": outlier(-1e30),
    "zeros": np.zeros(SHAPE, np.float32),
    "zeros with one one": np.float32(np.arange(48 * 64).reshape(SHAPE) == 100),
    "float32 extremes": RNG.choice(np.float32([3e38, -3e38, FLT_MAX, -FLT_MAX, 1]), SHAPE),
    "integers": RNG.integers(-8, 9, SHAPE).astype(np.float32),
    "magnitudes mixed": log_uniform(-30, 30, SHAPE),
    "small": log_uniform(-60, -50, SHAPE),
}
TINY = {
    "negative zeros": np.tile(np.float32([-0.0, 0.0]), (48, 32)),
    "negative zeros beside ones": np.tile(np.float32([[-0.0, 1.0], [-0.0, 0.0]]), (24, 32)),
    "subnormals": log_uniform(-149, -126, SHAPE),
    "the smallest subnormals": RNG.integers(-3, 4, SHAPE).astype(np.float32) * np.float32(1e-45),
    "1e-30": gaussian(*SHAPE) * np.float32(1e-30),
    "1e-35": gaussian(*SHAPE) * np.float32(1e-35),
    "1e-38": gaussian(*SHAPE) * np.float32(1e-38),
    "tiny magnitudes mixed": log_uniform(-149, -90, SHAPE),
    "all magnitudes mixed": log_uniform(-149, 127.99, SHAPE),
    "tiny rows beside ones": np.where(
        np.arange(48)[:, None] < 9, np.float32(1), log_uniform(-149, -60, SHAPE)
    ),
}
TENSORS = NORMAL | TINY
SIZES = [(37, 53), (3, 5), (70,)]


_quantize = jax.jit(quantize, static_argnums=1)


def jitted(x: np.ndarray, **spec: object) -> QuantizedArray:
    return _quantize(x, Quantization(**spec))


@functools.partial(jax.jit, static_argnums=1)
def _mapped(x: jax.Array, spec: Quantization) -> QuantizedArray:
    return jax.vmap(lambda x: quantize(x, spec))(x)


@functools.partial(jax.jit, static_argnums=1)
def _looped(x: jax.Array, spec: Quantization) -> QuantizedArray:
    return jax.lax.scan(lambda carry, x: (carry, quantize(x, spec)), 0, x)[1]


def assert_equal(q: QuantizedArray, expected: oracle.Quantized) -> None:
    """Codes as values, with signs of zeros where the element has them; scales in their dtypes."""
    codes = np.asarray(q.codes).astype(expected.codes.dtype)
    integer = ELEMENTS[q.codes.dtype.name].is_integer
    assert_same_bits(codes, expected.codes + 0 if integer else expected.codes)
    scale = np.asarray(q.scale).astype(expected.scale.dtype)
    assert_same_bits(scale, expected.scale)
    if expected.tensor_scale is not None:
        assert_same_bits(np.asarray(q.tensor_scale), np.asarray(expected.tensor_scale))


@pytest.mark.parametrize("granularity", ["block", "square"])
@pytest.mark.parametrize("scale_rounding", ["standard", "up"])
@pytest.mark.parametrize("case", TENSORS)
def test_nvfp4_is_the_published_algorithm(case: str, granularity: str, scale_rounding: str):
    x = TENSORS[case]
    q = jitted(x, format="nvfp4", granularity=granularity, scale_rounding=scale_rounding)
    up = scale_rounding == "up"
    assert_equal(q, oracle.nvfp4(x, square=granularity == "square", up=up))


@pytest.mark.parametrize("granularity", ["block", "square"])
@pytest.mark.parametrize("case", TENSORS)
def test_four_over_six_takes_the_better_of_two_scales(case: str, granularity: str):
    x = TENSORS[case]
    q = jitted(x, format="nvfp4", granularity=granularity, scale_rounding="four_over_six")
    six, four, better = oracle.four_over_six(x, square=granularity == "square")
    scale, codes = np.asarray(q.scale).astype(np.float32), np.asarray(q.codes).astype(np.float32)
    assert_same_bits(np.asarray(q.tensor_scale), np.asarray(six.tensor_scale))
    # Where they err as much but for the order of a sum, it may be either.
    for chosen, expected in ((better > 1e-5, four), (~(better > -1e-5), six)):
        np.testing.assert_array_equal(scale[chosen], expected.scale[chosen])
        where = oracle.spread(chosen, x.shape, 16)
        np.testing.assert_array_equal(codes[where], expected.codes[where])
    if case == "gaussian":  # in a square the largest of 256 stands alone: it is better at 6
        assert np.any(better > 0) and np.any(better < 0)


def test_four_over_six_errs_less():
    x = RNG.standard_normal((2048, 1024)).astype(np.float32)
    errors: dict[str, float] = {}
    for rounding in ("standard", "four_over_six"):
        spec = Quantization(format="nvfp4", scale_rounding=rounding)
        errors[rounding] = float(np.mean((dequantize(quantize(x, spec)) - x) ** 2))
    # Published with two digits; of two million elements, the mean deviates by a thousandth.
    assert errors["standard"] == pytest.approx(9.0e-3, abs=6e-5)
    assert errors["four_over_six"] == pytest.approx(7.6e-3, abs=6e-5)


@pytest.mark.parametrize(
    "spec", [{"format": "mxfp4"}, {"format": "nvfp4", "rounding": "stochastic"}], ids=str
)
def test_four_over_six_fits_nothing_else(spec: dict[str, str]):
    with pytest.raises(ValueError, match="it does not fit"):
        Quantization(scale_rounding="four_over_six", **spec)


@pytest.mark.parametrize("case", TENSORS)
def test_nvfp4_is_the_same_whichever_way_it_is_run(case: str):
    x, spec, same = TENSORS[case], Quantization(format="nvfp4"), oracle.nvfp4(TENSORS[case])
    assert_equal(quantize(x, spec), same)
    for run in (_mapped, _looped):
        both = run(np.stack([x, -x]), spec)
        assert_equal(jax.tree.map(lambda leaf: leaf[0], both), same)
        assert_equal(jax.tree.map(lambda leaf: leaf[1], both), oracle.nvfp4(-x))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _nvfp4_scales(
    block: jax.Array, tensor: jax.Array, rounding: str, subnormal: bool
) -> scaling.Scales:
    scales = functools.partial(scaling.nvfp4_scales, rounding=rounding, subnormal=subnormal)
    return jax.vmap(scales)(block, tensor)


def blocks_of_tensors(rounding: str, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Amax of blocks, and of their tensors in some binades."""
    a = np.abs(log_uniform(low, high, (200_000,)))
    with np.errstate(under="ignore"):
        b = a * np.exp2(-RNG.exponential(4, a.shape)).astype(np.float32)
    if rounding == "up":  # where b * S / 6 is subnormal, 0 is as good as the smallest scale
        normal = b * np.minimum(2688 / a.astype(float), FLT_MAX) / 6 >= np.finfo(np.float32).tiny
        b, a = np.resize(b[normal], b.shape), np.resize(a[normal], a.shape)
    return b, a


# Where S = 2688/A is so large that 1/S is subnormal, but not yet capped; where A/2688 is subnormal;
# where tensors begin to be lifted; everything.
@pytest.mark.parametrize("binades", [(-117, -114.4), (-149, -114), (-62, -58), (-149, 127.99)])
@pytest.mark.parametrize("rounding", ["standard", "up"])
def test_nvfp4_scales_are_exact_in_every_binade(binades: tuple[float, float], rounding: str):
    b, a = blocks_of_tensors(rounding, *binades)
    ours = _nvfp4_scales(b, a, rounding, True)
    encode, sf, tensor_scale = oracle.nvfp4_scales(b, a, up=rounding == "up")
    assert_same_bits(np.asarray(ours.encode) * np.asarray(ours.lift), encode)
    assert_same_bits(np.asarray(ours.scale).astype(np.float32), sf)
    assert_same_bits(np.asarray(ours.tensor_scale), tensor_scale)


def test_nvfp4_scales_are_exact_beside_ties():
    """Where another order of b * (S * (1/6)) would round to another scale."""
    grid = GRIDS["float8_e4m3fn"].magnitudes
    ties = ((grid[1:] + grid[:-1]) / 2).astype(np.float32)
    a = np.abs(log_uniform(-100, 100, (1000, 1)))
    nearly = ties * a / np.float32(448)
    below = np.nextafter(nearly, np.float32(0))
    b = np.stack([below, nearly, np.nextafter(nearly, np.float32(np.inf))])
    tensor = np.broadcast_to(a, b.shape).ravel()
    _, sf, _ = oracle.nvfp4_scales(b.ravel(), tensor)
    for subnormal in (False, True):
        ours = _nvfp4_scales(b.ravel(), tensor, "standard", subnormal)
        assert_same_bits(np.asarray(ours.scale).astype(np.float32), sf)


@pytest.mark.parametrize("rounding", ["standard", "up"])
def test_without_care_for_subnormals_nvfp4_scales_are_exact_from_2_to_the_minus_100(rounding: str):
    b, a = blocks_of_tensors(rounding, -100, 127.99)
    b = np.maximum(b, np.finfo(np.float32).tiny)  # whose elements are flushed below it
    ours = _nvfp4_scales(b, a, rounding, False)
    encode, sf, tensor_scale = oracle.nvfp4_scales(b, a, up=rounding == "up")
    assert ours.lift is None
    assert_same_bits(np.asarray(ours.encode), encode)
    assert_same_bits(np.asarray(ours.scale).astype(np.float32), sf)
    assert_same_bits(np.asarray(ours.tensor_scale), tensor_scale)


MX = [f.name for f in FORMATS.values() if f.scales is E8M0]


# Where the scale, then the elements, begin to be subnormal, and where it is the largest.
EXTREMES = {
    "2^-126 to 2^-119": log_uniform(-126, -119, SHAPE),
    "powers of two from 2^-149": np.tile(
        np.exp2(np.arange(-149.0, -85)).astype(np.float32), (48, 1)
    ),
    "up to the largest": log_uniform(120, 128, SHAPE),
}


@pytest.mark.parametrize("granularity", ["block", "square"])
@pytest.mark.parametrize("scale_rounding", ["standard", "up"])
@pytest.mark.parametrize("case", TENSORS | EXTREMES)
@pytest.mark.parametrize("name", MX)
def test_mx_is_what_the_ocp_specifies(name: str, case: str, scale_rounding: str, granularity: str):
    x = (TENSORS | EXTREMES)[case]
    q = jitted(x, format=name, granularity=granularity, scale_rounding=scale_rounding)
    square, up = granularity == "square", scale_rounding == "up"
    same = oracle.mx(x, FORMATS[name].element.name, square=square, up=up)
    assert_equal(q, same)
    with np.errstate(over="ignore", under="ignore"):
        assert_same_bits(np.asarray(q.dequantize()), same.dequantized(32).astype(np.float32))


@pytest.mark.parametrize("name", MX)
def test_mx_operands_of_programs_are_no_zeros_while_they_are_normal_floats(name: str):
    x = np.tile(log_uniform(-126, -117, (48, 1)), (1, 64))
    operand = jax.jit(lambda x: emulated(x, Quantization(format=name), None))(x)
    assert np.all(np.abs(np.asarray(operand.values, float) - x) <= np.abs(x.astype(float)) / 4)


@pytest.mark.parametrize("name", MX)
def test_mx_up_never_clips_and_is_the_smallest_such_scale(name: str):
    x = log_uniform(-20, 20, (64, 64))
    largest = FORMATS[name].element.max
    q = jitted(x, format=name, scale_rounding="up")
    exceeded = np.abs(x) / np.repeat(np.asarray(q.scale).astype(float), 32, axis=1)
    block_largest = exceeded.reshape(64, 2, 32).max(-1)
    assert np.all((block_largest <= largest) & (block_largest > largest / 2))


FLOAT_SCALED = [f.name for f in FORMATS.values() if f.scales is FLOAT32]
AMAX = {
    "tensor": lambda x: np.abs(x).max(),
    "channel": lambda x: np.abs(x).max(-1, keepdims=True),
    "block": lambda x: oracle.block_amax(x, 32),
    "square": lambda x: oracle.block_amax(x, 32, square=True),
}


@pytest.mark.parametrize("granularity", AMAX)
@pytest.mark.parametrize("case", NORMAL)
@pytest.mark.parametrize("name", FLOAT_SCALED)
def test_float_scales_are_amax_over_the_largest_code(name: str, case: str, granularity: str):
    x = NORMAL[case]
    q = jitted(x, format=name, granularity=granularity)
    amax = AMAX[granularity](x)
    assert_equal(q, oracle.float_scaled(x, FORMATS[name].element.name, amax, block=32))


@pytest.mark.parametrize("name", FLOAT_SCALED)
def test_static_scales_are_given_ones_and_saturate(name: str):
    x = NORMAL["gaussian"]
    q = jitted(x, format=name, granularity="tensor", scaling="static", amax=1.5)
    element = FORMATS[name].element
    assert_equal(q, oracle.float_scaled(x, element.name, np.float32(1.5)))
    assert np.abs(np.asarray(q.codes).astype(float)).max() == element.max


@pytest.mark.crossed(2)
@pytest.mark.parametrize("case", TINY)
@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"bf16", "nvfp4"}))
def test_tiny_tensors_stay_finite_and_near_what_they_were(name: str, case: str):
    """What has no published algorithm for subnormals may flush them, as CPUs do."""
    x = TINY[case]
    back = np.asarray(jitted(x, format=name).dequantize(), np.float64)
    largest = np.abs(x.astype(float)).max()
    assert np.all(np.abs(back - x) <= max(largest / 2, FORMATS[name].element.max * 2.0**-126))


def test_bf16_rounds_and_has_no_scale():
    x = TENSORS["all magnitudes mixed"]
    q = jitted(x, format="bf16")
    expected = np.clip(x, *np.float32([-1, 1]) * np.float32(ELEMENTS["bfloat16"].max))
    assert_same_bits(np.asarray(q.codes), expected.astype(ml_dtypes.bfloat16))
    assert_same_bits(np.asarray(q.dequantize()), np.asarray(q.codes).astype(np.float32))
    assert float(q.scale) == 1


def expected(x: np.ndarray, name: str, granularity: str | None = None) -> oracle.Quantized:
    fmt = FORMATS[name]
    square = granularity == "square"
    if fmt.scales is NVFP4:
        return oracle.nvfp4(x, square=square)
    if fmt.scales is E8M0:
        return oracle.mx(x, fmt.element.name, square=square)
    amax = AMAX[granularity or fmt.granularity](x)
    return oracle.float_scaled(x, fmt.element.name, amax, block=32)


SCALED = sorted(set(FORMATS) - {"bf16"})


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", SCALED)
def test_dimensions_need_not_be_multiples_of_a_block(name: str, size: tuple[int, ...]):
    x = np.random.default_rng(8).standard_normal(size).astype(np.float32)
    assert_equal(jitted(x, format=name), expected(x, name))


@pytest.mark.parametrize("name", SCALED)
def test_squares_need_not_fit_either(name: str):
    x = np.random.default_rng(9).standard_normal((37, 53)).astype(np.float32)
    q = jitted(x, format=name, granularity="square")
    assert_equal(q, expected(x, name, "square"))


@pytest.mark.parametrize("case", ["gaussian", "single outlier", "float32 extremes", "zeros"])
@pytest.mark.parametrize("name", SCALED)
def test_operands_of_programs_have_the_same_codes_and_scales(name: str, case: str):
    spec, same = Quantization(format=name), expected(NORMAL[case], name)
    operand = jax.jit(lambda x: emulated(x, spec, None))(NORMAL[case])
    if not spec.is_blocked:
        np.testing.assert_array_equal(operand.values, same.codes)
        np.testing.assert_array_equal(operand.scale, same.scale)
        return
    with np.errstate(over="ignore"):
        values = same.codes * oracle.spread(same.scale, same.codes.shape, spec.block_size)
    np.testing.assert_array_equal(operand.values, values.astype(np.float32))
    tensor_scale = None if operand.scale is None else np.asarray(operand.scale).ravel()
    assert tensor_scale == same.tensor_scale


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("name", SCALED)
def test_every_input_dtype_gives_the_codes_of_its_values(name: str, dtype: type):
    x = (np.random.default_rng(3).standard_normal((33, 70)) * 1.7).astype(dtype)
    with jax.enable_x64(dtype is np.float64):
        q = jitted(x, format=name)
        assert_equal(q, expected(oracle.work(x), name))
        assert q.dequantize(jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("axis", [-2, (1, 0)])
def test_blocks_and_channels_run_along_the_given_dimension(name: str, axis: int | tuple[int, ...]):
    x = np.random.default_rng(4).standard_normal((20, 35, 18)).astype(np.float32)
    last = (axis if isinstance(axis, tuple) else (axis,))[-1]
    q = jitted(x, format=name, axis=axis)
    moved = expected(np.moveaxis(x, last, -1), name)
    scale = np.moveaxis(moved.scale, -1, last) if moved.scale.ndim else moved.scale
    assert_equal(q, moved._replace(codes=np.moveaxis(moved.codes, -1, last), scale=scale))


@pytest.mark.parametrize("axis", [0, (0, 2)])
@pytest.mark.parametrize("name", FLOAT_SCALED)
def test_a_channel_is_what_no_contracted_dimension_runs_along(
    name: str, axis: int | tuple[int, ...]
):
    x = np.random.default_rng(5).standard_normal((6, 7, 8)).astype(np.float32)
    amax = np.abs(x).max(axis, keepdims=True)
    q = jitted(x, format=name, granularity="channel", axis=axis)
    assert_equal(q, oracle.float_scaled(x, FORMATS[name].element.name, amax))


@pytest.mark.parametrize("block", [1, 5])
@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"bf16", "nvfp4"}))
def test_any_block_size_will_do(name: str, block: int):
    x = np.random.default_rng(6).standard_normal((5, 66)).astype(np.float32)
    q = jitted(x, format=name, granularity="block", block=block)
    element = FORMATS[name].element.name
    if FORMATS[name].scales is E8M0:
        assert_equal(q, oracle.mx(x, element, block=block))
    else:
        amax = oracle.block_amax(x, block)
        assert_equal(q, oracle.float_scaled(x, element, amax, block=block))


@pytest.mark.parametrize("granularity", [None, "square"])
@pytest.mark.parametrize("name", SCALED)
def test_dequantizing_multiplies_codes_and_scales(name: str, granularity: str | None):
    x = np.random.default_rng(7).standard_normal((40, 70)).astype(np.float32)
    q = jitted(x, format=name, granularity=granularity)
    block = q.spec.block_size
    scale = np.asarray(q.scale).astype(np.float32)
    tensor_scale = None if q.tensor_scale is None else np.asarray(q.tensor_scale)
    codes = np.asarray(q.codes).astype(np.float32)
    exact = oracle.Quantized(codes, scale, tensor_scale).dequantized(block)
    np.testing.assert_allclose(jax.jit(dequantize)(q), exact, rtol=2**-23, atol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_what_codes_of_normal_numbers_stand_for_is_normal(name: str):
    """Also where the scale of an NVFP4 tensor is a subnormal number."""
    spec = Quantization(format=name)
    run = jax.jit(lambda x: (q := quantize(x, spec), q.dequantize()))
    for exponent in (-100, -108, -112, -114, -116):
        x = np.ldexp(np.linspace(-1, 1, 64, dtype=np.float32), exponent)
        q, got = jax.tree.map(lambda v: np.asarray(v).astype(np.float64), run(x))
        scale = np.repeat(q.scale.ravel(), 64 // q.scale.size)
        expected = q.codes * scale * (1 if q.tensor_scale is None else q.tensor_scale)
        normal = np.abs(expected) >= 2.0**-126
        np.testing.assert_allclose(got[normal], expected[normal], rtol=2e-6)
        assert normal.mean() > 0.8 and np.abs(got).max() > 0.2 * np.abs(x).max()


def test_float64_scales_are_as_small_as_float64_has_them():
    with jax.enable_x64(True):
        for exponent in (-200, -900):
            x = np.ldexp(np.linspace(-1, 1, 33), exponent)
            q = quantize(jnp.asarray(x), Quantization(format="int8"))
            np.testing.assert_allclose(q.dequantize(jnp.float64), x, atol=2.0 ** (exponent - 7.9))


def test_outside_of_programs_each_function_is_one_program_and_the_second_call_compiles_none(caplog):
    spec = Quantization(format="nvfp4", rounding="stochastic")
    x = jax.block_until_ready(jnp.ones((3, 19)))

    def programs(step: int) -> list[str]:
        caplog.clear()
        with jax.log_compiles(True):
            quantize(x, spec, step).dequantize()
            stochastic_round(x, jnp.bfloat16, step)
        return [r.message for r in caplog.records if "Compiling" in r.message]

    assert len(programs(1)) < 8  # of which three are these, the others make the key
    assert not programs(2)
