"""One device or eight, whatever the sharding: the same noise, and the same codes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import srjit
from small_programs import equations, normal

from .test_noise import COTANGENT, EYE, N, coins, independent

WHOLE = PartitionSpec()
# Which operand of x @ w is sharded how: rows of x, columns of w, the contraction, all of the mesh.
SHARDINGS = {
    "rows": (PartitionSpec("d"), WHOLE),
    "columns": (WHOLE, PartitionSpec(None, "d")),
    "contraction": (PartitionSpec(None, "d"), PartitionSpec("d")),
}
X, W = normal(16, 24), normal(24, 32, seed=1) / 5


def _mesh(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("d",), axis_types=(kind,))


def _step(w: jax.Array, x: jax.Array) -> Any:
    """Value and gradients: forward, dgrad and wgrad, and codes that nobody's noise may change."""
    return jax.value_and_grad(lambda w, x: (jnp.tanh(x @ w) ** 2).sum(), (0, 1))(w, x)


EDEN = pytest.param("nvfp4-eden", marks=pytest.mark.slow)


def _close(a: Any, b: Any, exact: bool) -> None:
    for got, expected in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        got, expected = np.asarray(got), np.asarray(expected)
        if exact:
            np.testing.assert_array_equal(got, expected)
        else:  # partial sums in another order
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * abs(expected).max())


def _linear(w: jax.Array, x: jax.Array, ct: jax.Array) -> Any:
    out, pullback = jax.vjp(lambda w, x: x @ w, w, x)
    return out, pullback(ct)


@functools.cache
def _on_one_device(recipe: str) -> Any:
    return srjit.srjit(_linear, recipe=recipe)(W, X, normal(16, 32, seed=2), sr_key=3)


@pytest.mark.crossed(1, most=2)
@pytest.mark.bits
@pytest.mark.parametrize("recipe", ["int8", "fp8", "nvfp4", EDEN])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_eight_devices_compute_what_one_does(recipe: str, sharding: str):
    mesh = _mesh(AxisType.Auto)
    x_spec, w_spec = (NamedSharding(mesh, spec) for spec in SHARDINGS[sharding])
    whole = NamedSharding(mesh, WHOLE)
    sharded = srjit.srjit(_linear, recipe=recipe, in_shardings=(w_spec, x_spec, whole))
    got = sharded(W, X, normal(16, 32, seed=2), sr_key=3)
    # Sums of int8 codes are integers: exact in any order. Others are sums of float32.
    _close(got, _on_one_device(recipe), exact=recipe == "int8")


@functools.cache
def _step_on_one_device(recipe: str) -> Any:
    return srjit.srjit(_step, recipe=recipe)(W, X, sr_key=3)


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("recipe", ["int8", "nvfp4", EDEN])
@pytest.mark.parametrize("sharding", ["rows", "columns"])
def test_explicitly_sharded_programs_compute_what_one_device_does(recipe: str, sharding: str):
    alone = _step_on_one_device(recipe)
    mesh = _mesh(AxisType.Explicit)
    x_spec, w_spec = SHARDINGS[sharding]
    with jax.set_mesh(mesh):
        arrays = jax.device_put(W, w_spec), jax.device_put(X, x_spec)
        plain = jax.jit(_step)(*arrays)
        result = srjit.srjit(_step, recipe=recipe)(*arrays, sr_key=3)
        assert [r.sharding.spec for r in jax.tree.leaves(result)] == [
            r.sharding.spec for r in jax.tree.leaves(plain)
        ]
    # tanh and the sums of the loss are float32, so that codes may differ where they are at a tie.
    _close(result[0], alone[0], exact=False)
    for a, b in zip(result[1], alone[1], strict=True):
        if recipe == "int8":
            assert (np.asarray(a) != np.asarray(b)).mean() < 0.1
        np.testing.assert_allclose(a, b, rtol=0, atol=0.05 * float(abs(b).max()))


