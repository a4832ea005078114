"""Products of two dtypes are quantized from what JAX's lowering casts, through both doors."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import srjit

OPERANDS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int8", "bool")
RESULTS = (None, "float32", "bfloat16")


def array(number: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    x = 2 * jax.random.normal(jax.random.key(number), shape)
    return x > 0 if dtype == "bool" else x.astype(dtype)


def both(fun: Any, *args: Any, recipe: str = "int8") -> tuple[np.ndarray, np.ndarray]:
    """Results of both doors, whose reports are the same."""
    outs: list[np.ndarray] = []
    reports: list[str] = []
    for layer in ("jaxpr", "stablehlo"):
        f = srjit.srjit(fun, recipe=recipe, mode="inference", layer=layer)
        outs.append(np.asarray(f(*args), np.float32))
        reports.append(str(f.explain(*args)))
    assert reports[0] == reports[1]
    return outs[0], outs[1]


def test_both_doors_give_the_same_bits_of_a_dot():
    """Of all pairs of dtypes, and of what the result is asked to be, in one program."""
    xs = {d: array(0, (2, 4), d) for d in OPERANDS}
    ws = {d: array(1, (4, 2), d) for d in OPERANDS}

    cases = list(itertools.product(OPERANDS, OPERANDS, RESULTS))

    def fun(ws: Any, xs: Any) -> Any:
        outs = [lax.dot(xs[x], ws[w], preferred_element_type=out) for x, w, out in cases]
        return jnp.stack([out.astype(jnp.float32) for out in outs])

    pairs = zip(cases, *both(fun, ws, xs), strict=True)
    assert not [case for case, ours, theirs in pairs if ours.tobytes() != theirs.tobytes()]


@pytest.mark.parametrize("recipe", ["fp8", "nvfp4"])
def test_both_doors_give_the_same_bits_by_other_recipes(recipe: str):
    x, w = array(0, (4, 32), "bfloat16"), array(1, (32, 8), "float32")
    fun = lambda w, x: jnp.matmul(x, w, preferred_element_type=jnp.bfloat16)  # noqa: E731
    np.testing.assert_array_equal(*both(fun, w, x, recipe=recipe))


def test_both_doors_give_the_same_bits_of_a_ragged_product():
    x, w = array(0, (8, 16), "bfloat16"), array(1, (2, 16, 8), "float32")
    sizes = jnp.array([3, 5], jnp.int32)
    fun = lambda w, x: lax.ragged_dot(x, w, sizes, preferred_element_type=jnp.bfloat16)  # noqa: E731
    np.testing.assert_array_equal(*both(fun, w, x))


def test_both_doors_give_the_same_bits_of_a_product_in_a_loop_and_a_call():
    x, w = array(0, (4, 16), "bfloat16"), array(1, (16, 16), "float32")

    @jax.jit
    def layer(h: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.matmul(h, w, preferred_element_type=jnp.bfloat16)

    fun = lambda w, x: lax.scan(lambda h, _: (layer(h, w), None), x, length=3)[0]  # noqa: E731
    np.testing.assert_array_equal(*both(fun, w, x))


@pytest.mark.parametrize("algorithm", ["BF16_BF16_F32", "F32_F32_F32", "F16_F16_F16"])
def test_both_doors_give_the_same_bits_of_a_product_by_an_algorithm(algorithm: str):
    x, w = array(0, (4, 32), "float32"), array(1, (32, 8), "float32")
    preset = getattr(lax.DotAlgorithmPreset, algorithm)
    np.testing.assert_array_equal(*both(lambda w, x: lax.dot(x, w, precision=preset), w, x))


def test_what_is_quantized_is_what_the_program_multiplies():
    """A recipe without codes gives the program's own result; int8 quantizes the cast values."""
    x, w = array(0, (4, 32), "bfloat16"), array(1, (32, 8), "float32")
    mixed = lambda w, x: jnp.matmul(x, w, preferred_element_type=jnp.bfloat16)  # noqa: E731
    cast = lambda w, x: jnp.matmul(x, w.astype(jnp.bfloat16))  # noqa: E731
    quantized = [srjit.srjit(f, recipe="int8", mode="inference")(w, x) for f in (mixed, cast)]
    np.testing.assert_array_equal(*(np.asarray(q, np.float32) for q in quantized))
    kept = srjit.srjit(mixed, recipe="bf16-sr", mode="inference")(w, x)
    np.testing.assert_array_equal(np.asarray(kept, np.float32), np.asarray(mixed(w, x), np.float32))


def test_gradients_of_mixed_products_have_the_dtypes_of_their_operands():
    x, w = array(0, (4, 32), "bfloat16"), array(1, (32, 8), "float32")
    loss = srjit.srjit(
        lambda w, x: (
            jnp.matmul(x, w, preferred_element_type=jnp.bfloat16).astype(jnp.float32).sum()
        ),
        recipe="int8",
    )
    gradient = jax.grad(loss)(w, x, sr_key=0)
    assert gradient.dtype == jnp.float32
    # The cotangent, all ones, is exact; of x's four rows each is off by half a step at most, and
    # the sum is rounded to bfloat16.
    rows = np.asarray(x, np.float32)
    exact = np.broadcast_to(rows.sum(0)[:, None], gradient.shape)
    bound = 4 * np.abs(rows).max() / 254
    np.testing.assert_allclose(gradient, exact, rtol=2.0**-8, atol=bound * (1 + 2.0**-8))
