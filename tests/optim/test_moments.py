"""Moments of an optimizer in 8 bits: right on average, never zero under a root, small."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from srjit import optim
from srjit.numerics.random_bits import as_key
from steps import KEY, same

SHAPE = (32, 200)  # a block of 72 at the end of every row
PARAMS = {"w": jnp.ones(SHAPE, jnp.bfloat16), "b": jnp.ones(8, jnp.bfloat16)}
SIGMAS = 5.5
OPTIMIZERS = {
    "adamw": (optax.adamw(1e-3), {"mu": False, "nu": True}),
    "amsgrad": (optax.amsgrad(1e-3), {"mu": False, "nu": True, "nu_max": True}),
    "yogi": (optax.yogi(1e-3), {"mu": False, "nu": True}),
    "lamb": (optax.lamb(1e-3), {"mu": False, "nu": True}),
    "lion": (optax.lion(1e-3), {"mu": False}),
    "sgd": (optax.sgd(1e-3, momentum=0.9), {"trace": False}),
    "muon": (optax.contrib.muon(1e-3), {"mu": False}),
    "if finite": (optax.apply_if_finite(optax.adam(1e-3), 3), {"mu": False, "nu": True}),
    "z is no moment": (optax.contrib.schedule_free_adamw(1e-3), {"nu": True}),
}


def is_coded(x: Any) -> bool:
    return isinstance(x, optim.PositiveArray) or hasattr(x, "codes")


def coded(state: Any) -> dict[str, Any]:
    """The moments that are codes, by the names that the optimizer gives them."""
    leaves = jax.tree_util.tree_leaves_with_path(state.inner, is_leaf=is_coded)
    names = [[getattr(k, "name", None) for k in path] for path, _ in leaves]
    return {
        next(n for n in reversed(name) if n and n not in ("inner_state", "inner_states")): x
        for name, (_, x) in zip(names, leaves, strict=True)
        if is_coded(x)
    }


def gradients(step: int, dtype: Any = jnp.float32) -> Any:
    draw = lambda i, p: jax.random.normal(jax.random.fold_in(KEY, 2 * step + i), p.shape, dtype)  # noqa: E731
    return {name: draw(i, p) for i, (name, p) in enumerate(PARAMS.items())}


@pytest.mark.crossed(1, most=6)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_a_root_is_taken_of_is_positive_and_copies_of_parameters_are_no_moments(name: str):
    plain, expected = OPTIMIZERS[name]
    optimizer = optim.quantized_moments(plain)
    params = jax.tree.map(lambda p: p.astype(jnp.float32), PARAMS)
    state = optimizer.init(params)
    assert {k: isinstance(x, optim.PositiveArray) for k, x in coded(state).items()} == expected
    update = jax.jit(optimizer.update)
    for step in range(2):
        updates, state = update(gradients(step), state, params)
    assert {k: isinstance(x, optim.PositiveArray) for k, x in coded(state).items()} == expected
    assert all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))


def test_positive_numbers_round_to_their_neighbours_with_the_probability_of_what_is_between():
    """Every gap of the grid, at four places; the largest number of each block is 1."""
    grid = 2.0 ** np.arange(-15, 1)[:, None] * (1 + np.arange(16) / 16) / 1.9375
    grid = np.sort(grid.ravel())
    fraction = np.array([0.0, 0.2, 0.5, 0.9])
    x = grid[:-1, None] + np.diff(grid)[:, None] * fraction
    draws = 2048
    block = np.append(x.ravel(), 1.0).astype(np.float32)
    rows = jnp.broadcast_to(jnp.asarray(block), (draws, block.size))
    q = optim.PositiveArray.of(rows, 1, block.size, as_key(KEY))
    codes = np.asarray(q.codes)[:, :-1].reshape(draws, *x.shape)
    low = np.arange(255)[:, None]
    assert np.isin(codes - low, (0, 1)).all()
    ups = (codes - low).sum(axis=0)
    spread = np.sqrt(draws * fraction * (1 - fraction)) + 1e-3 * draws * (fraction == 0)
    assert (np.abs(ups - draws * fraction) <= SIGMAS * spread + 0.01 * draws * 2**-4).all()
    # The largest never moves, and comes back but for the rounding of 1/1.9375 and of a product.
    assert (np.asarray(q.codes)[:, -1] == 255).all()
    np.testing.assert_allclose(np.asarray(q.dequantize())[:, -1], 1.0, rtol=2.0**-23)


def test_zero_is_only_where_a_whole_block_is_and_what_is_not_finite_stays_visible():
    x = np.zeros((4, 256), np.float32)
    x[0, 0], x[1, 3], x[2, 200], x[3, 5] = 1.0, np.nan, np.inf, 1e-30
    back = np.asarray(optim.PositiveArray.of(jnp.asarray(x), 1, 128, as_key(0)).dequantize())
    assert (back[0, :128] > 0).all() and not back[0, 128:].any()
    assert np.isnan(back[1, :128]).all() and not back[1, 128:].any()
    assert not back[2, :128].any() and not np.isfinite(back[2, 128:]).any()
    assert (back[3, :128] > 0).all() and math.isclose(back[3, 5], 1e-30, rel_tol=1e-6)


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_moments_are_right_on_average(format: Any):
    """The mean over 6,400 elements of what codes stand for, against float32 moments."""
    plain = optax.scale_by_adam(b2=0.9)
    narrow = optim.quantized_moments(plain, format, KEY)
    params = jax.tree.map(lambda p: p.astype(jnp.float32), PARAMS)
    exact, state = plain.init(params), narrow.init(params)
    update = jax.jit(narrow.update)
    for step in range(20):
        _, exact = plain.update(gradients(step), exact)
        _, state = update(gradients(step), state)
    assert int(state.steps) == 20
    for name, moment in coded(state).items():
        off = np.asarray(moment.dequantize() - getattr(exact, name)["w"], np.float64)
        assert abs(off.mean()) < SIGMAS * off.std() / math.sqrt(off.size), name
        size = np.asarray(getattr(exact, name)["w"], np.float64)
        assert 0.001 < off.std() / np.sqrt((size**2).mean()) < 0.15, name


def test_state_takes_a_third_of_float32s():
    """Parameters in bfloat16 and two moments in 8 bits, over 12 bytes a parameter."""
    state = optim.quantized_moments(optax.adamw(1e-3)).init({"w": jnp.ones((512, 512))})
    moments = sum(x.nbytes for m in coded(state).values() for x in jax.tree.leaves(m))
    assert (2 * 512**2 + moments) / (12 * 512**2) <= 0.34


def test_steps_repeat_and_differ_and_devices_draw_the_same():
    optimizer = optim.quantized_moments(optax.adam(1e-3), key=KEY)
    first = optimizer.init(PARAMS)
    update = jax.jit(optimizer.update)
    _, one = update(gradients(0), first)
    assert same(one, update(gradients(0), first)[1])
    other = optim.quantized_moments(optax.adam(1e-3), key=1)
    _, another = other.update(gradients(0), other.init(PARAMS))
    assert not same(coded(one)["mu"].codes, coded(another)["mu"].codes)
    later = first._replace(steps=jnp.uint32(7))
    assert not same(coded(one)["nu"].codes, coded(update(gradients(0), later)[1])["nu"].codes)

    mesh = jax.make_mesh((8,), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    put = lambda x: jax.device_put(x, rows)  # noqa: E731
    sharded = jax.tree.map(lambda x: put(x) if x.ndim else x, (gradients(0), first.inner))
    _, spread = update(sharded[0], first._replace(inner=sharded[1]))
    assert same(one, spread)


def test_it_goes_with_parameters_that_round_stochastically_under_scan():
    optimizer = optim.stochastic_rounding(optim.quantized_moments(optax.adamw(1e-2)))

    def step(carry: Any, n: jax.Array) -> Any:
        params, state = carry
        updates, state = optimizer.update(gradients(0, jnp.bfloat16), state, params)
        return (optax.apply_updates(params, updates), state), n

    (params, state), _ = jax.lax.scan(step, (PARAMS, optimizer.init(PARAMS)), jnp.arange(3))
    assert params["w"].dtype == jnp.bfloat16 and not same(params["w"], PARAMS["w"])
    assert int(state.inner.steps) == 3


def test_bad_input_says_what_to_do():
    with pytest.raises(ValueError, match="int8"):
        optim.quantized_moments(optax.adam(1e-3), "int3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="block=0"):
        optim.quantized_moments(optax.adam(1e-3), block=0)
    optimizer = optim.quantized_moments(optax.adam(1e-3))
    with pytest.raises(TypeError, match="call its init"):
        optimizer.update(gradients(0), optax.adam(1e-3).init(PARAMS), PARAMS)
