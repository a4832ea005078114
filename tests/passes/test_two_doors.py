"""The same program, key and recipe give the same bits through the jaxpr and through StableHLO."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import srjit
from srjit import recipes

from .programs import PARAMS, PROGRAMS, X, on_eight_devices

# Everything draws noise, so that every kind of operand has a number, a loop's trip and a shard.
_ALL = recipes.get("int8").with_rounding(activations="stochastic", weights="stochastic")
# Every recipe goes through bfloat16, every program through int8, and shards through one recipe of
# each layout of scales.
_OF_SHARDS = ("int8", "int8-channel", "fp8-delayed", "mxfp8", "nvfp4")
OPTIMIZED = {"xla_backend_optimization_level": 3}
_LONG = ("transformer", "experts")  # that also go through NVFP4, whose codes have two scales


def _pairs() -> list[Any]:
    """All programs by all recipes: some always, the rest nightly."""
    pairs: list[Any] = []
    for program in PROGRAMS:
        for recipe in (*recipes.names(), _ALL):
            name = recipe if isinstance(recipe, str) else "all stochastic"
            always = program == "bfloat16" or recipe == "int8"
            always = always or (program == "shard_map" and recipe in _OF_SHARDS)
            marks = [] if always else [pytest.mark.nightly]
            if program in _LONG and recipe == "nvfp4":
                marks = [pytest.mark.slow]
            if recipe == "int8" or (always and program == "bfloat16"):
                marks = [*marks, pytest.mark.bits]
            pairs.append(pytest.param(program, recipe, id=f"{program}-{name}", marks=marks))
    return pairs


def _differing(a: Any, b: Any) -> list[str]:
    pairs = zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True)
    return [
        f"{jax.tree_util.keystr(path)}: {(np.asarray(u) != np.asarray(v)).sum()} of {u.size}"
        for (path, u), v in pairs
        if not np.array_equal(np.asarray(u), np.asarray(v), equal_nan=True)
    ]


def _through_both(fun: Any, args: Any, recipe: Any, **options: Any) -> tuple[Any, Any]:
    by_jaxpr = srjit.srjit(fun, recipe=recipe, **options)
    by_module = srjit.srjit(fun, recipe=recipe, layer="stablehlo", **options)
    delayed = recipes.get(recipe).has_delayed_scales
    states = [f.init_state(*args) if delayed else None for f in (by_jaxpr, by_module)]
    results: list[Any] = [None, None]
    for step in range(2 if delayed else 1):
        for i, function in enumerate((by_jaxpr, by_module)):
            results[i] = function(*args, sr_key=step, sr_state=states[i])
            if delayed:
                states[i] = results[i][1]
    return results[0], results[1]


@pytest.mark.crossed(1, most=15)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("program", "recipe"), _pairs())
def test_both_doors_give_the_same_bits(program: str, recipe: Any):
    fun, args = PROGRAMS[program]
    # One door keeps the amax of what is computed again, and the other finds it again: without
    # optimization, XLA of JAX 0.12 rounds the value otherwise the second time.
    options = {"compiler_options": OPTIMIZED} if program == "checkpoint policy" else {}
    by_jaxpr, by_module = _through_both(fun, args, recipe, **options)
    assert not _differing(by_jaxpr, by_module)


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("recipe", ["nvfp4", "mxfp8", "fp8"])
def test_both_doors_give_the_same_bits_of_a_target_with_scales_beside_codes(recipe: str):
    fun, args = PROGRAMS["bfloat16"]
    by_jaxpr, by_module = _through_both(fun, args, recipe, target="b200")
    assert not _differing(by_jaxpr, by_module)


@pytest.mark.crossed(1, most=5)
@pytest.mark.parametrize("program", PROGRAMS)
def test_both_doors_say_the_same_of_every_site(program: str):
    fun, args = PROGRAMS[program]
    reports = [
        srjit.srjit(fun, recipe="nvfp4", layer=layer).explain(*args)
        for layer in ("jaxpr", "stablehlo")
    ]
    for a, b in zip(*(report.sites for report in reports), strict=True):
        assert (a.site, a.lhs, a.rhs, a.status, a.reason) == (
            b.site, b.lhs, b.rhs, b.status, b.reason,
        )  # fmt: skip


@pytest.mark.crossed(1, most=1)
@pytest.mark.parametrize("program", ["mlp", "transformer"])
def test_both_doors_give_the_same_bits_on_eight_devices(program: str):
    fun, args = PROGRAMS[program]
    by_jaxpr, by_module = _through_both(fun, on_eight_devices(args), "int8")
    assert not _differing(by_jaxpr, by_module)


def test_donated_arguments_are_donated_through_both_doors():
    fun, args = PROGRAMS["mlp"]
    for layer in ("jaxpr", "stablehlo"):
        donated = jax.tree.map(jnp.copy, args)
        srjit.srjit(fun, recipe="int8", layer=layer, donate_argnums=0)(*donated, sr_key=1)
        assert all(x.is_deleted() for x in jax.tree.leaves(donated[0]))


def test_a_ragged_product_that_somebody_else_lowered_is_said_to_be_several():
    """JAX's CPU lowering makes masked dots of it: a foreign module cannot agree with the jaxpr."""
    fun, args = PROGRAMS["experts"]
    lowered = jax.jit(fun).lower(*args)
    pipeline = "srjit-eliminate-dead-code,srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8}"
    foreign = srjit.rejit(lowered, pipeline).report
    own = srjit.srjit(fun, recipe="int8", layer="stablehlo").explain(*args)
    assert {s.site.op for s in own.sites} == {"ragged_dot_general"}
    assert {s.site.op for s in foreign.sites} == {"dot_general"}
    assert any("ragged_dot" in note for note in foreign.notes)


@pytest.mark.parametrize("unroll", [2, 4])
def test_an_unrolled_loop_is_said_to_be_several_iterations(unroll: int):
    def fun(params: Any, x: jax.Array) -> jax.Array:
        body = lambda x, _: (jnp.tanh(x @ params["layers"]["q"][0]), None)  # noqa: E731
        return lax.scan(body, x, length=4, unroll=unroll)[0]

    own = srjit.srjit(fun, recipe="int8", layer="stablehlo").explain(PARAMS, X)
    assert len(own.sites) == unroll
    assert any("unroll" in note for note in own.notes)
    lowered = jax.jit(fun).lower(PARAMS, X)
    pipeline = "srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8}"
    foreign = srjit.rejit(lowered, pipeline).report
    # Where JAX still calls the body; from 0.12 on it is inlined, and looks like a loop in Python.
    told = "closed_call" in lowered.as_text()
    assert any("unroll" in note for note in foreign.notes) == told
