"""Histories of delayed scales in loops: one a layer, and the largest of all trips over data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import srjit
from srjit.planning.noise import HISTORY

LAYERS, WIDTH = 3, 16
W = jax.random.normal(jax.random.key(0), (WIDTH, WIDTH)) / 4
WS = jax.random.normal(jax.random.key(1), (LAYERS, WIDTH, WIDTH)) / 4
BASE = jax.random.normal(jax.random.key(2), (8, WIDTH))


def batches(*sizes: float) -> jax.Array:
    return jnp.stack([BASE * size for size in sizes])


def accumulated(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The sum of the gradients of micro-batches."""

    def step(w: Any, xs: Any) -> Any:
        add = lambda g, x: (g + jax.grad(loss)(w, x), None)  # noqa: E731
        return lax.scan(add, jnp.zeros_like(w), xs)[0]

    return step


def square(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum((x @ w) ** 2)


def stacked(ws: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum(lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0] ** 2)


def by_position(w: jax.Array, xs: jax.Array) -> jax.Array:
    add = lambda i, g: g + jax.grad(square)(w, lax.dynamic_index_in_dim(xs, i, 0, False))  # noqa: E731
    return lax.fori_loop(0, len(xs), add, jnp.zeros_like(w))


def mapped(w: jax.Array, xs: jax.Array) -> jax.Array:
    return lax.map(lambda x: jax.grad(square)(w, x), xs)


def counted(w: jax.Array, xs: jax.Array) -> jax.Array:
    body = lambda c: (c[0] + 1, jnp.tanh(c[1] @ w))  # noqa: E731
    return lax.while_loop(lambda c: c[0] < 4, body, (0, xs[0]))[1]


def uncounted(w: jax.Array, xs: jax.Array) -> jax.Array:
    body = lambda c: (c[0] * 2, jnp.tanh(c[1] @ w))  # noqa: E731
    return lax.while_loop(lambda c: c[0] < 9, body, (1, xs[0]))[1]


def trained(w: jax.Array, xs: jax.Array) -> jax.Array:
    """Weights that a loop over data carries are no layers."""
    return lax.scan(lambda w, x: (w - 1e-3 * jax.grad(square)(w, x), None), w, xs)[0]


def side_by_side(ws: jax.Array, xs: jax.Array) -> Any:
    """A loop over weights whose backward loop has nothing but their gradients."""
    return jax.grad(lambda ws: jnp.sum(lax.map(lambda w: xs[0] @ w, ws) ** 2))(ws)


# The program, its weights, and the shapes that its histories begin with.
PROGRAMS: dict[str, tuple[Callable[..., Any], jax.Array, set[tuple[int, ...]]]] = {
    "micro-batches": (accumulated(square), W, {()}),
    "by position": (by_position, W, {()}),
    "map": (mapped, W, {()}),
    "counted while": (counted, W, {()}),
    "uncounted while": (uncounted, W, {()}),
    "carried weights": (trained, W, {()}),
    "layers": (lambda ws, xs: jax.grad(stacked)(ws, xs[0]), WS, {(LAYERS,)}),
    "layers in micro-batches": (accumulated(stacked), WS, {(LAYERS,)}),
    "layers side by side": (side_by_side, WS, {(LAYERS,)}),
}


@pytest.mark.crossed(1, most=4)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_both_doors_have_the_same_histories_of_loops(name: str):
    fun, w, shapes = PROGRAMS[name]
    xs = batches(1, 8, 64, 1)
    doors = [srjit.srjit(fun, recipe="fp8-delayed", layer=door) for door in ("jaxpr", "stablehlo")]
    states = [f.init_state(w, xs) for f in doors]
    assert {v.shape[:-1] for v in states[0].values()} == shapes
    for key in (1, 2):
        results = [f(w, xs, sr_key=key, sr_state=s) for f, s in zip(doors, states, strict=True)]
        states = [state for _, state in results]
        assert states[0].keys() == states[1].keys()
        jax.tree.map(np.testing.assert_array_equal, *results)


def counter(ws: jax.Array, xs: jax.Array) -> jax.Array:
    return lax.fori_loop(0, LAYERS, lambda i, h: jnp.tanh(h @ ws[i]), xs[0])


def taken(ws: jax.Array, xs: jax.Array) -> jax.Array:
    body = lambda c: (c[0] + 1, jnp.tanh(c[1] @ jnp.take(ws, c[0], axis=0)))  # noqa: E731
    return lax.while_loop(lambda c: c[0] < LAYERS, body, (0, xs[0]))[1]


def differentiated(ws: jax.Array, xs: jax.Array) -> jax.Array:
    """In the backward loop they are stacked."""

    def loss(ws: jax.Array) -> jax.Array:
        read = lambda h, i: (jnp.tanh(h @ lax.dynamic_index_in_dim(ws, i, 0, False)), None)  # noqa: E731
        return jnp.sum(lax.scan(read, xs[0], jnp.arange(LAYERS))[0])

    return jax.grad(loss)(ws)


def one_of_them(ws: jax.Array, xs: jax.Array) -> jax.Array:
    """It is read before the loop."""
    return counted(jnp.take(ws, jnp.int32(xs[0, 0, 0]), axis=0), xs)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("door", ["jaxpr", "stablehlo"])
@pytest.mark.parametrize("fun", [counter, taken, differentiated, one_of_them, by_position])
def test_a_history_of_all_layers_is_said(fun: Callable[..., Any], door: str):
    function = srjit.srjit(fun, recipe="fp8-delayed", layer=door)
    notes = function.explain(W if fun is by_position else WS, batches(1, 8)).notes
    said = [note.partition(":")[0] for note in notes if "by an index (ws[i])" in note]
    assert said == ([] if fun in (one_of_them, by_position) else ["sites 0"])


@pytest.mark.parametrize("name", ["micro-batches", "by position"])
def test_micro_batches_may_come_in_any_order_and_number(name: str):
    fun, w, _ = PROGRAMS[name]
    function = srjit.srjit(fun, recipe="fp8-delayed")
    first = batches(1, 8, 64, 1)
    _, state = function(w, first, sr_key=0, sr_state=function.init_state(w, first))
    for sizes in ((64, 1, 1, 8), (64, 8), (1, 64, 8, 1, 1, 2)):
        xs = batches(*sizes)
        got, after = function(w, xs, sr_key=1, sr_state=state)
        expected = fun(w, xs)
        off = jnp.linalg.norm(got - expected) / jnp.linalg.norm(expected)
        assert off < 0.15, sizes
        assert {k: v.shape for k, v in after.items()} == {k: (HISTORY,) for k in state}


@pytest.mark.parametrize("name", ["micro-batches", "map"])
def test_a_history_has_the_largest_of_all_trips(name: str):
    fun, w, _ = PROGRAMS[name]
    function, xs = srjit.srjit(fun, recipe="fp8-delayed"), batches(1, 8, 64, 1)
    _, state = function(w, xs, sr_key=0, sr_state=function.init_state(w, xs))
    assert float(jnp.abs(xs).max()) in {float(v[0]) for v in state.values()}
    bad = xs.at[1, 0, 0].set(jnp.nan)  # which is not remembered
    _, after = function(w, bad, sr_key=0, sr_state=state)
    assert all(np.isfinite(v).all() for v in after.values())


def test_layers_in_micro_batches_have_the_largest_of_the_micro_batches():
    function, xs = srjit.srjit(accumulated(stacked), recipe="fp8-delayed"), batches(1, 0.1, 32)
    _, state = function(WS, xs, sr_key=0, sr_state=function.init_state(WS, xs))
    firsts = [v[:, 0] for v in state.values()]
    assert any(np.array_equal(v, np.abs(WS).max((1, 2))) for v in firsts)
    assert any(float(v[0]) == float(jnp.abs(xs).max()) and (v[1:] <= 1).all() for v in firsts)


def test_a_loop_without_trips_remembers_nothing():
    function, xs = srjit.srjit(accumulated(square), recipe="fp8-delayed"), batches(1, 2)
    state = function.init_state(W, xs)
    _, after = function(W, xs[:0], sr_key=0, sr_state=state)
    jax.tree.map(np.testing.assert_array_equal, after, state)
