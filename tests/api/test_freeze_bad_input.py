"""Functions that cannot be frozen, and packed weights that do not fit: errors say what to do."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import io_callback

import srjit

from .test_freeze import MLP, D, X, assert_same_bits, inference, mlp, normal


def test_what_cannot_be_frozen_says_why():
    decorated = srjit.srjit(mlp, recipe="int8")
    with pytest.raises(TypeError, match="a function that srjit"):
        srjit.freeze(mlp, MLP, X)
    with pytest.raises(TypeError, match="parameters by position"):
        srjit.freeze(decorated, params=MLP, x=X)
    with pytest.raises(ValueError, match="one argument"):
        srjit.freeze(srjit.srjit(mlp, recipe="int8", params_argnums=(0, 1)), MLP, X)
    with pytest.raises(ValueError, match="delayed scales"):
        srjit.freeze(srjit.srjit(mlp, recipe="fp8-delayed"), MLP, X)
    with pytest.raises(ValueError, match="in_shardings"):
        srjit.freeze(srjit.srjit(mlp, recipe="int8", in_shardings=(None, None)), MLP, X)
    with pytest.raises(ValueError, match="no arrays there"):
        options = {"recipe": "int8", "static_argnums": 0, "params_argnums": 0}
        static = srjit.srjit(lambda w, x: x * w, **options)
        srjit.freeze(static, 2.0, X)
    with pytest.raises(ValueError, match="side effects"):
        seen = jax.ShapeDtypeStruct((D, D), jnp.float32)
        called = lambda p, x: x @ io_callback(lambda p: p, seen, p)  # noqa: E731
        srjit.freeze(srjit.srjit(called, recipe="int8"), normal(0, D, D), X)
    with pytest.raises(ValueError, match=r"called 'w\.codes'"):
        twice = {"w": normal(0, D, D), "w.codes": normal(1, D)}
        srjit.freeze(srjit.srjit(lambda p, x: x @ p["w"] + p["w.codes"]), twice, X)


def test_what_is_not_packed_for_the_function_says_what_is_wrong():
    packed, run = srjit.freeze(srjit.srjit(mlp, recipe="int8"), MLP, X)
    with pytest.raises(ValueError, match=r"lack .*down\.codes"):
        run({name: x for name, x in packed.items() if name != "down.codes"}, X)
    with pytest.raises(ValueError, match="lack"):
        run(MLP, X)
    with pytest.raises(ValueError, match=r"have .*more"):
        run(packed | {"other": X}, X)
    with pytest.raises(ValueError, match=r"packed\['bias'\] is bfloat16"):
        run(packed | {"bias": packed["bias"].astype(jnp.bfloat16)}, X)
    with pytest.raises(ValueError, match="in place of the parameters"):
        run(MLP["up"], X)


def test_arguments_for_which_other_weights_are_quantized_are_an_error():
    recipe = srjit.recipes.get("int8")
    small = srjit.Rule(min_size=3, fprop=recipe.rules[-1].fprop)
    recipe = srjit.Recipe(name="large ones", rules=(small,))
    packed, run = srjit.freeze(srjit.srjit(mlp, recipe=recipe), MLP, X)
    assert "up.codes" in packed
    with pytest.raises(ValueError, match="freeze it for arguments"):
        run(packed, X[:2])


def test_donated_parameters_are_there_for_the_next_call():
    decorated = srjit.srjit(mlp, recipe="int8", donate_argnums=(0,))
    packed, run = srjit.freeze(decorated, MLP, X)
    assert_same_bits(run(packed, X), run(packed, X))


def other_format(role: str, kind: str, q: Any) -> Any:
    return dataclasses.replace(q, format="fp8_e5m2" if q.format == "fp8_e4m3" else q.format)


OTHERWISE: dict[str, Any] = {
    "another format": srjit.recipes.get("fp8").map_quantizations(other_format),
    "another recipe": dataclasses.replace(srjit.recipes.get("fp8"), name="mine/<b>"),
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_weights_that_are_packed_otherwise_are_refused(how: str):
    def fun(p: Any, x: jax.Array) -> jax.Array:
        return x @ p["up"]

    (packed, run), (other, run_other) = (
        srjit.freeze(srjit.srjit(fun, recipe=r), MLP, X) for r in ("fp8", OTHERWISE[how])
    )
    (mark,), (other_mark,) = ([n for n in p if n.startswith("srjit[")] for p in (packed, other))
    assert "recipe=fp8,formats=fp8_e4m3,layout=" in mark and "/" not in other_mark
    for call in (lambda: run(other, X), lambda: jax.jit(run)(other, X)):
        with pytest.raises(ValueError, match=r"packed as .*frozen for") as error:
            call()
        assert mark in str(error.value) and other_mark in str(error.value)
    run_other(other, X)
    older = {name: x for name, x in packed.items() if name != mark}
    with pytest.raises(ValueError, match="nothing says"):
        run(older, X)
    two = srjit.freeze(srjit.srjit(lambda p, x: x @ p["up"] @ p["down"], recipe="fp8"), MLP, X)
    with pytest.raises(ValueError, match="they lack"):
        run(two[0], X)
    assert_same_bits(run(packed, X), inference(fun, "fp8", MLP, X))
