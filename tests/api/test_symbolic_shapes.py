"""Exported programs with symbolic dimensions: the bits of every number, or an error that tells."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import srjit

W = {
    "a": jax.random.normal(jax.random.key(0), (32, 32)) / 4,
    "b": jax.random.normal(jax.random.key(1), (32, 16)) / 4,
}
(B,) = export.symbolic_shape("b")
SHAPES = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), W)
LAYERS = ("jaxpr", "stablehlo")


def model(w: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w["a"]) @ w["b"]


def step(w: Any, x: jax.Array) -> Any:
    gradients = jax.grad(lambda w: jnp.sum(model(w, x) ** 2))(w)
    return jax.tree.map(lambda p, g: p - 0.1 * g, w, gradients)


def looped(w: Any, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w["a"]), None), x, length=3)[0]


def attention(w: Any, x: jax.Array) -> jax.Array:
    """The symbolic dimension is contracted."""
    scores = jax.nn.softmax((x @ w["a"]) @ x.T, axis=-1)
    return scores @ x


def batch(n: int) -> jax.Array:
    return jax.random.normal(jax.random.key(n), (n, 32))


def same(a: Any, b: Any) -> None:
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(u), np.asarray(v))


@pytest.mark.crossed(1, most=2)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("fun", "recipe", "mode", "layer"),
    [
        (step, "int8", "train", "jaxpr"),
        (step, "int8", "train", "stablehlo"),
        (step, "fp8", "train", "jaxpr"),
        (model, "nvfp4", "inference", "jaxpr"),
        (model, "mxfp8", "inference", "stablehlo"),
        (looped, "int8-channel", "train", "jaxpr"),
        (attention, "int8", "inference", "stablehlo"),
    ],
)
def test_every_batch_has_the_bits_of_the_program_for_it(
    fun: Any, recipe: str, mode: str, layer: str
):
    f = srjit.srjit(fun, recipe=recipe, mode=mode, layer=layer, strict=fun is not attention)
    key = {} if mode == "inference" else {"sr_key": 7}
    exported = srjit.export(f, SHAPES, jax.ShapeDtypeStruct((B, 32), jnp.float32))
    for n in (3, 7):
        same(exported(W, batch(n), **key), f(W, batch(n), **key))


@pytest.mark.parametrize("layer", LAYERS)
def test_jax_exports_what_the_decorator_returns(layer: str):
    """Also where it was a program without any quantization, strict or not."""
    f = srjit.srjit(lambda w, x: x @ w, recipe="int8", mode="inference", layer=layer, strict=True)
    (b,) = export.symbolic_shape("b", constraints=["b>=5"])
    shapes = SHAPES["a"], jax.ShapeDtypeStruct((b, 32), jnp.float32)
    exported = export.export(jax.jit(f))(*shapes)
    same(exported.call(W["a"], batch(9)), f(W["a"], batch(9)))
    assert not np.array_equal(exported.call(W["a"], batch(9)), batch(9) @ W["a"])


@pytest.mark.filterwarnings("ignore:stochastic_round. noise of")
def test_noise_is_that_of_known_lengths_whichever_dimension_is_symbolic():
    rows, columns, both = ((B, 32), (32, B), (B, B))
    for shape in (rows, columns, both):
        round_it = jax.jit(lambda x, key: srjit.stochastic_round(x, jnp.bfloat16, key))
        exported = export.export(round_it)(
            jax.ShapeDtypeStruct(shape, jnp.float32), jax.eval_shape(lambda: jax.random.key(0))
        )
        for n in (6, 7):
            x = jax.random.normal(jax.random.key(n), tuple(32 if d == 32 else n for d in shape))
            same(exported.call(x, jax.random.key(1)), round_it(x, jax.random.key(1)))


def said_of_more(layer: str, fun: Any, b: Any, **options: Any) -> list[str]:
    f = srjit.srjit(fun, recipe="int8", layer=layer, **options)
    notes = f.explain(SHAPES, jax.ShapeDtypeStruct((b, 32), jnp.float32)).notes
    return [note for note in notes if "2^32" in note]


@pytest.mark.parametrize("layer", LAYERS)
def test_more_elements_than_noise_are_said_with_the_bound_to_write(layer: str):
    said = said_of_more(layer, step, B)
    assert said and all("constraints=" in note for note in said)
    assert any("shape (b, 32)" in note and '["33*b<=4294967296"]' in note for note in said)
    (bounded,) = export.symbolic_shape("b", constraints=["33*b<=4294967296"])
    assert not said_of_more(layer, step, bounded)
    assert not said_of_more(layer, model, B, mode="inference")


def test_stochastic_round_says_it_in_a_warning():
    fun = jax.jit(lambda x: srjit.stochastic_round(x, jnp.bfloat16, 0))
    with pytest.warns(UserWarning, match=r"stochastic_round: .*\(b, b\).*b\^2 \+ b<=4294967296"):
        export.export(fun)(jax.ShapeDtypeStruct((B, B), jnp.float32))
    (small,) = export.symbolic_shape("b", constraints=["b<=1024"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export.export(fun)(jax.ShapeDtypeStruct((small, small), jnp.float32))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("fun", "recipe", "says"),
    [(step, "mxfp8", "blocks of 32"), (step, "nvfp4", "Hadamard"), (attention, "mxfp4", None)],
)
def test_a_scale_along_the_dimension_is_an_error_that_names_it(
    fun: Any, recipe: str, says: str | None, layer: str
):
    f = srjit.srjit(fun, recipe=recipe, layer=layer)
    arguments = SHAPES, jax.ShapeDtypeStruct((B, 32), jnp.float32)
    if says is None:  # attention is kept by the recipe
        srjit.export(f, *arguments)
        return
    with pytest.raises(ValueError, match=f"{says}.* along dimension b .*give b a number"):
        srjit.export(f, *arguments)


def test_both_doors_report_the_same_of_it():
    reports = [
        srjit.srjit(step, recipe="int8", layer=layer).explain(
            SHAPES, jax.ShapeDtypeStruct((B, 32), jnp.float32)
        )
        for layer in LAYERS
    ]
    assert str(reports[0]) == str(reports[1]) and "?x32" in str(reports[0])
    assert reports[0].coverage() == 1
    assert all(s.flops > 0 and s.status == "emulated" for s in reports[0].sites)


@pytest.mark.parametrize("target", ["v5e", "b200", "h100"])
def test_targets_with_kernels_run_plain_operations_of_it(target: str):
    f = srjit.srjit(model, recipe="int8", target=target, mode="inference")
    report = f.explain(SHAPES, jax.ShapeDtypeStruct((B, 32), jnp.float32))
    assert [s.status for s in report.sites] == ["emulated", "emulated"]
    exported = srjit.export(f, SHAPES, jax.ShapeDtypeStruct((B, 32), jnp.float32))
    same(exported(W, batch(4)), srjit.srjit(model, recipe="int8", mode="inference")(W, batch(4)))
