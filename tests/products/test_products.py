"""Each product is that of its dequantized operands, forward and backward, up to float32 summation.

The oracle multiplies in float64 what ``srjit.dequantize`` gives, so the only slack is the rounding
of a float32 sum of K products: K + 8 units of 2^-24 of the sum of their magnitudes.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fresh
import srjit
from small_programs import explain, normal


def nearest(recipe: str) -> srjit.Recipe:
    """A recipe without noise, so that its gradients have an exact oracle; attention included."""
    rules = tuple(r for r in srjit.recipes.get(recipe).rules if not r.keep)
    return srjit.Recipe(name=recipe, rules=rules).with_rounding(gradients="nearest")


def rounded(x: Any, spec: srjit.Quantization, axis: tuple[int, ...]) -> np.ndarray:
    """What the codes of x stand for, in float64."""
    is_oriented = spec.shared in ("channel", "block") or spec.hadamard
    spec = dataclasses.replace(spec, axis=axis if is_oriented else -1)
    return np.asarray(srjit.dequantize(srjit.quantize(x, spec)), np.float64)


def check(got: Any, fun: Callable[..., Any], a: np.ndarray, b: np.ndarray, terms: int) -> None:
    """``got`` is fun(a, b), a sum of that many products, up to float32 (and its own dtype)."""
    exact, size = fun(a, b), fun(abs(a), abs(b))
    unit = 2.0**-24 * (terms + 8) + (2.0**-8 if got.dtype == jnp.bfloat16 else 0)
    unit += 2.0**-11 if got.dtype == jnp.float16 else 0
    np.testing.assert_array_less(abs(np.asarray(got, np.float64) - exact), unit * size + 1e-30)


def with_gradients(dot: Callable[..., Any], x: Any, w: Any, ct: Any) -> tuple[Any, Any, Any]:
    """A quantized product and its gradients for a cotangent, as one compiled program."""

    def run(x: jax.Array, w: jax.Array, ct: jax.Array) -> tuple[Any, Any, Any]:
        value, pullback = jax.vjp(lambda x, w: dot(x, w, sr_key=0), x, w)
        return value, *pullback(ct)

    return jax.jit(run)(x, w, ct)


@st.composite
def products(draw: Any) -> tuple[str, dict[str, int]]:
    """An einsum of two operands of rank 1 to 4, and the size of each label."""
    counts = [draw(st.integers(0, 2), label=k) for k in ("batch", "contract", "lhs", "rhs")]
    hypothesis.assume(sum(counts[:3]) <= 4 and counts[0] + counts[1] + counts[3] <= 4)
    names = iter("abcdefgh")
    batch, contract, free_lhs, free_rhs = ([next(names) for _ in range(n)] for n in counts)
    lhs = draw(st.permutations(batch + contract + free_lhs))
    rhs = draw(st.permutations(batch + contract + free_rhs))
    hypothesis.assume(lhs and rhs)  # a multiple by one number is no product of matrices
    out = batch + [label for label in lhs if label in free_lhs] + [r for r in rhs if r in free_rhs]
    sizes = {label: draw(st.integers(1, 3), label=label) for label in sorted({*lhs, *rhs})}
    return f"{''.join(lhs)},{''.join(rhs)}->{''.join(out)}", sizes


def einsum(spec: str) -> Callable[..., Any]:
    """A plain dot_general, whose labels of the result are in its own order."""
    (lhs, rhs), out = spec.split("->")[0].split(","), spec.split("->")[1]
    batch = [label for label in lhs if label in rhs and label in out]
    batch.sort(key=out.index)
    contract = [label for label in lhs if label in rhs and label not in out]
    dims = [
        tuple(tuple(side.index(label) for label in group) for side in (lhs, rhs))
        for group in (contract, batch)
    ]
    return functools.partial(lax.dot_general, dimension_numbers=tuple(dims))


@hypothesis.settings(max_examples=8)
@hypothesis.given(products(), st.sampled_from(["int8", "int8-channel"]))
@hypothesis.example(("a,a->a", {"a": 2}), "int8")
@hypothesis.example(("ab,b->ba", {"a": 3, "b": 2}), "int8-channel")
@hypothesis.example(("ab,ab->a", {"a": 3, "b": 2}), "int8-channel")
@hypothesis.example(("ab,ab->a", {"a": 3, "b": 2}), "int8")
@hypothesis.example(("a,ab->b", {"a": 3, "b": 2}), "int8")
def test_any_dot_general_multiplies_what_its_codes_stand_for(product: Any, name: str):
    spec, sizes = product
    lhs, rhs = spec.split("->")[0].split(",")
    out = spec.split("->")[1]
    x, w = (normal(*(sizes[d] for d in side), seed=i) for i, side in enumerate((lhs, rhs)))
    ct = normal(*(sizes[d] for d in out), seed=2)
    recipe = nearest(name)
    dot = srjit.transform(einsum(spec), recipe=recipe, params_argnums=1)
    value, dx, dw = with_gradients(dot, x, w, ct)
    q = recipe.rules[0].fprop.weight
    is_kept = 1 in (len(lhs), len(rhs)) and len(out) == max(len(lhs), len(rhs))  # it is a multiple

    def operand(x: Any, labels: str, other: str, result: str) -> np.ndarray:
        summed = [d for d, label in enumerate(labels) if label in other and label not in result]
        return rounded(x, q, tuple(summed) or (len(labels) - 1,))

    for got, a, b, c, arrays in (
        (value, lhs, rhs, out, (x, w)),
        (dx, out, rhs, lhs, (ct, w)),
        (dw, lhs, out, rhs, (x, ct)),
    ):
        fun = functools.partial(np.einsum, f"{a},{b}->{c}")
        terms = int(np.prod([sizes[d] for d in {*a, *b} - {*c}]))
        operands = arrays
        if not is_kept:
            operands = operand(arrays[0], a, b, c), operand(arrays[1], b, a, c)
        assert got.shape == fun(*operands).shape and got.dtype == jnp.float32
        check(got, fun, *operands, terms)


@pytest.mark.parametrize("spec", [",a->a", "a,->a", "ab,->ab", "a,a->a", "a,ab->ab"])
def test_multiples_are_kept(spec: str):
    sides = spec.split("->")[0].split(",")
    x, w = (normal(*(3 for _ in side), seed=i) for i, side in enumerate(sides))
    report = srjit.srjit(einsum(spec), recipe="int8", params_argnums=1).explain(x, w)
    (site,) = report.sites
    assert site.status == "kept" and "no product of matrices" in site.reason and not site.asked


@pytest.mark.parametrize(("spec", "kept"), [("a,ab->ab", 3), ("ab,ab->a", 0)])
def test_gradients_of_multiples_are_kept_as_they_are(spec: str, kept: int):
    sides = spec.split("->")[0].split(",")
    x, w = (normal(*(3 for _ in side), seed=i) for i, side in enumerate(sides))

    def step(x: Any, w: Any) -> Any:
        y, pullback = jax.vjp(einsum(spec), x, w)
        return pullback(y)

    sites = srjit.srjit(step, recipe="int8", params_argnums=1).explain(x, w).sites
    assert sorted(site.role for site in sites) == ["dgrad", "fprop", "wgrad"]
    assert sum(site.status == "kept" for site in sites) == kept


# Results whose labels are not in the order of a dot_general, batch dimensions in odd places.
ORDERS = ("bi,oi->bo", "ib,oi->ob", "bti,oi->tob", "ihb,bhj->jbi")
AXES = {"b": 8, "i": 6, "o": 7, "t": 5, "h": 4, "j": 3}
RUNS: dict[str, Callable[..., Any]] = {
    "gradient of a quantized loss": lambda fun, recipe: jax.grad(srjit.srjit(fun, recipe=recipe)),
    "quantized step": lambda fun, recipe: srjit.srjit(jax.grad(fun), recipe=recipe),
    "under jit and vmap": lambda fun, recipe: jax.jit(
        lambda w, x, **key: jax.tree.map(
            lambda leaf: leaf[0],
            jax.vmap(jax.grad(functools.partial(srjit.transform(fun, recipe=recipe), **key)))(
                *jax.tree.map(lambda leaf: leaf[None], (w, x))
            ),
        )
    ),
}


# One of each kind of product; their kin are nightly.
_COMMON = ("int8", "int8-channel", "int8-qat", "fp8", "mxfp8", "nvfp4", "bf16-sr")


@pytest.mark.crossed(1, most=3)
@pytest.mark.parametrize(
    ("name", "run"),
    [
        pytest.param(
            *(name, "gradient of a quantized loss"),
            marks=[] if name in _COMMON else pytest.mark.nightly,
        )
        for name in srjit.recipes.names()
        if "delay" not in name and "static" not in name  # scales of these numbers
    ]
    + [(name, run) for name in ("int8", "nvfp4") for run in RUNS if run.split()[0] != "gradient"],
)
def test_results_may_have_their_dimensions_in_any_order(name: str, run: str):
    """XLA:CPU may not fold the transposition of a result into a dot that it then cannot run."""
    shapes = [[[AXES[d] for d in side] for side in o.split("->")[0].split(",")] for o in ORDERS]
    x = [normal(*a, seed=i) for i, (a, _) in enumerate(shapes)]
    w = [normal(*b, seed=i + 9) for i, (_, b) in enumerate(shapes)]

    def loss(w: Any, x: Any) -> jax.Array:
        return sum(jnp.sum(jnp.einsum(o, *xw) ** 2) for o, *xw in zip(ORDERS, x, w, strict=True))

    rules = tuple(r for r in srjit.recipes.get(name).rules if not r.keep)
    got = RUNS[run](loss, srjit.Recipe(name=name, rules=rules))(w, x, sr_key=0)
    for g, e in zip(jax.block_until_ready(got), jax.jit(jax.grad(loss))(w, x), strict=True):
        assert jnp.vdot(g, e) / (jnp.linalg.norm(g) * jnp.linalg.norm(e)) > 0.9


def test_long_contractions_may_have_their_result_in_any_order():
    x, w = normal(4, 3000), normal(5, 3000, seed=1)  # cut on CPUs, and the parts added
    f = srjit.srjit(lambda w, x: jnp.einsum("bi,oi->ob", x, w), recipe="int8")
    q = srjit.recipes.get("int8").rules[-1].fprop.weight
    check(f(w, x), lambda a, b: b @ a.T, rounded(x, q, ()), rounded(w, q, ()), 3000)


SHARDED = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
import srjit
jax.set_mesh(jax.make_mesh((2,), ("a",), axis_types=(AxisType.Explicit,)))
x, w = jax.device_put(jnp.ones((8, 16)), P("a", None)), jnp.ones((32, 16))
f = srjit.srjit(lambda w, x: jnp.einsum("bi,oi->bo", x, w), recipe="int8")
dw, dx = jax.grad(lambda w, x: jnp.sum(f(w, x, sr_key=0) ** 2), (0, 1))(w, x)
assert (jax.typeof(dw).sharding.spec, jax.typeof(dx).sharding.spec) == (P(None, None), P("a", None))
assert jnp.allclose(dw, 8 * 2 * 16) and jnp.allclose(dx, 32 * 2 * 16)
"""


