"""A program of which little is quantized says so; one that is left alone on purpose does not."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import srjit
from small_programs import PARAMS, X, Y, explain, loss, normal
from srjit import recipes


def step(p: Any, x: jax.Array, y: jax.Array) -> Any:
    return jax.tree.map(lambda a, g: a - 0.1 * g, p, jax.grad(loss)(p, x, y))


@pytest.mark.parametrize("layer", ["jaxpr", "stablehlo"])
def test_a_step_whose_weights_are_not_among_its_parameters_says_what_to_write(layer: str):
    options: Any = {"recipe": "int8", "params_argnames": "y", "layer": layer}
    fun = srjit.srjit(step, **options)
    with pytest.warns(UserWarning, match=r"% of the FLOPs are quantized.*params_argnums=") as seen:
        fun(PARAMS, X, Y, sr_key=0)
        fun(PARAMS, X, Y, sr_key=1)
    assert len(seen) == 1
    assert "% of the FLOPs are quantized" in str(fun.explain(PARAMS, X, Y))
    with pytest.raises(srjit.UnsupportedSiteError, match="% of the FLOPs"):
        srjit.srjit(step, strict=True, **options)(PARAMS, X, Y, sr_key=0)


def test_a_pipeline_says_it_too():
    lowered = jax.jit(step).lower(PARAMS, X, Y)
    passes = "srjit-annotate-matmuls{params=none},srjit-insert-quantize{recipe=int8%s}"
    with pytest.warns(UserWarning, match="% of the FLOPs are quantized"):
        srjit.rejit(lowered, passes % "")
    with pytest.raises(srjit.passes.PipelineError, match="% of the FLOPs"):
        srjit.rejit(lowered, passes % " strict=true")


def test_a_base_that_is_captured_beside_adapters_is_no_silence():
    base = normal(16, 16)
    adapters = {"a": normal(16, 2, seed=1), "b": normal(2, 16, seed=2)}
    of = lambda p, x: jnp.mean((x @ base + x @ p["a"] @ p["b"]) ** 2)  # noqa: E731
    with pytest.warns(UserWarning, match="make it an argument if it holds weights"):
        srjit.srjit(jax.grad(of), recipe="int8")(adapters, normal(6, 16, seed=3), sr_key=0)


def test_captured_constants_that_hold_no_weights_can_be_said_to():
    tableau = normal(6, 6)

    def staged(p: Any, x: jax.Array, keep: Any) -> jax.Array:
        for _ in range(2):
            with keep():
                x = tableau @ (tableau @ x)
            x = x @ p
        return x

    given = normal(6, 6, seed=1), normal(6, 6, seed=2)
    options: Any = {"recipe": "int8", "mode": "inference", "static_argnums": 2, "params_argnums": 0}
    with pytest.warns(UserWarning, match=r"captures.*srjit.keep_high_precision\(\) around their"):
        srjit.srjit(staged, **options)(*given, contextlib.nullcontext)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        srjit.srjit(staged, strict=True, **options)(*given, srjit.keep_high_precision)


def spectral(p: Any, x: jax.Array) -> jax.Array:
    return jnp.fft.irfft(jnp.fft.rfft(x) @ p["c"], 16) @ p["w"]


SPECTRAL = {"c": normal(9, 9) + 1j * normal(9, 9, seed=1), "w": normal(16, 2, seed=2)}


@pytest.mark.parametrize("layer", ["jaxpr", "stablehlo"])
def test_complex_weights_are_weights_and_their_products_no_silence(layer: str):
    options: Any = {"recipe": "int8", "mode": "inference", "layer": layer}
    given = SPECTRAL, normal(6, 16, seed=3)
    fun = srjit.srjit(spectral, **options)
    with pytest.warns(UserWarning, match=r"complex64 product.*around them"):
        fun(*given)
    kinds = [(s.lhs_kind, s.rhs_kind, s.status) for s in fun.explain(*given).sites]
    assert kinds == [("activation", "weight", "kept"), ("activation", "weight", "emulated")]
    with pytest.raises(srjit.UnsupportedSiteError, match="complex64 product"):
        srjit.srjit(spectral, strict=True, **options)(*given)


def attention(p: Any, x: jax.Array) -> jax.Array:
    q, k, v = (x @ p[name] for name in "qkv")
    return jax.nn.softmax(q @ k.T) @ v


def kept_by_the_user(p: Any, x: jax.Array, y: jax.Array) -> Any:
    with srjit.keep_high_precision():
        return step(p, x, y)


QKV = {name: normal(4, 4, seed=i) for i, name in enumerate("qkv")}
LONG = normal(64, 4)
OURS = dataclasses.replace(recipes.get("int8"), keep_first=1, keep_last=1)
QUIET: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    **{name: (step, (PARAMS, X, Y), {"recipe": name}) for name in recipes.names()},
    "inference": (loss, (PARAMS, X, Y), {"mode": "inference"}),
    "nothing pays": (step, (PARAMS, X, Y), {"recipe": "auto", "target": "v5e"}),
    "mostly attention": (attention, (QKV, LONG), {}),
    "attention alone": (lambda q, k, v: jax.nn.softmax(q @ k.T) @ v, (LONG,) * 3, {}),
    "kept by the user": (kept_by_the_user, (PARAMS, X, Y), {}),
    "kept at both ends": (step, (PARAMS, X, Y), {"recipe": OURS}),
    "no product": (lambda p: p * 2, (X,), {}),
}


@pytest.mark.parametrize("name", QUIET)
def test_there_is_no_false_alarm(name: str):
    fun, args, options = QUIET[name]
    assert not [n for n in explain(fun, *args, **options).notes if "FLOPs are quantized" in n]


def test_strict_passes_where_nothing_is_missing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        srjit.srjit(step, recipe="int8", strict=True)(PARAMS, X, Y, sr_key=0)
