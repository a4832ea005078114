"""What devices gather or exchange inside ``shard_map`` only to multiply it travels as codes."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import srjit
from small_programs import normal

MESH = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
W, X = normal(16, 8, seed=1, dtype=jnp.bfloat16), normal(32, 16, dtype=jnp.bfloat16)
LAYERS = ("jaxpr", "stablehlo")


SHARD = P("model", "data")


def mapped(fun: Any, x: P, out: P, **options: Any) -> Any:
    """A function of a shard of weights and of data."""
    return jax.shard_map(fun, mesh=MESH, in_specs=(SHARD, x), out_specs=out, **options)


def whole(w: jax.Array) -> jax.Array:
    w = lax.all_gather(w, "model", axis=0, tiled=True)
    return lax.all_gather(w.astype(jnp.float32), "data", axis=1, tiled=True).astype(jnp.bfloat16)


def product(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ whole(w))


def step(w: jax.Array, x: jax.Array) -> jax.Array:
    @jax.checkpoint
    def loss(w: jax.Array) -> jax.Array:
        return jnp.sum(product(w, x).astype(jnp.float32) ** 2)

    return w - lax.psum(jax.grad(loss)(w), ()).astype(w.dtype)


def gathered(text: str) -> set[str]:
    """The types of what a compiled program gathers."""
    return set(re.findall(r"= \(?(\w+\[\S*\])\S* all-gather(?:-start)?\(", text))


@pytest.mark.bits
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("recipe", "target"), [("int8", "v5e"), ("fp8-static", "tpu7x")])
def test_codes_of_shards_are_those_of_the_whole(recipe: str, target: str, layer: Any):
    options: Any = {"recipe": recipe, "target": target, "layer": layer}
    fun: Any = srjit.srjit(mapped(product, P(), P(), check_vma=False), **options)
    alone: Any = srjit.srjit(lambda w, x: jnp.tanh(x @ w), **options)
    np.testing.assert_array_equal(fun(W, X), alone(W, X))
    codes = {"int8": "i8", "fp8-static": "f8E4M3FN"}[recipe]
    gathered = re.findall(r"stablehlo.all_gather.*-> tensor<16x8x(\w+)>", fun.lower(W, X).as_text())
    assert codes in gathered
    for bad in (jnp.nan, jnp.inf):
        assert not jnp.isfinite(fun(W.at[15, 7].set(bad), X)[:, 7]).any()


@pytest.mark.bits
def test_so_it_is_in_steps_through_both_doors():
    """Of what is computed again, too, for which devices are not asked again."""
    made = {}
    for layer in LAYERS:
        fun: Any = srjit.srjit(
            mapped(step, P("data"), SHARD), recipe="int8", layer=layer, target="v5e"
        )
        made[layer] = fun(W, X, sr_key=0)
        text = fun.lower(W, X, sr_key=0).compile().as_text()
        assert gathered(text) == {"f32[16,2]", "s8[16,8]"}  # a CPU's bfloat16, and codes
    np.testing.assert_array_equal(*made.values())


@pytest.mark.parametrize("layer", LAYERS)
def test_what_something_else_reads_is_gathered_as_it_is(layer: Any):
    def read(w: jax.Array, x: jax.Array) -> jax.Array:
        w = whole(w)
        return x @ w + jnp.sum(w)

    fun: Any = srjit.srjit(
        mapped(read, P("data"), P("data"), check_vma=False),
        recipe="int8",
        layer=layer,
        target="v5e",
    )
    assert "i8>" not in "".join(re.findall(r"stablehlo.all_gather.*", fun.lower(W, X).as_text()))


# ------------------------------------------------------------------------------------- exchanges

EXPERTS, TOKENS = normal(4, 16, 8, seed=2), normal(4, 32, 16, seed=3)
TOKENS = TOKENS * 2.0 ** jnp.arange(32)[:, None]  # what devices get has amaxes far apart


def exchanged(x: jax.Array) -> jax.Array:
    return lax.all_to_all(x, "data", 0, 1, tiled=True)


def alone(x: jax.Array) -> jax.Array:
    """The same, which something else reads, so that it travels as it is."""
    x = exchanged(x)
    return jnp.where(jnp.sum(x) == 1, 0, x)


def experts(travel: Any, w: jax.Array, x: jax.Array) -> jax.Array:
    """A step of experts, whose tokens travel to them forward, and once more backward."""

    @jax.checkpoint
    def loss(w: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(jnp.einsum("ecd,edf->ecf", travel(x), w)) ** 2)

    return w - jax.grad(loss)(w)


@pytest.mark.bits
@pytest.mark.parametrize(
    ("recipe", "target"),
    [("int8", "v5e"), pytest.param("fp8-static", "tpu7x", marks=pytest.mark.nightly)],
)
def test_tokens_travel_as_codes_by_the_scales_of_who_gets_them(recipe: str, target: str):
    codes = {"int8": "i8", "fp8-static": "f8E4M3FN"}[recipe]
    made: dict[Any, Any] = {}
    for layer, travel in (("jaxpr", alone), *((layer, exchanged) for layer in LAYERS)):
        body = functools.partial(experts, travel)
        step = jax.shard_map(
            body, mesh=MESH, in_specs=(P("data"), P(None, "data")), out_specs=P("data")
        )
        fun: Any = srjit.srjit(step, recipe=recipe, layer=layer, target=target)
        lowered = fun.lower(EXPERTS, TOKENS, sr_key=0)
        sent = re.findall(r"stablehlo.all_to_all.*-> tensor<1x32x16x(\w+)>", lowered.as_text())
        assert (codes in sent) == (travel is exchanged)
        run = lowered.compile()
        bad = TOKENS.at[2, 5, 1].set(jnp.nan)
        made[layer, travel] = run(EXPERTS, TOKENS, sr_key=0), run(EXPERTS, bad, sr_key=0)
    expected, broken = made.pop(("jaxpr", alone))
    assert np.isnan(broken[2]).any() and np.isfinite(broken[jnp.array([0, 1, 3])]).all()
    for got, shows in made.values():
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(np.isnan(shows), np.isnan(broken))