def test_explicit_shardings_of_a_transposed_gradient_are_those_of_the_weight():
    fresh.python(SHARDED, XLA_FLAGS="--xla_force_host_platform_device_count=2")


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("name", ["fp8", "mxfp8", "nvfp4"])
def test_blocks_run_along_the_contraction_of_each_product(name: str):
    """Sizes no multiple of a block: padded, never refused."""
    recipe = nearest(name)
    x, w, ct = normal(7, 37, seed=1), normal(37, 21, seed=2) / 6, normal(7, 21, seed=3)
    dot = srjit.transform(jnp.matmul, recipe=recipe, params_argnums=1)
    value, dx, dw = with_gradients(dot, x, w, ct)
    rule = recipe.rules[0]
    square = rule.fprop.weight.shared == "square"
    q = lambda x, spec, axis: rounded(x, spec, axis)  # noqa: E731

    check(value, np.matmul, q(x, rule.fprop.activation, (1,)), _weight(w, rule.fprop.weight, 0), 37)
    check(
        dx,
        lambda a, b: a @ b.T,
        q(ct, rule.dgrad.gradient, (1,)),
        _weight(w, rule.dgrad.weight, 1),
        21,
    )
    if square:  # one quantization serves both orientations
        np.testing.assert_array_equal(
            _weight(w, rule.fprop.weight, 0), _weight(w, rule.dgrad.weight, 1)
        )
    if not rule.wgrad.activation.hadamard:
        check(
            dw,
            lambda a, b: a.T @ b,
            q(x, rule.wgrad.activation, (0,)),
            q(ct, rule.wgrad.gradient, (0,)),
            7,
        )


