"""Parts of a contraction on several devices are added in the dtype of the program's product."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import srjit
from small_programs import normal
from srjit import Recipe, recipes
from srjit.recipes import RecipeError

MESH = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
W, X = normal(16, 8, seed=1, dtype=jnp.bfloat16), normal(32, 16, dtype=jnp.bfloat16)
SHARDINGS = {
    "rows": (P(), P("data")),
    "columns": (P(None, "model"), P()),
    "gathered": (P("data"), P("data")),
    "contraction": (P("model"), P("data", "model")),
}


def loss(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.tanh(x @ w).astype(jnp.float32) ** 2)


def step(w: jax.Array, x: jax.Array) -> jax.Array:
    return (w - jax.grad(loss)(w, x)).astype(w.dtype)


def looped(ws: jax.Array, x: jax.Array) -> jax.Array:
    """Several layers, the second half of each contracting what the first has made."""

    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ w) @ w.T, None

    return jnp.sum(jax.lax.scan(layer, x, ws)[0].astype(jnp.float32))


def placed(specs: Any, *args: jax.Array, mesh: Any = MESH) -> list[jax.Array]:
    return [jax.device_put(x, NamedSharding(mesh, p)) for x, p in zip(args, specs, strict=True)]


def results(lowered: Any) -> list[str]:
    """The element types of a lowered program's products; none says anything of sums any more."""
    text = lowered.as_text()
    assert "srjit_sums" not in text and "srjit.number" not in text
    return re.findall(r"stablehlo\.dot_general .*-> tensor<[\dx]*x(\w+)>", text)


@pytest.mark.parametrize(
    ("target", "recipe", "own"),
    [("v5e", "int8", "i32"), ("tpu7x", "fp8", "f32"), ("cpu", "int8", "f32")],
)
def test_a_product_is_of_the_programs_dtype_where_its_contraction_is_sharded(
    target: str, recipe: str, own: str
):
    product = srjit.srjit(lambda w, x: x @ w, recipe=recipe, target=target)
    found = {name: results(product.lower(*placed(s, W, X))) for name, s in SHARDINGS.items()}
    alone = {name: [own] for name in ("rows", "columns", "gathered")}
    assert found == {**alone, "contraction": ["bf16"]}
    assert results(product.lower(W, X)) == [own]


@pytest.mark.parametrize("layer", ["jaxpr", "stablehlo"])
def test_so_it_is_in_gradients(layer: Any):
    fun = srjit.srjit(step, recipe="int8", target="v5e", layer=layer)
    args = placed(SHARDINGS["gathered"], W, X)
    assert results(fun.lower(*args, sr_key=0)) == ["i32", "bf16"]
    assert results(fun.lower(W, X, sr_key=0)) == ["i32", "i32"]


def test_a_gradient_of_a_sharded_weight_is_whole_before_it_is_sharded():
    """Or XLA sends an operand by all-to-all in place of a reduce-scatter."""
    fun = srjit.srjit(step, recipe="int8", target="v5e")
    text = fun.lower(*placed(SHARDINGS["gathered"], W, X), sr_key=0).as_text()
    assert re.findall(r"sdy\.sharding_constraint .*<@mesh, (.*)> : (.*)", text) == [
        ("[{}, {}]", "tensor<16x8xbf16>")
    ]
    whole = fun.lower(*placed((P(), P("data")), W, X), sr_key=0)
    assert "sdy.sharding_constraint" not in whole.as_text()


def test_so_it_is_in_loops_whose_bodies_are_functions():
    fun = srjit.srjit(jax.grad(looped), recipe="int8", target="v5e")
    args = placed((P(None, None, "model"), P("data")), jnp.stack([W, W]), X)
    # Forward up and down, then the gradients of down and of up.
    assert results(fun.lower(*args, sr_key=0)).count("bf16") == 4


def test_so_it_is_in_the_middle_of_a_program():
    rewritten = srjit.transform(lambda w, x: x @ w, recipe="int8", target="v5e")
    whole = jax.jit(lambda w, x: jnp.sum(rewritten(w, x, sr_key=0)) + jnp.sum(x))
    assert results(whole.lower(*placed(SHARDINGS["contraction"], W, X))) == ["bf16"]


def test_types_tell_of_explicit_axes():
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Explicit,) * 2)
    fun = srjit.srjit(step, recipe="int8", target="v5e")
    with jax.set_mesh(mesh):
        args = placed((P(None, "model"), P("data")), W, X, mesh=mesh)
        assert results(fun.lower(*args, sr_key=0)) == ["i32", "bf16"]


def test_a_module_is_sharded_as_its_arguments_say():
    lowered = jax.jit(step).lower(*placed(SHARDINGS["gathered"], W, X))
    pipeline = "srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8},srjit-legalize{target=%s}"
    assert results(srjit.rejit(lowered, pipeline % "v5e")) == ["i32", "bf16"]
    assert results(srjit.rejit(lowered, pipeline % "portable")) == ["i32", "i32"]


@pytest.mark.parametrize("layer", ["jaxpr", "stablehlo"])
def test_sums_are_exact_if_a_recipe_says_so(layer: Any):
    exact = dataclasses.replace(recipes.get("int8"), reduce="exact")
    assert Recipe.from_toml(exact.to_toml()) == exact
    fun = srjit.srjit(step, recipe=exact, target="v5e", layer=layer)
    args = placed(SHARDINGS["gathered"], W, X)
    assert results(fun.lower(*args, sr_key=0)) == ["i32", "i32"]
    np.testing.assert_array_equal(fun(*args, sr_key=0), fun(W, X, sr_key=0))


def test_another_way_to_reduce_is_refused():
    with pytest.raises(RecipeError, match="unknown reduce 'bf16'"):
        Recipe(name="r", rules=(), reduce="bf16")  # type: ignore[arg-type]


@pytest.mark.bits
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_results_differ_by_roundings_of_parts_or_not_at_all(sharding: str):
    """Both doors; with every operand as one device has it, and the same codes of it."""
    args = placed(SHARDINGS[sharding], W, X)
    product = srjit.srjit(lambda w, x: x @ w, recipe="int8")
    alone, whole = np.asarray(product(W, X), np.float32), product(*args)
    np.testing.assert_array_equal(
        whole, srjit.srjit(lambda w, x: x @ w, recipe="int8", layer="stablehlo")(*args)
    )
    off = np.abs(np.asarray(whole, np.float32) - alone)
    if sharding != "contraction":
        assert not off.any()
    sizes = np.abs(np.asarray(X, np.float32)) @ np.abs(np.asarray(W, np.float32))
    assert (off <= 3 * 2.0**-8 * 1.02 * sizes).all()  # two parts and their sum, in bfloat16
