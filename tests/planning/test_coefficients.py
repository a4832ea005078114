"""What the backward pass keeps as codes: right on average, less, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from planning.test_residuals import carried
from small_programs import normal
from srjit import Recipe, recipes, srjit, transform
from srjit.report.report import Report
from steps import same

saving = jax.checkpoint_policies
LAYERS, TOKENS, WIDTH, HIDDEN = 3, 4, 8, 64
STACK = normal(LAYERS, WIDTH, HIDDEN) / 3, normal(LAYERS, HIDDEN, WIDTH, seed=1) / 8
INPUT = normal(TOKENS, WIDTH, seed=2)
ALONE = Recipe(name="residuals alone", rules=(), residuals="int8")
WITH_PRODUCTS = dataclasses.replace(recipes.get("int8"), residuals="int8")


def mlp(activation: Callable[[Any], Any], policy: Any = None) -> Callable[..., Any]:
    """Loss and gradients of scanned layers."""

    def block(x: jax.Array, w: Any) -> jax.Array:
        with jax.named_scope("mlp"):
            return activation(x @ w[0]) @ w[1]

    layer = block if policy is None else jax.checkpoint(block, policy=policy, prevent_cse=False)

    def loss(stack: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(lax.scan(lambda x, w: (layer(x, w), None), x, stack)[0] ** 2)

    return jax.value_and_grad(loss)


def unrolled(stack: Any, x: jax.Array) -> jax.Array:
    for i in range(LAYERS):
        x = jax.nn.silu(x @ stack[0][i]) @ stack[1][i]
    return jnp.mean(x**2)


def report(step: Any, recipe: Recipe, *args: Any) -> Report:
    return srjit(step, recipe=recipe).explain(*args)


# ------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    "activation", [jax.nn.silu, pytest.param(jax.nn.gelu, marks=pytest.mark.nightly)]
)
def test_loops_carry_codes_in_place_of_what_a_derivative_is_made_of(activation: Any):
    step = mlp(activation)
    [row] = report(step, WITH_PRODUCTS, STACK, INPUT).residuals
    assert (row.status, row.format, row.shape) == ("stochastic", "int8", (TOKENS, HIDDEN))
    assert row.after == LAYERS * TOKENS * (HIDDEN + 4)  # and a float32 scale a row
    less = {
        recipe.name: sum(
            n for n, _ in carried(srjit(step, recipe=recipe).lower(STACK, INPUT, sr_key=0))
        )
        for recipe in (dataclasses.replace(WITH_PRODUCTS, name="with"), recipes.get("int8"))
    }
    # One loop writes and another reads: each counts once.
    assert less["int8"] - less["with"] == 2 * (row.before - row.after)


def test_the_forward_pass_has_the_bits_that_it_had():
    step = mlp(jax.nn.silu)
    loss, gradients = srjit(step, recipe=ALONE)(STACK, INPUT, sr_key=1)
    plain, exact = jax.jit(step)(STACK, INPUT)
    assert same(loss, plain)
    assert not same(gradients[0], exact[0])


@pytest.mark.parametrize("policy", [saving.nothing_saveable, saving.dots_saveable])
def test_nothing_is_kept_beside_what_the_policy_computes_it_of_again(policy: Any):
    step = mlp(jax.nn.gelu, policy)
    rows = report(step, WITH_PRODUCTS, STACK, INPUT).residuals
    assert all(row.status == "kept" and "kept anyway" in row.reason for row in rows)


def test_a_value_that_the_program_returns_is_kept_once():
    def step(w: Any, x: jax.Array) -> Any:
        def loss(w: Any) -> Any:
            before = x @ w[0]
            return jnp.mean((jax.nn.silu(before) @ w[1]) ** 2), before

        return jax.grad(loss, has_aux=True)(w)

    first = tuple(w[0] for w in STACK)
    [row] = report(step, WITH_PRODUCTS, first, INPUT).residuals
    assert row.status == "kept"


def test_a_mask_that_is_smaller_than_its_codes_is_kept():
    [row] = report(mlp(jax.nn.relu), WITH_PRODUCTS, STACK, INPUT).residuals
    assert row.status == "kept"
    assert row.before == LAYERS * TOKENS * HIDDEN


def test_both_factors_of_a_gated_unit_are_kept():
    def loss(w: Any, x: jax.Array) -> jax.Array:
        return jnp.mean((jax.nn.silu(x @ w[0]) * (x @ w[1]) @ w[2]) ** 2)

    w = STACK[0][0], STACK[0][1], STACK[1][0]
    rows = report(jax.grad(loss), WITH_PRODUCTS, w, INPUT).residuals
    assert [(r.status, r.shape) for r in rows] == [("stochastic", (TOKENS, HIDDEN))] * 2
    assert sum(r.before for r in rows) == 2 * TOKENS * HIDDEN * 4


def test_rules_are_by_path():
    step = mlp(jax.nn.silu)
    for pairs, status in (
        ((("*mlp*", ""), ("*", "int8")), "kept"),
        ((("*attention*", ""), ("*mlp*", "fp8")), "stochastic"),
    ):
        recipe = dataclasses.replace(ALONE, residuals=pairs)
        assert Recipe.from_toml(recipe.to_toml()) == recipe
        [row] = report(step, recipe, STACK, INPUT).residuals
        assert (row.path, row.status) == ("mlp", status)
    assert row.format == "fp8_e4m3"


@pytest.mark.parametrize("wrong", ["int7", "", ["int8"], (("*", "int8", "x"),), (("*", 8),)])
def test_what_is_no_format_is_an_error(wrong: Any):
    with pytest.raises(ValueError, match="residuals"):
        dataclasses.replace(ALONE, residuals=wrong)


def test_a_function_without_its_backward_pass_says_that_nothing_is_kept():
    notes = report(unrolled, ALONE, STACK, INPUT).notes
    assert any("jax.grad inside of it" in note for note in notes)


# --------------------------------------------------------------------------------- right on average


@pytest.mark.parametrize("format", ["int8", pytest.param("fp8", marks=pytest.mark.nightly)])
def test_gradients_are_right_on_average(format: Any):
    """The mean of n draws is off by sigma / sqrt(n): neither more, nor much less."""
    draws, step = 512, mlp(jax.nn.silu)
    f = transform(step, recipe=dataclasses.replace(ALONE, residuals=format))
    keys = jax.random.split(jax.random.key(3), draws)
    drawn = jax.jit(lambda keys: lax.map(lambda k: f(STACK, INPUT, sr_key=k)[1], keys))(keys)
    for many, exact in zip(drawn, jax.jit(step)(STACK, INPUT)[1], strict=True):
        many, exact = np.asarray(many, np.float64), np.asarray(exact, np.float64)
        deviation = many.std(0, ddof=1) / np.sqrt(draws)
        noisy = deviation > 0  # all but the last matrix, whose cotangent meets none
        assert noisy[:-1].all()
        z = ((many.mean(0) - exact) / np.where(noisy, deviation, 1.0))[noisy]
        # Elements are not independent: what they share are the draws, so few of them count.
        assert 0.5 < np.mean(z**2) < 1.8
        assert np.abs(z).max() < 6


# -------------------------------------------------------------------------------------- everywhere


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(mlp(jax.nn.silu), id="scanned"),
        pytest.param(jax.value_and_grad(unrolled), id="unrolled", marks=pytest.mark.nightly),
    ],
)
def test_both_layers_give_the_same_bits(step: Any):
    ours, theirs = (
        srjit(step, recipe=WITH_PRODUCTS, layer=layer)(STACK, INPUT, sr_key=5)
        for layer in ("jaxpr", "stablehlo")
    )
    assert same(ours, theirs)


def test_every_layer_step_and_example_has_noise_of_its_own():
    """Layers and examples that are alike: their gradients differ by noise alone."""
    alike = jax.tree.map(lambda w: jnp.stack([w[0]] * 2), STACK)

    def step(stack: Any, x: jax.Array) -> Any:
        def loss(stack: Any) -> jax.Array:
            return jnp.sum(lax.map(lambda w: jnp.sum(jax.nn.silu(x @ w[0]) @ w[1]), stack))

        return jax.grad(loss)(stack)[0]

    f = transform(step, recipe=ALONE)
    batch = jnp.stack([INPUT, INPUT])
    two = jax.vmap(lambda k: jax.vmap(lambda x: f(alike, x, sr_key=k))(batch))
    found = jax.jit(two)(jax.random.split(jax.random.key(0), 2))
    drawn = np.asarray(found).reshape(8, WIDTH, HIDDEN)  # keys, examples, layers
    assert len({d.tobytes() for d in drawn}) == 8


def test_microbatches_and_checkpoints_hand_codes_on():
    step = mlp(jax.nn.gelu, saving.everything_saveable)

    def steps(stack: Any, xs: jax.Array) -> Any:
        def add(total: Any, x: jax.Array) -> Any:
            loss, gradients = step(stack, x)
            return jax.tree.map(jnp.add, total, gradients), loss

        return lax.scan(add, jax.tree.map(jnp.zeros_like, stack), xs)

    xs = jnp.stack([INPUT, 2 * INPUT])
    [row] = report(steps, WITH_PRODUCTS, STACK, xs).residuals
    assert row.status == "stochastic"
    both, losses = srjit(steps, recipe=ALONE)(STACK, xs, sr_key=1)
    exact, plain = jax.jit(steps)(STACK, xs)
    assert same(losses, plain)
    for g, e in zip(both, exact, strict=True):
        assert np.linalg.norm(g - e) < 0.05 * np.linalg.norm(e)


def test_two_devices_draw_the_noise_of_one():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(INPUT, NamedSharding(mesh, PartitionSpec("x")))
    f = srjit(mlp(jax.nn.silu), recipe=ALONE)
    for one, two in zip(*(f(STACK, x, sr_key=1)[1] for x in (INPUT, sharded)), strict=True):
        # Sums over devices are of another order; noise moves elements by more than that.
        np.testing.assert_allclose(one, two, atol=2e-5 * np.abs(one).max())


def test_shards_have_noise_of_their_own_inside_shard_map():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    step, spec = mlp(jax.nn.silu), PartitionSpec("x")

    def on_shards(stack: Any, x: jax.Array) -> Any:
        def inner(stack: Any, x: jax.Array) -> Any:
            return jax.tree.map(lambda g: g[None], step(lax.pcast(stack, "x", to="varying"), x)[1])

        return jax.shard_map(inner, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=spec)(
            stack, x
        )

    twice = jnp.concatenate([INPUT, INPUT])  # both shards are alike
    rows = report(on_shards, ALONE, STACK, twice).residuals
    assert [r.status for r in rows] == ["stochastic"]
    gradients = srjit(on_shards, recipe=ALONE)(STACK, twice, sr_key=1)
    assert not same(gradients[0][0], gradients[0][1])
    exact = jax.jit(on_shards)(STACK, twice)
    assert same(exact[0][0], exact[0][1])


def test_where_codes_cannot_be_handed_on_floats_are_and_the_report_says_so():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))

    def loss(stack: Any, x: jax.Array) -> jax.Array:
        def inner(stack: Any, x: jax.Array) -> jax.Array:
            return lax.pmean(unrolled(stack, x), "x")

        specs = PartitionSpec(), PartitionSpec("x")
        return jax.shard_map(inner, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(stack, x)

    rows = report(jax.grad(loss), WITH_PRODUCTS, STACK, INPUT).residuals
    assert rows and all("cannot hand it on" in r.reason for r in rows)


def test_second_derivatives_go_through_what_is_kept():
    f, step = transform(mlp(jax.nn.silu), recipe=ALONE), mlp(jax.nn.silu)

    def directional(f: Any) -> Any:
        return jax.jit(lambda s: jax.jvp(lambda s: f(s)[1], (s,), (s,))[1])(STACK)

    ours = directional(lambda s: f(s, INPUT, sr_key=0))
    for g, e in zip(ours, directional(lambda s: step(s, INPUT)), strict=True):
        assert np.linalg.norm(g - e) < 0.05 * np.linalg.norm(e)