def test_sharded_rows_cost_no_collective_but_that_of_amax():
    mesh = _mesh(AxisType.Auto)
    rows, whole = NamedSharding(mesh, PartitionSpec("d")), NamedSharding(mesh, WHOLE)
    forward = srjit.srjit(
        lambda w, x: x @ w, recipe="int8-qat", in_shardings=(whole, rows), out_shardings=rows
    )
    text = forward.lower(W, X).compile().as_text()
    lines = [line for line in text.splitlines() if "=" in line]
    collectives = [
        line
        for line in lines
        if any(f" {op}(" in line for op in ("all-gather", "all-to-all", "collective-permute"))
    ]
    assert collectives == []
    reductions = [line for line in lines if " all-reduce(" in line or " all-reduce-start(" in line]
    assert len(reductions) == 1
    assert "[] all-reduce" in reductions[0]  # of one number


# ------------------------------------------------------------------------------------ shard_map


def _per_shard(check: bool, sharded: bool, inside: bool) -> np.ndarray:
    """The noise of dgrad on each of 8 devices, whose shards (or copies) are all the same."""
    mesh = _mesh(AxisType.Auto)
    spec = PartitionSpec("d") if sharded else WHOLE
    ct = jnp.concatenate([COTANGENT] * 8) if sharded else COTANGENT

    def tossing(w: jax.Array, x: jax.Array, ct: jax.Array) -> jax.Array:
        return ((x @ w) * (ct + lax.stop_gradient(0 * x))).sum()

    def local(w: jax.Array, x: jax.Array, ct: jax.Array) -> jax.Array:
        _, g = jax.value_and_grad(lambda x: tossing(w, x, ct))(x)
        return g[None] if sharded else g[None] + 0 * lax.axis_index("d")

    def step(w: jax.Array, x: jax.Array, ct: jax.Array) -> jax.Array:
        f = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(WHOLE, spec, spec),
            out_specs=PartitionSpec("d"),
            check_vma=check,
        )
        return f(w, x, ct)

    def outside(w: jax.Array, x: jax.Array, ct: jax.Array) -> jax.Array:
        f = jax.shard_map(
            lambda w, x, ct: tossing(w, x, ct)[None],
            mesh=mesh,
            in_specs=(WHOLE, spec, spec),
            out_specs=PartitionSpec("d"),
            check_vma=check,
        )
        return f(w, x, ct).sum()

    args = EYE, jnp.zeros_like(ct), ct
    if inside:
        g = jax.jit(lambda *a: srjit.transform(step, recipe="int8")(*a, sr_key=1))(*args)
    else:
        f = srjit.transform(outside, recipe="int8")
        g = jax.jit(jax.grad(lambda x: f(EYE, x, ct, sr_key=1)))(args[1])
    return np.asarray(g).reshape(8, N, 2)


@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("inside", [True, False], ids=["grad inside", "grad outside"])
def test_shards_have_noise_of_their_own(check: bool, inside: bool):
    independent(*map(coins, _per_shard(check, sharded=True, inside=inside)))


@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
def test_copies_have_the_same_noise(check: bool):
    copies = _per_shard(check, sharded=False, inside=True)
    for other in copies[1:]:
        np.testing.assert_array_equal(other, copies[0])
    coins(copies[0])