def _weight(w: Any, spec: srjit.Quantization, contracted: int) -> np.ndarray:
    axis = (0, 1) if spec.shared == "square" else (contracted,)
    if spec.shared in ("square", "block"):
        spec = dataclasses.replace(spec, axis=axis)
        return np.asarray(srjit.dequantize(srjit.quantize(w, spec)), np.float64)
    return rounded(w, spec, axis)


@pytest.mark.parametrize(
    ("dtypes", "preferred", "result"),
    [
        ((jnp.bfloat16, jnp.bfloat16), None, jnp.bfloat16),
        ((jnp.bfloat16, jnp.bfloat16), jnp.float32, jnp.float32),
        ((jnp.float16, jnp.float16), None, jnp.float16),
        ((jnp.bfloat16, jnp.float32), jnp.float32, jnp.float32),
        ((jnp.float32, jnp.float32), jnp.bfloat16, jnp.bfloat16),
    ],
    ids=str,
)
def test_element_types_and_precision_are_those_of_the_program(
    dtypes: Any, preferred: Any, result: Any
):
    def dot(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.dot(x, w, precision="highest", preferred_element_type=preferred)

    x, w = normal(4, 9, dtype=dtypes[0]), normal(9, 3, seed=1, dtype=dtypes[1])
    recipe = nearest("int8")
    quantized = srjit.transform(dot, recipe=recipe, params_argnums=1)
    value, dx, dw = with_gradients(quantized, x, w, jnp.ones((4, 3), result))
    assert value.dtype == jax.eval_shape(dot, x, w).dtype == result
    assert (dx.dtype, dw.dtype) == dtypes
    q = recipe.rules[0].fprop.weight
    a, b, ones = rounded(x, q, ()), rounded(w, q, ()), np.ones(value.shape)
    check(value, np.matmul, a, b, 9)
    check(dx, lambda a, b: a @ b.T, ones, b, 3)
    check(dw, lambda a, b: a.T @ b, a, ones, 4)


@pytest.mark.parametrize("precision", ["default", "high"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_backward_products_in_high_precision_are_as_precise_as_the_user_says(
    precision: str, dtype: Any
):
    def loss(fun: Callable[..., Any], **key: Any) -> Any:
        return jax.jit(jax.grad(lambda w, x: jnp.sum(fun(w, x, **key) ** 2), (0, 1)))

    def dot(w: jax.Array, x: jax.Array) -> jax.Array:
        return lax.dot(x, w, precision=precision, preferred_element_type=jnp.float32)

    def dots(step: Any) -> list[Any]:
        """Precision and element types of dgrad and wgrad, which come last."""
        lines = [d for d in step.lower(w, x).as_text().splitlines() if "dot_general" in d][-2:]
        return [
            (re.findall("DEFAULT|HIGH(?:EST)?", d), re.findall("x(b?f[0-9]+)>", d)) for d in lines
        ]

    x, w = normal(4, 9, dtype=dtype), normal(9, 3, seed=1, dtype=dtype)
    quantized = srjit.transform(dot, recipe="int8-qat")
    assert dots(loss(quantized, sr_key=0)) == dots(loss(dot))


CONVOLUTIONS = {
    "1-D": ((2, 3, 8), (4, 3, 3), {}),
    "2-D, strided": ((2, 3, 8, 7), (4, 3, 3, 2), {"window_strides": (2, 1)}),
    "dilated kernel": ((2, 3, 8), (4, 3, 3), {"rhs_dilation": (2,)}),
    "dilated input": ((2, 3, 6), (4, 3, 3), {"lhs_dilation": (2,), "padding": [(1, 2)]}),
    "feature groups": ((2, 4, 8), (6, 2, 3), {"feature_group_count": 2}),
    "depthwise": ((2, 4, 8), (4, 1, 3), {"feature_group_count": 4}),
    "batch groups": ((4, 3, 8), (6, 3, 3), {"batch_group_count": 2}),
    "channels last": (
        (2, 8, 7, 3),
        (3, 2, 3, 4),
        {"dimension_numbers": ("NHWC", "HWIO", "NHWC")},
    ),
}


def _conv(options: dict[str, Any], x: jax.Array, w: jax.Array) -> jax.Array:
    rank = x.ndim - 2
    given = {"window_strides": (1,) * rank, "padding": "SAME"} | options
    if "lhs_dilation" not in given:
        given["padding"] = "VALID"
    return lax.conv_general_dilated(x, w, precision="highest", **given)


@pytest.mark.crossed(1, most=4)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_multiply_what_their_codes_stand_for(name: str):
    lhs, rhs, options = CONVOLUTIONS[name]
    x, w = normal(*lhs), normal(*rhs, seed=1)
    plain = functools.partial(_conv, options)
    recipe = nearest("int8")
    conv = srjit.transform(plain, recipe=recipe, params_argnums=1)
    ct = normal(*jax.eval_shape(plain, x, w).shape, seed=2)
    q = recipe.rules[0].fprop.weight
    a, b, g = (jnp.asarray(rounded(v, q, ()), jnp.float32) for v in (x, w, ct))
    exact = jax.jit(lambda x, w, ct: (plain(x, w), *jax.vjp(plain, x, w)[1](ct)))
    cases = zip(
        with_gradients(conv, x, w, ct),
        exact(a, b, g),
        exact(abs(a), abs(b), abs(g)),
        strict=True,
    )
    for got, right, magnitude in cases:
        assert got.shape == right.shape
        bound = 2.0**-24 * 200 * np.asarray(magnitude, np.float64) + 1e-30  # fewer than 96 terms
        np.testing.assert_array_less(abs(np.asarray(got - right, np.float64)), bound)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("name", ["2-D, strided", "feature groups"])
@pytest.mark.parametrize("recipe", ["nvfp4", "int8-channel"])
def test_convolutions_take_every_recipe_and_derivatives_of_any_order(name: str, recipe: str):
    lhs, rhs, options = CONVOLUTIONS[name]
    x, w = normal(*lhs), normal(*rhs, seed=1)
    plain = functools.partial(_conv, options)
    conv = srjit.transform(plain, recipe=recipe, params_argnums=1)
    f = lambda fun: lambda w: jnp.sum(fun(x, w) ** 3)  # noqa: E731
    quantized, exact = f(lambda x, w: conv(x, w, sr_key=0)), f(plain)
    hvp = lambda fun: jax.grad(lambda u: jnp.vdot(jax.grad(fun)(u), w))(w)  # noqa: E731
    for derivative in (jax.grad, lambda fun: lambda _: hvp(fun)):
        a, b = (jax.jit(derivative(fun))(w) for fun in (quantized, exact))
        assert jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b)) > 0.9


# ---------------------------------------------------------------------------- odd operands


@pytest.mark.crossed(1)
@pytest.mark.parametrize(
    ("x", "w"), [((), ()), ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((1, 1), (1, 1))]
)
@pytest.mark.parametrize("recipe", ["int8-channel", "nvfp4"])
def test_small_operands_are_quantized_too(x: Any, w: Any, recipe: str):
    plain = lambda w, x: jnp.tensordot(x, w, axes=min(x.ndim, 1))  # noqa: E731
    dot = srjit.transform(plain, recipe=recipe)
    arrays = normal(*w, seed=1), normal(*x)
    run = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(dot(*a, sr_key=0)), (0, 1)))
    value, grads = run(*arrays)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert [g.shape for g in grads] == [w, x]


