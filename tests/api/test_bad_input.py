"""Bad input gets an error that says what to do, or the right result and a line in the report."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srjit as package
from srjit import Quantization, Recipe, Rule, SrjitFunction, srjit, transform
from steps import KEY, W, X, loss, same, step

MAKERS: list[Callable[..., Any]] = [srjit, transform]
quantized = srjit(step, recipe="int8")

# --------------------------------------------------------------------------- at decoration


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "nvpf4"}, r"unknown recipe 'nvpf4': did you mean 'nvfp4'.*known: auto, "),
        ({"recipe": "fp8-delaid"}, r"did you mean 'fp8-delayed'"),
        ({"recipe": 8}, r"a \.toml file or a Recipe, got 8"),
        ({"recipe": None}, r"a \.toml file or a Recipe, got None"),
        ({"target": "b2000"}, r"unknown target 'b2000': did you mean 'b200'"),
        ({"target": "V5E"}, r"unknown target 'V5E'.*v5e"),
        ({"mode": "training"}, r"unknown mode 'training': did you mean 'train'"),
        ({"rng": "treefry"}, r"unknown rng 'treefry': did you mean 'threefry'"),
        ({"params_argnums": 2}, r"params_argnums=2 is out of range: step takes 2 positional"),
        ({"params_argnums": -3}, r"params_argnums=-3 is out of range"),
        ({"params_argnums": (0, 5)}, r"params_argnums=5 is out of range"),
        ({"params_argnums": "w"}, r"params_argnums is 'auto', a position"),
        ({"params_argnums": 1.0}, r"params_argnums is 'auto', a position"),
        ({"params_argnums": True}, r"params_argnums is 'auto', a position"),
    ],
)
def test_a_bad_option_is_an_error_when_the_function_is_decorated(
    make: Any, options: dict[str, Any], message: str
):
    with pytest.raises((ValueError, TypeError), match=message):
        make(step, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "jaxprs"}, r"unknown layer 'jaxprs': did you mean 'jaxpr'"),
        ({"recip": "int8"}, r"unknown option 'recip': did you mean 'recipe'"),
        ({"donate_argnum": 0}, r"did you mean 'donate_argnums'"),
        ({"key": jax.random.PRNGKey(0)}, r"raw uint32\[2\] array.*wrap_key_data"),
        ({"key": jax.random.split(KEY)}, r"an array of keys of shape \(2,\)"),
        ({"key": "0"}, r"typed PRNG key"),
        ({"key": KEY, "mode": "inference"}, r"takes no key"),
    ],
)
def test_a_bad_option_of_the_jit_is_an_error_when_the_function_is_decorated(
    options: dict[str, Any], message: str
):
    with pytest.raises((ValueError, TypeError), match=message):
        srjit(step, **options)
    with pytest.raises((ValueError, TypeError), match=message):
        srjit(**options)(step)


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_decorated_has_to_be_a_function_without_sr_key(make: Any):
    def own(w: jax.Array, sr_key: Any) -> jax.Array:
        return w

    def keyword(w: jax.Array, *, sr_key: Any = None) -> jax.Array:
        return w

    for fun in (own, keyword):
        with pytest.raises(ValueError, match=f"{fun.__name__} has a parameter called sr_key"):
            make(fun)
    with pytest.raises(ValueError, match="srjit one already"):
        make(quantized)
    with pytest.raises(TypeError, match=r"got 'int8'; options go by name"):
        make("int8")


def test_a_role_has_to_go_with_its_gradient():
    for bad in (("wgrad", None), ("fprop", 0), ("dgrad", 2)):
        with pytest.raises(ValueError, match="gradient"):
            package.role(*bad)
    with pytest.raises(ValueError, match="unknown role 'wgard': did you mean 'wgrad'"):
        package.role("wgard")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ keys

BAD_KEYS = {
    "raw key": (
        lambda: jax.random.PRNGKey(0),
        r"raw uint32\[2\] array: make it with jax.random.key",
    ),
    "raw NumPy key": (lambda: np.zeros(2, np.uint32), r"raw uint32\[2\] array"),
    "batch of keys": (lambda: jax.random.split(KEY, 3), r"one PRNG key, .* of shape \(3,\)"),
    "float": (lambda: 1.5, r"integer step, got 1.5"),
    "NumPy float": (lambda: np.float32(1), r"integer step, got np.float32"),
    "float array": (lambda: jnp.float32(1), r"integer step, got"),
    "bool": (lambda: True, r"integer step, got True"),
    "NumPy bool": (lambda: np.True_, r"integer step, got np.True_"),
    "bool array": (lambda: jnp.array(True), r"integer step, got"),
    "string": (lambda: "7", r"integer step, got '7'"),
    "pair": (lambda: (1, 2), r"integer step, got \(1, 2\)"),
    "list": (lambda: [1], r"integer step, got \[1\]"),
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_what_is_not_a_key_is_an_error_wherever_it_is_given(name: str):
    make_key, message = BAD_KEYS[name]
    key = make_key()
    forward = srjit(loss, recipe="int8")  # which does not need one
    calls = [
        lambda: quantized(W, X, sr_key=key),
        lambda: forward(W, X, sr_key=key),
        lambda: transform(step, recipe="int8")(W, X, sr_key=key),
        lambda: quantized.lower(W, X, sr_key=key),
        lambda: jax.jit(lambda w: quantized(w, X, sr_key=key))(W),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call()


WITHOUT_KEY = {
    "top level": lambda f: f(W, X),
    "jit": lambda f: jax.jit(f)(W, X),
    "grad": lambda f: jax.grad(lambda w: jnp.sum(f(w, X)))(W),
    "linearize": lambda f: jax.linearize(lambda w: f(w, X), W),
    "vmap": lambda f: jax.vmap(f, in_axes=(None, 0))(W, X[None]),
    "scan": lambda f: jax.lax.scan(lambda w, _: (f(w, X), None), W, length=2),
    "while": lambda f: jax.lax.fori_loop(0, 2, lambda _, w: f(w, X), W),
    "checkpoint": lambda f: jax.checkpoint(f)(W, X),
    "eval_shape": lambda f: jax.eval_shape(f, W, X),
    "captured": lambda f: jax.grad(lambda w: jnp.sum(srjit(lambda x: x @ w, recipe="int8")(X)))(W),
}


@pytest.mark.parametrize("place", WITHOUT_KEY)
def test_a_missing_key_is_an_error_that_says_what_to_do(place: str):
    counted = srjit(step, recipe="int8", key=KEY)
    made = [quantized, transform(step, recipe="int8"), *[counted] * (place != "top level")]
    for fun in made:
        with pytest.raises(TypeError, match=r"sr_key=.*fold_in.*mode='inference'") as error:
            WITHOUT_KEY[place](fun)
        assert "step" in str(error.value) or "<lambda>" in str(error.value)
    assert counted.calls == 0


@pytest.mark.parametrize("key", [KEY, 3], ids=["typed", "integer"])
def test_inference_takes_no_key(key: Any):
    inference = {"recipe": "int8", "mode": "inference"}
    for fun in (srjit(loss, **inference), transform(loss, **inference)):
        with pytest.raises(TypeError, match="takes no sr_key"):
            fun(W, X, sr_key=key)


# ------------------------------------------------------------------------------- parameters


def kinds(fun: SrjitFunction, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
    sites = fun.explain(*args, **kwargs).sites
    return [(s.lhs_kind, s.rhs_kind) for s in sites if s.role == "fprop"]


def test_parameters_are_found_by_position_from_either_end_and_by_name():
    def apply(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    weight = [("activation", "weight")]
    for number in (1, -1, (1,), [-1]):
        made = srjit(apply, recipe="int8", params_argnums=number)
        assert kinds(made, X, W) == weight
        assert kinds(made, X, w=W) == weight
        assert kinds(made, w=W, x=X) == weight
    assert kinds(srjit(apply, recipe="int8", params_argnums=0), X, W) == [("weight", "activation")]


def test_positions_among_any_number_of_arguments_are_checked_at_the_call():
    def apply(*args: jax.Array) -> jax.Array:
        return args[0] @ args[1]

    last = srjit(apply, recipe="int8", params_argnums=-1)
    assert kinds(last, X, W) == [("activation", "weight")]
    third = srjit(apply, recipe="int8", params_argnums=3)
    with pytest.raises(
        ValueError, match="params_argnums=3 is out of range: apply was called with 2"
    ):
        third(X, W)


@pytest.mark.parametrize("tree", [{"n": 3}, None, {}, {"ids": np.arange(3)}], ids=repr)
def test_a_tree_without_floats_is_no_parameter(tree: Any):
    apply = lambda params, x: x @ x.T  # noqa: E731
    decorated = srjit(apply, recipe="int8")
    notes = decorated.explain(tree, X).notes
    assert any("parameters: x: the first argument with floats" in note for note in notes)
    assert decorated(tree, X).shape == (4, 4)
    named = srjit(apply, recipe="int8", params_argnums=0)
    if tree:
        with pytest.raises(
            ValueError, match=r"params_argnums=.0,.: params has no arrays of floats"
        ):
            named(tree, X)
    else:
        assert any("no arguments are parameters" in note for note in named.explain(tree, X).notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params_argnames": "param"}, "unknown params_argnames 'param': did you mean 'params'"),
        ({"params_argnames": ("params", "y")}, "unknown params_argnames 'y'"),
        ({"params_argnames": 3}, "params_argnames is a name"),
        ({"params_argnames": (0,)}, "params_argnames is a name"),
        ({"params_argnames": "key"}, "key has no arrays of floats"),
        ({"params_argnums": "first"}, "params_argnums is 'auto', a position"),
    ],
)
def test_bad_names_of_parameters_are_errors_that_name_them(options: Any, message: str):
    def step(key: Any, params: Any, x: Any) -> Any:
        return x @ params

    with pytest.raises((ValueError, TypeError), match=message):
        srjit(step, recipe="int8", **options).explain(jax.random.key(0), W, X)


def test_weights_that_are_captured_are_found():
    captured = srjit(lambda x: x @ W, recipe="int8", params_argnums=())
    assert [s.rhs_kind for s in captured.explain(X).sites if s.role == "fprop"] == ["weight"]


# --------------------------------------------------------------------------------- operands


@pytest.mark.parametrize("recipe", ["int8", "fp8", "mxfp8", "nvfp4", "int4", "mxfp4"])
def test_nan_and_infinity_stay_visible(recipe: str):
    forward, train = srjit(lambda w, x: x @ w, recipe=recipe), srjit(step, recipe=recipe)
    for value in (np.nan, np.inf, -np.inf):
        bad = X.at[1, 3].set(value)
        assert not bool(jnp.isfinite(forward(W, bad)[1]).any()), "every output that depends on it"
        assert not bool(jnp.isfinite(train(W, bad, sr_key=KEY)).all())


ODD: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "no rows": (lambda w, x: x @ w, (W, X[:0]), "zero-size"),
    "no contraction": (lambda w, x: x @ w, (W[:0], X[:, :0]), "zero-size"),
    "integers": (lambda w, x: x @ w, (W.astype(int), X.astype(int)), "int32"),
    "booleans": (lambda w, x: jnp.dot(x, w, preferred_element_type=int), (W > 0, X > 0), "bool"),
}


@pytest.mark.parametrize("name", ODD)
def test_products_that_cannot_be_quantized_are_exact_and_reported(name: str):
    fun, args, reason = ODD[name]
    decorated = srjit(fun, recipe="int8", strict=True)
    assert same(decorated(*args), jax.jit(fun)(*args))
    (site,) = decorated.explain(*args).sites
    assert site.status == "kept" and reason in site.reason


@pytest.mark.crossed(1)
@pytest.mark.parametrize("recipe", ["nvfp4", "int4", "int8-channel"])
@pytest.mark.parametrize(
    "shapes", [((16,), (16,)), ((3,), (3, 2)), ((1, 1), (1,)), ((5, 17), (17, 2))], ids=repr
)
def test_vectors_and_dimensions_smaller_than_a_block(recipe: str, shapes: Any):
    x, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes))
    fun = lambda w, x: x @ w  # noqa: E731
    result, expected = srjit(fun, recipe=recipe)(w, x), fun(w, x)
    tolerance = 0.02 if "8" in recipe else 0.4
    assert result.shape == expected.shape
    scale = float(jnp.linalg.norm(x) * jnp.linalg.norm(w))
    assert float(jnp.max(jnp.abs(result - expected))) <= tolerance * scale
    grads = jax.jit(jax.grad(lambda w: jnp.sum(srjit(fun, recipe=recipe)(w, x, sr_key=1))))(w)
    assert grads.shape == w.shape and bool(jnp.isfinite(grads).all())


def test_zeros_give_zeros():
    for recipe in ("int8", "nvfp4", "mxfp4", "fp8"):
        assert not bool(srjit(lambda w, x: x @ w, recipe=recipe)(0 * W, X).any())


def test_a_block_that_does_not_fit_is_an_error_of_the_quantization():
    with pytest.raises(ValueError, match=r"block=16 does not fit granularity 'tensor'"):
        Quantization(format="int8", block=16)
    with pytest.raises(ValueError, match=r"unknown format 'int9': did you mean 'int8'"):
        Quantization(format="int9")


def test_a_recipe_that_quantizes_nothing_changes_nothing():
    nothing = Recipe(name="nothing", rules=(Rule(path="nowhere"),))
    assert same(srjit(step, recipe=nothing)(W, X), jax.jit(step)(W, X))
    report = srjit(step, recipe=nothing).explain(W, X)
    assert {s.reason for s in report.sites} == {"no rule of the recipe matches it"}
    assert any(re.match(r"rule 1 \(path 'nowhere'\).* matched no site", n) for n in report.notes)