def test_what_a_collective_makes_equal_has_the_same_noise_on_every_device():
    """Data-parallel gradients, averaged and multiplied again: replicas must not drift apart."""
    mesh = _mesh(AxisType.Auto)

    def local(w: jax.Array, x: jax.Array) -> jax.Array:
        def loss(w: jax.Array) -> jax.Array:
            h = lax.pmean(x @ w, "d")  # the same everywhere
            return (jnp.tanh(h @ w) ** 2).sum()

        value, grad = jax.value_and_grad(loss)(w)
        return lax.all_gather(lax.pmean(grad, "d"), "d") + 0 * value

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        rows = PartitionSpec("d")
        f = jax.shard_map(
            local, mesh=mesh, in_specs=(WHOLE, rows), out_specs=WHOLE, check_vma=False
        )
        return f(w, x)

    noisy = srjit.recipes.get("int8").with_rounding(activations="stochastic", weights="stochastic")
    jaxpr = srjit.srjit(step, recipe=noisy).rewritten(normal(8, 8), normal(16, 8))
    (shards,) = equations(jaxpr, "shard_map")
    assert equations(shards.params["jaxpr"], "axis_index")  # x differs, and so does its noise
    grads = srjit.srjit(step, recipe=noisy)(normal(8, 8), normal(16, 8), sr_key=0)
    for other in np.asarray(grads)[1:]:
        np.testing.assert_array_equal(other, np.asarray(grads)[0])


@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
def test_what_shards_compute_is_not_taken_for_what_the_whole_is(check: bool):
    mesh = _mesh(AxisType.Auto)
    rows = PartitionSpec("d")

    def step(w: jax.Array, x: jax.Array) -> Any:
        local = jax.shard_map(
            lambda x: jnp.cumsum(x, 0), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=check
        )
        return jnp.cumsum(x, 0) @ w, local(x) @ w

    whole, local = srjit.srjit(step, recipe="int8")(W, X, sr_key=0)
    for got, expected in zip((whole, local), jax.jit(step)(W, X), strict=True):
        assert jnp.linalg.norm(got - expected) < 0.03 * jnp.linalg.norm(expected)


@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
def test_a_copy_that_meets_a_shard_has_the_same_noise_on_every_device(check: bool):
    """JAX types the copy as varying (pvary) where it is multiplied with a shard."""
    noisy = srjit.recipes.get("int8").with_rounding(activations="stochastic", weights="stochastic")

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        rows = PartitionSpec("d")
        f = jax.shard_map(
            lambda w, x: x @ w,
            mesh=_mesh(AxisType.Auto),
            in_specs=(WHOLE, rows),
            out_specs=rows,
            check_vma=check,
        )
        return f(w, x)

    unit = jnp.zeros((8, 24)).at[:, 0].set(1.0)  # every shard reads the codes of w's first row
    rounded = np.asarray(srjit.srjit(step, recipe=noisy)(W, unit, sr_key=0))
    assert (rounded[0] != W[0]).any()
    for other in rounded[1:]:
        np.testing.assert_array_equal(other, rounded[0])


@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("inside", [True, False], ids=["grad inside", "grad outside"])
def test_random_rotations_cancel_on_every_device(check: bool, inside: bool):
    """Rows are sharded and weights are not: signs that followed the shards would not be shared."""
    mesh, rows = _mesh(AxisType.Auto), PartitionSpec("d")
    w, x = normal(32, 16) / 5, normal(8 * 32, 32, seed=1)

    def local(w: jax.Array, x: jax.Array) -> Any:
        if not inside:
            return ((x @ w) ** 2).sum()[None]
        return jax.value_and_grad(lambda x: ((x @ w) ** 2).sum())(x)[1]

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        f = jax.shard_map(local, mesh=mesh, in_specs=(WHOLE, rows), out_specs=rows, check_vma=check)
        return f(w, x).sum() if not inside else f(w, x)

    f = srjit.transform(step, recipe="nvfp4-eden")
    if inside:
        got = jax.jit(lambda w, x: f(w, x, sr_key=1))(w, x)
    else:
        got = jax.jit(jax.grad(lambda x, w: f(w, x, sr_key=1)))(x, w)
    exact = np.asarray(2 * (x @ w) @ w.T)
    off = np.linalg.norm(np.asarray(got) - exact, axis=1) / np.linalg.norm(exact, axis=1)
    # Of a shard whose operands have other signs, the error of a row is more than all of it.
    assert np.mean(off.reshape(8, 32), axis=1).max() < 0.5