@pytest.mark.parametrize(
    ("x", "w", "reason"),
    [
        (jnp.ones((2, 3), jnp.int32), jnp.ones((3, 2), jnp.int32), "only float16, bfloat16"),
        (
            jnp.ones((2, 3), jnp.complex64),
            jnp.ones((3, 2), jnp.complex64),
            "only float16, bfloat16",
        ),
        (jnp.ones((2, 0)), jnp.ones((0, 2)), "zero-size"),
    ],
)
def test_what_cannot_be_quantized_is_left_alone_with_a_reason(x: Any, w: Any, reason: str):
    fun = lambda w, x: x @ w  # noqa: E731
    report = explain(fun, w, x)
    assert [s.status for s in report.sites] == ["kept"] and reason in report.sites[0].reason
    np.testing.assert_array_equal(srjit.transform(fun, recipe="int8")(w, x), x @ w)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible_forward_and_backward(bad: float):
    x, w = normal(4, 6).at[1, 2].set(bad), normal(6, 3, seed=1)
    f = srjit.transform(lambda w, x: x @ w, recipe="int8")
    value, dw, _ = with_gradients(f, w, x, jnp.ones((4, 3)))
    assert not np.isfinite(value[1]).any()
    assert not np.isfinite(dw[2]).any()


FLOAT64 = """
import jax; jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np, srjit
rng = np.random.default_rng(0)
x, w = (jnp.asarray(rng.standard_normal(s)) for s in ((4, 9), (9, 3)))
recipe = srjit.Recipe(name="r", rules=srjit.recipes.get("int8").rules[-1:])
recipe = recipe.with_rounding(gradients="nearest")
f = srjit.transform(jnp.matmul, recipe=recipe, params_argnums=1)
value, pullback = jax.vjp(lambda x, w: f(x, w, sr_key=0), x, w)
dx, dw = pullback(jnp.ones_like(value))
assert value.dtype == dx.dtype == dw.dtype == jnp.float64
q = recipe.rules[0].fprop.weight
a, b = (srjit.dequantize(srjit.quantize(v, q), jnp.float64) for v in (x, w))
ones = jnp.ones_like(value)
for got, exact in ((value, a @ b), (dx, ones @ b.T), (dw, a.T @ ones)):
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-13)
"""


def test_float64_programs_stay_float64():
    fresh.python(FLOAT64)
