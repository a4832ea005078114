"""Equations that srjit does not look into are reported, counted, warned of, errors if strict."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import hijax, pallas
from jax.experimental.custom_partitioning import custom_partitioning

import srjit
from srjit import recipes

W = jax.random.normal(jax.random.key(0), (16, 16)) / 4
X = jax.random.normal(jax.random.key(1), (8, 16))
ONE = 2 * 8 * 16 * 16  # FLOPs of X @ W
LAYERS = ("jaxpr", "stablehlo")


def kernel(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w``, two rows at a time."""

    def body(x: Any, w: Any, out: Any) -> None:
        out[...] = jnp.dot(x[...], w[...])

    rows = pallas.BlockSpec((2, 16), lambda i: (i, 0))
    whole = pallas.BlockSpec((16, 16), lambda i: (0, 0))
    shape = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    call = pallas.pallas_call(
        body, out_shape=shape, grid=(4,), in_specs=[rows, whole], out_specs=rows, interpret=True
    )
    return call(x, w)


@custom_partitioning
def partitioned(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


partitioned.def_partition(
    infer_sharding_from_operands=lambda *_: None,
    partition=lambda *_: None,
    sharding_rule="i j, j k -> i k",
)


# Its name until JAX 0.11, and since.
HiPrimitive: Any = getattr(hijax, "VJPHiPrimitive", None) or hijax.HiPrim


class HighLevel(HiPrimitive):
    """``x @ w`` as a primitive of a library: ``call_hi_primitive`` in a jaxpr."""

    def __init__(self, *given: jax.Array) -> None:
        self.in_avals = tuple(map(jax.typeof, given))
        self.out_aval = jax.typeof(given[0])
        self.params = {}
        super().__init__()

    def expand(self, x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w


def composite(w: jax.Array, x: jax.Array) -> jax.Array:
    return lax.composite(lambda x, w: x @ w, "mine.linear")(x, w) @ w


def solved(w: jax.Array, x: jax.Array) -> jax.Array:
    solution = lax.custom_linear_solve(lambda v: w @ v + 9 * v, X[0], lambda f, b: f(b))
    return (x + solution) @ w


def scaled(w: jax.Array, x: jax.Array) -> jax.Array:
    a, b = (v.astype(jnp.float8_e4m3fn)[None] for v in (x, w))
    ones = jnp.ones((1, 8, 1), jnp.float8_e8m0fnu), jnp.ones((1, 1, 16), jnp.float8_e8m0fnu)
    made = lax.scaled_dot(a, b, lhs_scale=ones[0], rhs_scale=ones[1])
    return made[0].astype(jnp.float32) @ w


def gram(w: jax.Array, x: jax.Array) -> jax.Array:
    return x @ jax.lax.linalg.symmetric_product(w, w, symmetrize_output=True)


def looped(w: jax.Array, x: jax.Array) -> jax.Array:
    return lax.scan(lambda h, _: (kernel(h, w) @ w, None), x, length=3)[0]


# The function, and of what is left alone its primitive, its FLOPs and the coverage.
CASES: dict[str, tuple[Any, str, int, float]] = {
    "kernel": (lambda w, x: kernel(x, w) @ w, "pallas_call", ONE, 1 / 2),
    "kernel that is computed again": (
        lambda w, x: jax.checkpoint(kernel)(x, w) @ w, "pallas_call", ONE, 1 / 2,
    ),
    "kernel in a loop": (looped, "pallas_call", ONE, 1 / 2),
    "composite": (composite, "composite", ONE, 1 / 2),
    "high-level": (
        lambda w, x: HighLevel(x, w)(x, w) @ w, "call_hi_primitive", ONE, 1 / 2,
    ),
    "linear solve": (solved, "custom_linear_solve", 2 * 2 * 16 * 16, 8 / 10),
    "partitioned by hand": (
        lambda w, x: partitioned(x, w) @ w, "custom_partitioning", ONE, 1 / 2,
    ),
    "scaled_dot": (scaled, "scaled_dot", ONE, 1 / 2),
    "symmetric_product": (gram, "symmetric_product", 2 * ONE, 1 / 3),
}  # fmt: skip


@pytest.mark.crossed(1, most=6)
@pytest.mark.parametrize("name", CASES)
def test_it_is_a_row_a_warning_and_an_error_under_strict_through_both_doors(name: str):
    fun, op, flops, coverage = CASES[name]
    reports: list[str] = []
    outs: list[Any] = []
    for layer in LAYERS:
        options: dict[str, Any] = {"recipe": "int8", "mode": "inference", "layer": layer}
        f = srjit.srjit(fun, **options)
        with pytest.warns(UserWarning, match=op):
            outs.append(np.asarray(f(W, X)))
        report = f.explain(W, X)
        alone = report.sites[-1]
        assert (alone.op, alone.role, alone.status, alone.flops) == (op, "unknown", "kept", flops)
        assert [s.status for s in report.sites[:-1]] == ["emulated"]
        assert report.coverage() == pytest.approx(coverage)
        with pytest.raises(srjit.UnsupportedSiteError, match=op):
            srjit.srjit(fun, strict=True, **options)(W, X)
        reports.append(str(report))
    assert reports[0] == reports[1]
    np.testing.assert_array_equal(*outs)


def test_the_product_of_scales_of_jax_nn_is_a_row():
    a, s = jnp.ones((1, 8, 32), jnp.float8_e4m3fn), jnp.ones((1, 8, 1), jnp.float8_e8m0fnu)

    def fun(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.nn.scaled_matmul(a, a, s, s)[0] @ x @ w

    reports = [
        srjit.srjit(fun, recipe="int8", target="b200", mode="inference", layer=layer).explain(W, X)
        for layer in LAYERS
    ]
    for report in reports:
        row = report.sites[-1]
        assert (row.op, row.flops, row.asked) == ("scaled_matmul_wrapper", 2 * 8 * 8 * 32, True)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "fun",
    [
        lambda w, x: _kept(x, w) + x @ w,  # by its scope
        lambda w, x: jnp.linalg.qr(x @ w)[0],  # a library's, but no product
        lambda w, x: _doubled(x) @ w,  # a kernel that multiplies nothing
    ],
)
def test_what_nobody_asks_for_is_no_error(fun: Any, layer: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        srjit.srjit(fun, recipe="int8", mode="inference", layer=layer, strict=True)(W, X)


def _kept(x: jax.Array, w: jax.Array) -> jax.Array:
    with srjit.keep_high_precision():
        return kernel(x, w)


def _doubled(x: jax.Array) -> jax.Array:
    def body(x: Any, out: Any) -> None:
        out[...] = 2 * x[...]

    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pallas.pallas_call(body, out_shape=shape, interpret=True)(x)


def test_a_rule_of_the_recipe_can_keep_it():
    keep = recipes.Rule(op="pallas_call", keep="our own kernel")
    recipe = recipes.Recipe(name="mine", rules=(keep, *recipes.get("int8").rules))
    report = srjit.srjit(CASES["kernel"][0], recipe=recipe, mode="inference").explain(W, X)
    assert (report.sites[-1].reason, report.sites[-1].asked) == ("our own kernel", False)


def test_numbers_of_sites_do_not_depend_on_what_is_left_alone():
    report = srjit.srjit(lambda w, x: kernel(x @ w, w) @ w, recipe="int8").explain(W, X)
    assert [(s.number, s.op) for s in report.sites] == [
        (0, "dot_general"), (1, "dot_general"), (2, "pallas_call"),
    ]  # fmt: skip
