"""Kernels for GPUs give the emulation's codes and scales bit for bit, wherever shards are."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from srjit import srjit, targets
from srjit.numerics import random_bits
from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.numerics.scale_layouts import Request, on_grid
from srjit.targets.gpu import kernels as gpu_kernels
from srjit.targets.gpu import matrices as gpu_quantize
from srjit.targets.gpu import ptx
from srjit.targets.gpu import quantize as gpu
from srjit.targets.gpu.chips import GPUS
from srjit.targets.gpu.noise import Places
from srjit.targets.gpu.task import Task
from srjit.targets.target import Demand
from targets import instructions

B200, H200 = GPUS["b200"], GPUS["h200"]
KEY = (jnp.uint32(0xDEADBEEF), jnp.uint32(12345))
FORMATS = ["nvfp4", "mxfp8", "mxfp4", "fp8_e4m3", "fp8_e5m2"]
BLOCKED = FORMATS[:3]
# What runs a kernel here is no code of a GPU's, and compiles thrice as fast without LLVM's passes.
QUICKLY = {"xla_backend_optimization_level": 0}


def wanted(spec, turned=False, by_instruction=False):
    want = gpu.want_of(B200, spec, turned)
    return dataclasses.replace(want, by_instruction=by_instruction)


def tensor(shape, dtype="float32", seed=0):
    x = jax.random.normal(jax.random.key(seed), shape) * jnp.linspace(0.01, 9, shape[-1])
    return (x * (1 + jnp.arange(math.prod(shape)).reshape(shape) % 3)).astype(dtype)


@instructions.interpreted()
def by_kernels(wants, x, keys):
    words = [word for key in keys for word in key or ()]
    run = functools.partial(gpu_quantize.quantize_by_kernels, tuple(wants))
    return jax.jit(run, compiler_options=QUICKLY)(x, *words)


def plainly(want, x, key):
    return jax.jit(functools.partial(gpu._quantize_plainly, want, "hash"))(x, *(key or ()))


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = (np.asarray(v).view(np.uint8 if v.dtype.itemsize == 1 else "u4") for v in (a, b))
        np.testing.assert_array_equal(a, b)


def check(spec, x, turned=False):
    key = KEY if spec.rounding == "stochastic" else None
    want = wanted(spec, turned)
    assert gpu_quantize.fits(x, want)
    (got,) = by_kernels([want], x, [key])
    assert_same(got, plainly(want, x, key))


# Compiling kernels that are interpreted takes ten seconds and more.
nightly = pytest.mark.nightly


def _tensors():
    """Every format always; of other axes and ranks, one format of each layout of scales."""
    for format in FORMATS:
        kin = [nightly] * (format in ("mxfp4", "fp8_e4m3"))
        for rounding, shape, axis, marks in (
            ("stochastic", (37, 53), 1, []),
            ("stochastic", (37, 53), 0, kin),
            ("nearest", (37, 53), 1, [nightly]),
            ("nearest", (64, 96), 0, [nightly]),
            ("stochastic", (3, 64, 40), 1, [pytest.mark.slow, *kin]),
            ("stochastic", (70,), 0, [nightly]),
        ):
            yield pytest.param(rounding, shape, axis, format, marks=marks)


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize(("rounding", "shape", "axis", "format"), [*_tensors()])
def test_codes_and_scales_are_the_emulations(rounding, shape, axis, format):
    check(Quantization(format=format, rounding=rounding, axis=axis), tensor(shape))


@nightly
@pytest.mark.parametrize("axis", [(0, 1), (1,), (1, 2), (2,), (0, 2)])
@pytest.mark.parametrize("hadamard", [False, True])
def test_any_dimensions_may_be_contracted(axis, hadamard):
    spec = Quantization(format="nvfp4", rounding="stochastic", axis=axis, hadamard=hadamard)
    check(spec, tensor((3, 32, 48), "bfloat16"))


@nightly
@pytest.mark.parametrize(
    ("format", "shape"), [("nvfp4", (64, 96)), ("nvfp4", (40, 21)), ("mxfp4", (64, 96))]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_transforms_are_the_emulations(format, shape, axis):
    spec = Quantization(format=format, rounding="stochastic", axis=axis, hadamard=True)
    check(spec, tensor(shape))


@nightly
@pytest.mark.parametrize("format", BLOCKED)
@pytest.mark.parametrize(("turned", "shape"), [(True, (37, 53)), (False, (64, 96))])
def test_squares_come_in_both_orientations(format, turned, shape):
    spec = Quantization(format=format, granularity="square", axis=(0, 1))
    check(spec, tensor(shape), turned)


@nightly
@pytest.mark.parametrize("format", BLOCKED)
def test_scales_may_be_rounded_up(format):
    check(Quantization(format=format, axis=0, scale_rounding="up"), tensor((64, 64)))


@nightly
@pytest.mark.parametrize("format", ["nvfp4", "fp8_e4m3"])
@pytest.mark.parametrize("size", [0.0, 2.0**-90, 2.0**90])
def test_tensors_of_all_sizes_are_the_emulations(format, size):
    check(Quantization(format=format), tensor((32, 64)) * jnp.float32(size))


@pytest.mark.crossed(1, most=3)
@pytest.mark.parametrize("format", FORMATS)
@instructions.interpreted()
def test_what_is_not_finite_stays_visible(format):
    wants = (wanted(Quantization(format=format)),)
    run = functools.partial(gpu_quantize.quantize_by_kernels, wants)
    compiled = jax.jit(run, compiler_options=QUICKLY)
    for bad in (np.nan, np.inf):
        (got,) = compiled(np.asarray(tensor((32, 64)).at[3, 5].set(bad)))
        scale = np.asarray(got.blocks, np.float32)[3, 0] if got.blocks is not None else 1.0
        factor = scale * (1.0 if got.scale is None else np.float32(got.scale))
        assert not np.isfinite(np.float32(got.values[3, 5]) * factor)


@nightly
@pytest.mark.parametrize("tile", [(32, 32), (64, 128)])
@pytest.mark.parametrize(("down", "by_instruction"), [(False, True), (True, False), (True, True)])
def test_every_tiling_draws_the_same_noise(tile, down, by_instruction):
    x = tensor((96, 160))
    spec = Quantization(format="nvfp4", rounding="stochastic", hadamard=True)
    task = Task(spec=spec, carrier="float4_e2m1fn", down=down, by_instruction=by_instruction)
    places = Places.of(x.shape, x.shape, 1)

    @instructions.interpreted()
    def run(tile):
        (amax,) = gpu_kernels.amax_matrix(x, ["columns" if down else "rows"], tile=tile)
        return gpu_kernels.quantize_matrix(x, [task], [places], [amax], [KEY], tile=tile)

    for got, expected in zip(
        jax.tree.leaves(run(tile)), jax.tree.leaves(run((16, 16))), strict=True
    ):
        np.testing.assert_array_equal(
            np.asarray(got).view(np.uint8), np.asarray(expected).view(np.uint8)
        )


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize(
    ("format", "axis"),
    [
        *((f, 1) for f in FORMATS),
        *(("nvfp4", 0), ("mxfp8", 0)),
        pytest.param("mxfp4", 0, marks=nightly),  # nvfp4's words
    ],
)
def test_an_instruction_takes_a_word_of_four_values(format, axis):
    """By the definition: the hash at the index of the first of the four, and 16 bits for each."""
    x = tensor((32, 64))
    spec = Quantization(format=format, rounding="stochastic", axis=axis)
    want = wanted(spec, by_instruction=True)
    (got,) = by_kernels([want], x, [KEY])
    exact = plainly(wanted(dataclasses.replace(spec, rounding="nearest")), x, None)
    assert_same((got.blocks, got.scale), (exact.blocks, exact.scale))
    # Where elements stand on the grid, as the emulation has it.
    y = jax.jit(functools.partial(scaled, spec=spec))(x)
    index = np.arange(32, dtype=np.uint32)[:, None] * np.uint32(65) + np.arange(64, dtype=np.uint32)
    step = 65 if axis == 0 else 1
    at = np.indices((32, 64))[axis] % 4
    first = index - (at * step).astype(np.uint32)
    words = np.asarray(random_bits.whole(random_bits.hash_bits(KEY, jnp.asarray(first))))
    element = get_format(format).element
    fields = np.stack(instructions.noise_fields(jnp.asarray(words.view(np.int32)), element))
    field = np.take_along_axis(fields, at[None], 0)[0]
    code = ptx.signed(y, instructions.carried_code(y, jnp.asarray(field), element), element)
    number = np.asarray(code).astype(np.uint8).view(jnp.dtype(element.name))
    np.testing.assert_array_equal(np.float32(got.values), np.float32(number))


def scaled(x, spec):
    view, fmt = spec.view(x.shape), get_format(spec.format)
    blocks = view.split(x)
    how = Request(view, fmt.element, spec.scale_rounding, None, False, lambda like: None, False)
    scales = fmt.scales.scales(blocks, how)
    return view.merge(on_grid(blocks, view, scales))


# ------------------------------------------------------------------------------- several at once

RECIPE = (
    Quantization(format="nvfp4", rounding="stochastic", axis=1),
    Quantization(format="nvfp4", rounding="stochastic", axis=0, hadamard=True),
    Quantization(format="mxfp8", axis=0),
)
DEMANDS = [Demand(spec) for spec in RECIPE]


def test_several_quantizations_are_what_each_is_alone():
    x = tensor((64, 96), "bfloat16")
    wants = [wanted(spec) for spec in RECIPE]
    keys = [KEY, random_bits.mix(KEY, 1), None]
    got = by_kernels(wants, x, keys)
    for one, want, key in zip(got, wants, keys, strict=True):
        assert_same(one, plainly(want, x, key))
    together = gpu.quantize_together(B200, x, DEMANDS, keys)  # on a CPU
    assert together is not None
    assert_same(together[1], got[1])


def test_what_no_kernel_makes_is_not_made_together():
    x = tensor((32, 32))
    assert gpu.quantize_together(H200, x, DEMANDS[:1], [KEY]) is None
    assert gpu.quantize_together(B200, x, [Demand(RECIPE[0], "threefry")], [KEY]) is None


@pytest.mark.parametrize("grad_of", [True, False], ids=["gradients of it", "it of gradients"])
def test_a_program_has_the_same_codes_together_and_one_by_one(grad_of):
    apart = dataclasses.replace(targets.get("b200"), quantize_together=None)

    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    def gradients(target):
        wrap = functools.partial(srjit, recipe="nvfp4", target=target)
        if grad_of:
            quantized = wrap(loss)
            return jax.grad(lambda w, x: quantized(w, x, sr_key=1), (0, 1))
        quantized = wrap(jax.grad(loss, (0, 1)))
        return lambda w, x: quantized(w, x, sr_key=1)

    args = tensor((32, 48)), tensor((64, 32))
    programs = [str(jax.make_jaxpr(gradients(target))(*args)) for target in ("b200", apart)]
    assert ["quantize_nvfp4_together" in text for text in programs] == [True, False]
    assert_same(*(jax.jit(gradients(target))(*args) for target in ("b200", apart)))


MESH = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)


@pytest.mark.parametrize(
    ("shape", "spec", "by_instruction"),
    [
        ((128, 256), P("model", "data"), True),
        pytest.param((128, 256), P(None, ("data", "model")), False, marks=nightly),
        pytest.param((3, 128, 128), P("data"), False, marks=nightly),
        pytest.param((3, 128, 128), P(None, ("data", "model")), True, marks=nightly),
        pytest.param((3, 128, 128), P(None, "model"), False, marks=nightly),
        pytest.param((72, 80), P("data"), False, marks=nightly),
        pytest.param((72, 80), P(None, "model"), True, marks=nightly),
    ],
    ids=str,
)
def test_shards_draw_the_noise_of_their_places(spec, shape, by_instruction):
    x = tensor(shape, "bfloat16")
    axes = (len(shape) - 1, len(shape) - 2)
    specs = [dataclasses.replace(q, axis=a) for q, a in zip(RECIPE[:2], axes, strict=True)]
    wants = [wanted(q, by_instruction=by_instruction) for q in specs]
    keys = [KEY, random_bits.mix(KEY, 1)]
    expected = by_kernels(wants, x, keys)
    place = P(*(None,) * (len(shape) - 2), *spec)
    run = functools.partial(gpu_quantize.quantize_by_kernels, tuple(wants))
    words = [word for key in keys for word in key]
    x = jax.device_put(x, NamedSharding(MESH, place))
    with instructions.interpreted():
        compiled = jax.jit(run).lower(x, *words).compile()
    assert_same(compiled(x, *words), expected)
    if shape != (72, 80):  # no shard cuts a block
        text = compiled.as_text()
        assert "all-gather" not in text and "all-to-all" not in text and "all-reduce" in text


def test_codes_without_the_chips_own_cast_are_the_same():
    x = tensor((4, 32)).at[0, :2].set(jnp.array([0.0, -0.0]))
    with_it, without = (
        wanted(Quantization(format="nvfp4"), by_instruction=b) for b in (True, False)
    )
    assert_same(plainly(without, x, None), plainly(with_it, x, None))
