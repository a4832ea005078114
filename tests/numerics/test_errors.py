"""What is asked for and cannot be had is an error that says what to do."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srjit.numerics.elements import ELEMENTS
from srjit.numerics.encode import quantize, stochastic_round
from srjit.numerics.formats import FORMATS, get_format, get_storage
from srjit.numerics.quantization import Quantization

X = jnp.ones((4, 32))
NEAREST = Quantization(format="int8")
STOCHASTIC = Quantization(format="int8", rounding="stochastic")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("nvfp", "nvfp4"),
        ("fp4", "mxfp4"),
        ("mx8", "mxfp8"),
        ("INT8", "int8"),
        ("float8_e4m3", "fp8_e4m3"),
        ("bfloat16", "bf16"),
    ],
)
def test_an_unknown_format_lists_the_nearest(name: str, nearest: str):
    for make in (get_format, lambda name: Quantization(format=name)):
        with pytest.raises(ValueError, match=f"unknown format '{name}'.*{nearest}") as error:
            make(name)
        assert all(known in str(error.value) for known in FORMATS)


@pytest.mark.parametrize(
    ("dtype", "nearest"),
    [
        ("float8_e4m3", "float8_e4m3fn"),
        ("int16", "int8"),
        (jnp.int32, "int8"),
        ("float4", "float4_e2m1fn"),
        ("nvfp", "nvfp4"),
        (np.float32, "float16"),
        (jnp.uint8, "int8"),
    ],
)
def test_an_unknown_dtype_lists_the_nearest(dtype: object, nearest: str):
    with pytest.raises(ValueError, match=f"unknown dtype .*{nearest}"):
        stochastic_round(X, dtype, 0)


@pytest.mark.parametrize("name", [*ELEMENTS, *FORMATS])
def test_known_names_and_dtypes_are_found(name: str):
    storage = get_storage(name)
    if storage.element.name in ELEMENTS:  # the dtype has its numbers, and no others
        assert get_storage(storage.dtype) is storage


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64, jnp.uint8])
def test_arrays_that_are_not_floating_point_are_refused(dtype: object):
    x = jnp.ones((2, 3), dtype)
    name = jnp.dtype(dtype).name
    for call in (lambda: quantize(x, NEAREST), lambda: stochastic_round(x, "int8", 0)):
        with pytest.raises(TypeError, match=rf"floating-point array; got {name}\[2, 3\]"):
            call()


def test_stochastic_rounding_needs_a_key():
    with pytest.raises(TypeError, match="needs key="):
        quantize(X, STOCHASTIC)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (jax.random.PRNGKey(0), r"raw uint32\[2\] array: .*jax.random.key\(seed\).*wrap_key_data"),
        (np.zeros(2, np.uint32), r"raw uint32\[2\] array: .*jax.random.key"),
        (np.arange(3), r"raw int64\[3\] array"),
        (jax.random.split(jax.random.key(0), 3), r"one PRNG key, got an array of keys .*\(3,\)"),
        (1.5, "got 1.5"),
        (True, "got True"),
        (np.bool_(True), "typed PRNG key"),
        ("seed", "got 'seed'"),
        (None, "got None"),
        (jnp.float32(1), "typed PRNG key"),
    ],
    ids=str,
)
def test_what_is_no_key_is_refused(key: object, message: str):
    with pytest.raises(TypeError, match=message):
        stochastic_round(X, "int8", key)
    if key is not None:
        with pytest.raises(TypeError, match=message):
            quantize(X, STOCHASTIC, key)


def test_an_unknown_generator_is_refused():
    with pytest.raises(ValueError, match=r"unknown rng 'three'.*threefry"):
        stochastic_round(X, "int8", 0, rng="three")


@pytest.mark.parametrize(
    ("field", "value", "known"),
    [
        ("rounding", "stochastik", "stochastic"),
        ("granularity", "chanel", "channel"),
        ("scaling", "dynamik", "dynamic"),
        ("scale_rounding", "down", "up"),
    ],
)
def test_an_unknown_choice_lists_what_there_is(field: str, value: str, known: str):
    with pytest.raises(ValueError, match=f"unknown {field} '{value}'.*{known}"):
        Quantization(**{"format": "int8", field: value})


@pytest.mark.parametrize("axis", [2, -3, (0, 2)])
def test_an_axis_that_is_not_there_is_refused(axis: object):
    with pytest.raises(ValueError, match=rf"axis {re.escape(str(axis))} is out of range for 2"):
        quantize(X, Quantization(format="mxfp8", axis=axis))


@pytest.mark.parametrize(
    "spec", [{"format": "nvfp4"}, {"format": "int8", "hadamard": True}], ids=str
)
def test_blocks_need_a_dimension_to_run_along(spec: dict[str, object]):
    with pytest.raises(ValueError, match=r"axis=\(\) names no dimension"):
        quantize(X, Quantization(**spec, axis=()))
    if "hadamard" in spec:
        with pytest.raises(ValueError, match="got a scalar"):
            quantize(jnp.float32(1), Quantization(**spec))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"format": "nvfp4", "granularity": "tensor"}, "use 'block' or 'square'"),
        ({"format": "nvfp4", "granularity": "channel"}, "does not fit format 'nvfp4'"),
        ({"format": "mxfp4", "granularity": "tensor"}, "power-of-two scales per block"),
        ({"format": "mxfp8", "granularity": "channel"}, "use 'block' or 'square'"),
        ({"format": "bf16", "granularity": "block"}, "has no scales; use 'tensor'"),
        ({"format": "int8", "block": 16}, "block=16 does not fit granularity 'tensor'"),
        ({"format": "int8", "granularity": "channel", "block": 16}, "block=16 does not fit"),
        ({"format": "int4", "block": 0}, "positive number"),
        ({"format": "int4", "block": -32}, "positive number"),
        ({"format": "int4", "block": 16.5}, "positive number"),
        ({"format": "int8", "scaling": "static"}, "takes amax"),
        ({"format": "int8", "amax": 1.0}, "takes amax"),
        ({"format": "int8", "scaling": "static", "amax": 0.0}, "positive and finite"),
        ({"format": "int8", "scaling": "static", "amax": -1.0}, "positive and finite"),
        ({"format": "int8", "scaling": "static", "amax": float("nan")}, "positive and finite"),
        ({"format": "int8", "scaling": "static", "amax": float("inf")}, "positive and finite"),
        ({"format": "nvfp4", "scaling": "delayed"}, "one float32 scale per tensor"),
        ({"format": "int8", "granularity": "channel", "scaling": "delayed"}, "one float32 scale"),
        ({"format": "mxfp8", "scaling": "static", "amax": 1.0}, "one float32 scale per tensor"),
    ],
    ids=str,
)
def test_combinations_that_make_no_sense_are_refused(spec: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Quantization(**spec)


def test_delayed_scales_need_state():
    with pytest.raises(ValueError, match="init_state"):
        quantize(X, Quantization(format="int8", scaling="delayed"))


def test_the_derivative_of_a_rounding_says_what_to_write():
    roundings = (
        lambda x: stochastic_round(x, jnp.bfloat16, 0).astype(x.dtype),
        lambda x: quantize(x, STOCHASTIC, 0).dequantize(),
    )
    for rounded in roundings:
        with pytest.raises(NotImplementedError, match=r"y = jax.lax.stop_gradient\(x\)"):
            jax.grad(lambda x, rounded=rounded: rounded(x).sum())(X)

        def straight(x: jax.Array, rounded: Any = rounded) -> jax.Array:
            y = jax.lax.stop_gradient(x)
            return (x + (rounded(y) - y)).sum()

        assert (jax.grad(straight)(X) == 1).all()
