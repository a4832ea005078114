"""Parameters in narrow floats: a step adds in float32 and writes back stochastically."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import srjit
from srjit import recipes
from steps import same

BF16 = jnp.bfloat16
N = 4096
SIGMAS = 5.5  # of a Gaussian: exceeded once in 2.6e7


def step_of(fun: Callable[..., Any], **options: Any) -> Any:
    return srjit.srjit(fun, **{"recipe": "bf16-sr", **options})


def became(fun: Any, *args: Any, **kwargs: Any) -> dict[str, str]:
    return {w.path: w.status for w in fun.explain(*args, **kwargs).write_backs}


def mean(x: Any) -> float:
    return float(np.asarray(x, np.float64).mean())


def sgd(w: Any, g: Any) -> Any:
    return jax.tree.map(lambda w, g: w - 1e-3 * g, w, g)


# ------------------------------------------------------------------------------- known answers


def walk(start: float, update: float, steps: int) -> tuple[float, float]:
    """Mean and variance after ``steps`` stochastic roundings to bfloat16: a Markov chain."""
    grid = [start]
    while grid[-1] < start * 4:
        grid.append(grid[-1] + 2.0 ** (math.floor(math.log2(grid[-1])) - 7))
    w = np.array(grid)
    up = np.append(update / np.diff(w), 0.0)
    chance = np.zeros_like(w)
    chance[0] = 1.0
    for _ in range(steps):
        moved = chance * up
        chance = chance - moved + np.append(0.0, moved[:-1])
    first = chance @ w
    return float(first), float(chance @ (w - first) ** 2)


@pytest.mark.parametrize(("start", "steps"), [(1.0, 1000), (100.0, 10_000)])
def test_small_updates_accumulate_that_nearest_rounding_loses(start: float, steps: int):
    def step(w: jax.Array, u: jax.Array) -> jax.Array:
        return w + u

    def trained(step: Any) -> jax.Array:
        body = lambda i, w: step(w, u, sr_key=i)  # noqa: E731
        return lax.fori_loop(0, steps, body, jnp.full(N, start, BF16))

    u = jnp.full(N, 0.001, BF16)
    assert bool(jnp.all(step(jnp.full(N, start, BF16), u) == start))  # nearest stays for ever
    ended = np.asarray(trained(step_of(step)), np.float64)
    expected, variance = walk(start, float(u[0]), steps)
    assert abs(ended.mean() - expected) < SIGMAS * math.sqrt(variance / N)
    # A sum of a thousand bounded steps: its kurtosis is that of a Gaussian to some percent.
    assert abs(ended.var() / variance - 1) < SIGMAS * math.sqrt(2.2 / N)
    known = {1.0: (2.00, 0.09), 100.0: (109.9, 2.2)}[start]
    assert abs(ended.mean() - known[0]) < known[1]
    assert abs(math.sqrt(variance) / known[1] - 1) < 0.1


@pytest.mark.parametrize("dtype", [BF16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_one_write_back_goes_up_as_often_as_its_fraction_says(dtype: Any):
    n = 2**14
    step = float(jnp.finfo(dtype).eps)  # from 1 on
    eighths = np.arange(8)
    w = jnp.ones((8, n), dtype)
    u = jnp.broadcast_to((eighths[:, None] * step / 8), (8, n)).astype(jnp.float32)

    def cast(w: jax.Array, u: jax.Array) -> jax.Array:
        return (w.astype(jnp.float32) + u).astype(dtype)

    out = np.asarray(step_of(cast)(w, u, sr_key=0), np.float64)
    assert set(np.unique(out[1:])) == {1.0, 1.0 + step} and set(out[0]) == {1.0}
    ups = ((out - 1) / step).sum(axis=1)
    p = eighths / 8
    assert np.all(np.abs(ups - n * p) <= SIGMAS * np.sqrt(n * p * (1 - p)))


# ---------------------------------------------------------------------------- whatever optimizer


def adamw(w: Any, g: jax.Array) -> Any:
    optimizer = optax.adamw(1e-3, b2=0.95, eps=1e-3)
    updates, _ = optimizer.update(g, optimizer.init(w), w)
    return optax.apply_updates(w, updates)


def momentum(w: jax.Array, g: jax.Array) -> jax.Array:
    optimizer = optax.sgd(1e-3, momentum=0.9)
    updates, _ = optimizer.update(g, optimizer.init(w), w)
    return optax.apply_updates(w, updates)  # type: ignore[return-value]


def wide_updates(w: jax.Array, g: jax.Array) -> jax.Array:
    return optax.apply_updates(w, -1e-3 * g.astype(jnp.float32))  # type: ignore[return-value]


def decayed(w: jax.Array, g: jax.Array) -> jax.Array:
    return w - 1e-3 * g - 1e-3 * w


def through_float32(w: jax.Array, g: jax.Array) -> jax.Array:
    wide = w.astype(jnp.float32)
    return (wide * (1 - 5e-4) - 1e-3 * g).astype(w.dtype)


def jitted(w: jax.Array, g: jax.Array) -> jax.Array:
    return jax.jit(lambda w, g: jax.jit(lambda u: w - u)(1e-3 * g))(w, g)


def skipping(w: jax.Array, g: jax.Array) -> jax.Array:
    return lax.cond(jnp.all(jnp.isfinite(g)), lambda: w - 1e-3 * g, lambda: w)


def choosing(w: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(g), w - 1e-3 * g, w)


def clipping(w: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.clip(w - 1e-3 * g, -2, 2)


def flattened(w: jax.Array, g: jax.Array) -> jax.Array:
    return (w.ravel() - 1e-3 * g.T.ravel()).reshape(w.shape)


def layer_by_layer(w: jax.Array, g: jax.Array) -> jax.Array:
    return lax.scan(lambda _, wg: (None, wg[0] - 1e-3 * wg[1]), None, (w, g))[1]


def several_steps(w: jax.Array, g: jax.Array) -> jax.Array:
    return lax.scan(lambda w, _: (w - 1e-3 * g, None), w, length=3)[0]


def in_a_while_loop(w: jax.Array, g: jax.Array) -> jax.Array:
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] - 1e-3 * g), (0, w))[1]


STEPS = [
    adamw, momentum, wide_updates, decayed, through_float32, jitted, skipping, choosing,
    clipping, flattened, layer_by_layer, several_steps, in_a_while_loop,
]  # fmt: skip


@pytest.mark.crossed(1, most=8)
@pytest.mark.parametrize("fun", STEPS)
def test_a_step_moves_parameters_by_its_update_on_average(fun: Callable[..., Any]):
    w, g = jnp.ones((8, N), BF16), jnp.ones((8, N), BF16)
    step = step_of(fun, strict=True)
    assert became(step, w, g) == {"w": "stochastic"}
    moved = np.asarray(step(w, g, sr_key=0), np.float64)
    exact = mean(fun(w.astype(jnp.float32), g.astype(jnp.float32)))
    # Below 1 neighbours are 2^-8 apart. Each constant of a bfloat16 program, and each operation on
    # the way to the update, is off by up to 2^-9.
    updates = 3 if fun in (several_steps, in_a_while_loop) else 1
    threshold = SIGMAS * 2.0**-9 * math.sqrt(updates / w.size) + 4 * 2.0**-9 * (1 - exact)
    assert 9e-4 < 1 - exact < 4e-3 and threshold < 2e-4
    assert abs(moved.mean() - exact) < threshold
    assert bool(jnp.all(fun(w, g) == 1))  # to nearest nothing moves


def test_nothing_is_rounded_between_a_parameter_and_its_write_back():
    w = jnp.ones(N, BF16)
    with jax.disable_jit():  # compiled together, operations may keep more bits than they have
        moved = step_of(decayed)(w, w, sr_key=0)
    p = 0.002 * 2**8  # of falling; 0.001 if the first subtraction were rounded, which loses it
    assert abs(np.mean(np.asarray(moved, np.float64) < 1) - p) < SIGMAS * math.sqrt(p / N) + 2e-3


def test_every_layer_and_every_step_of_a_loop_has_noise_of_its_own():
    g = jnp.ones((4, N), BF16)
    rows = step_of(layer_by_layer)(jnp.ones((4, N), BF16), g, sr_key=0)
    assert len({row.tobytes() for row in np.asarray(rows)}) == 4
    once, thrice = (
        np.asarray(step_of(f)(jnp.ones(N, BF16), jnp.ones(N, BF16), sr_key=0), np.float64)
        for f in (lambda w, g: w - 1e-3 * g, several_steps)
    )
    # One noise for all three steps would move the same elements again and again: by more than one
    # place none of them but those, all of them or none.
    falls = (1 - thrice) * 2**8
    assert set(falls) == {0.0, 1.0, 2.0, 3.0} and not np.array_equal(once, thrice)


def test_moments_in_bfloat16_decay_as_they_should():
    def step(w: jax.Array, m: jax.Array, g: jax.Array) -> Any:
        m = m + 0.001 * (g - m)
        return w - 1e-3 * m, m

    w, g, m = jnp.ones(N, BF16), jnp.zeros(N, BF16), jnp.full(N, 1.5, BF16)
    report = became(step_of(step), w, m, g)
    assert report == {"w": "stochastic", "m": "stochastic"}
    _, once = step_of(step)(w, m, g, sr_key=0)
    p = 0.0015 * 2**7  # of going down one place
    assert abs(mean(once) - (1.5 - 0.0015)) < SIGMAS * 2.0**-7 * math.sqrt(p * (1 - p) / N) + 3e-6
    assert bool(jnp.all(step(w, m, g)[1] == 1.5))
    only = dataclasses.replace(recipes.get("bf16-sr"), moments=None)
    assert became(step_of(step, recipe=only), w, m, g) == {"w": "stochastic"}


def operations(step: Any, *args: Any) -> set[tuple[str, str]]:
    """Arithmetic of the rewritten program, and its dtypes."""
    eqns = step.rewritten(*args, sr_key=0).eqns
    found = {(e.primitive.name, e.outvars[0].aval.dtype.name) for e in eqns}
    return {(name, dtype) for name, dtype in found if name in ("mul", "add", "sub")}


@pytest.mark.parametrize("moments", ["stochastic", None])
def test_an_update_that_is_an_argument_is_not_what_is_written(moments: Any):
    """Nor is anything on the way from the parameter rounded, which the update is nearer than."""

    def apply(p: jax.Array, u: jax.Array) -> jax.Array:
        return p * 0.75 - u

    p, u = jnp.full(N, 1 + 2.0**-7, BF16), jnp.full(N, 1e-4, BF16)
    recipe = dataclasses.replace(recipes.get("bf16-sr"), moments=moments)
    step = step_of(apply, recipe=recipe)
    assert became(step, p, u) == {"p": "stochastic"}
    assert operations(step, p, u) >= {("mul", "float32"), ("sub", "float32")}
    exact = 0.75 * (1 + 2.0**-7) - float(u[0])
    assert abs(mean(step(p, u, sr_key=0)) - exact) < SIGMAS * 2.0**-9 / math.sqrt(N)


def test_a_moment_is_told_from_the_gradient_that_it_averages():
    def step(p: Any, m: Any, g: Any) -> Any:
        m = 0.75 * m + g
        return p - 1e-3 * m, m

    w = jnp.ones(N, BF16)
    assert became(step_of(step), w, w, w) == {"p": "stochastic", "m": "stochastic"}
    assert ("mul", "float32") in operations(step_of(lambda m, g: 0.75 * m + g), w, w)


def test_a_state_that_holds_parameters_and_moments_tells_them_apart():
    def step(state: Any, g: Any) -> Any:
        m = 0.75 * state["opt_state"] + g
        return {"params": state["params"] - 1e-3 * m, "opt_state": m}

    w = jnp.ones(N, BF16)
    state = {"params": w, "opt_state": w}
    kinds = {b.path: b.kind for b in step_of(step).explain(state, w).write_backs}
    assert kinds == {"state['params']": "parameter", "state['opt_state']": "moment"}
    only = dataclasses.replace(recipes.get("bf16-sr"), moments=None)
    found = became(step_of(step, recipe=only), state, w)
    assert found == {"state['params']": "stochastic", "state['opt_state']": "kept"}


def test_what_is_made_of_a_new_parameter_reads_it_as_it_was_written():
    p, g = jnp.ones(N, BF16), jnp.full(N, 1e-3, BF16)

    def several(p: Any, g: Any) -> Any:
        n = p - g
        return n - p, n * 2, n

    d, m, n = step_of(several)(p, g, sr_key=0)
    assert not same(n, p)
    assert same(d, n - p) and same(m, n * 2)


def test_compensated_sums_keep_what_the_parameter_lost():
    def kahan(p: Any, c: Any, g: Any) -> Any:
        u = -g - c
        n = p + u
        return n, (n - p) - u

    p, c, g = jnp.ones(64, BF16), jnp.zeros(64, BF16), jnp.full(64, 1e-3, BF16)
    step = step_of(kahan)
    for number in range(200):
        p, c = step(p, c, g, sr_key=number)
    total = np.asarray(p, np.float64) - np.asarray(c, np.float64)
    # All that is lost is what c itself is rounded by: less than 2^-16 a step, to both sides.
    lost = total - (1 - 200 * float(g[0]))
    assert np.abs(lost).max() < SIGMAS * 2.0**-16 * math.sqrt(200)


def test_a_gradient_with_weight_decay_is_no_parameter():
    def gradient(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.grad(lambda w: (jnp.tanh(x @ w)).sum() + (0.5 * 1e-2 * w * w).sum())(w)

    w = jnp.ones((16, 16), BF16)
    assert "stochastic" not in became(step_of(gradient), w, w).values()


def test_constants_that_bfloat16_has_rounded_to_one_are_said():
    def decays(p: jax.Array, g: jax.Array) -> jax.Array:
        return p * (1 - 1e-4) - 1e-3 * g

    w = jnp.ones(N, BF16)
    (note,) = [n for n in step_of(decays).explain(w, w).notes if "multiplied by 1" in n]
    assert note.startswith("p: ") and "Compute with it in float32" in note
    assert not [n for n in step_of(sgd).explain(w, w).notes if "multiplied by 1" in n]


def test_long_sums_are_read_too():
    def step(p: jax.Array, g: jax.Array) -> jax.Array:
        for i in range(600):
            p = p - g * (1e-5 * (i + 1))
        return p

    w = jnp.ones(8, BF16)
    assert became(step_of(step), w, w) == {"p": "stochastic"}


# --------------------------------------------------------------------------- what is not written


def test_write_backs_share_no_noise_with_each_other_or_between_steps():
    w = {"a": jnp.ones(N, BF16), "b": jnp.ones(N, BF16)}
    step = step_of(sgd)
    outs = [step(w, w, sr_key=key) for key in range(2)]
    fell = [np.asarray(out[k], np.float64) < 1 for out in outs for k in "ab"]
    p = 0.00099945068359375 * 2**8  # by which it is below 1, in steps
    for i, a in enumerate(fell):
        assert abs(a.mean() - p) < SIGMAS * math.sqrt(p * (1 - p) / N)
        for b in fell[:i]:
            assert abs(np.corrcoef(a, b)[0, 1]) < SIGMAS / math.sqrt(N)
    assert same(step(w, w, sr_key=0), outs[0])


def test_examples_of_a_batch_do_not_share_noise():
    w = jnp.ones((2, N), BF16)
    out = jax.vmap(lambda w: step_of(sgd)(w, w, sr_key=0))(w)
    a, b = np.asarray(out, np.float64) < 1
    assert a.any() and abs(np.corrcoef(a, b)[0, 1]) < SIGMAS / math.sqrt(N)


def test_gradients_go_straight_through_a_write_back():
    step = step_of(sgd)
    w = jnp.ones(4, BF16)
    grads = jax.grad(lambda w, g: step(w, g, sr_key=0).astype(jnp.float32).sum(), (0, 1))(w, w)
    assert same(grads[0], w) and same(grads[1], jnp.full(4, -1e-3, BF16))


def test_a_recipe_that_quantizes_products_too_has_the_same_noise_in_them():
    int8 = recipes.get("int8")
    both = dataclasses.replace(int8, weights="stochastic")
    assert srjit.Recipe.from_toml(both.to_toml()) == both
    w, x = jnp.ones((16, N), BF16), jax.random.normal(jax.random.key(0), (8, 16), BF16)

    def step(w: Any, x: jax.Array) -> Any:
        grads = jax.grad(lambda w: ((x @ w) ** 2).sum())(w)
        return w - 1e-3 * grads, grads.astype(jnp.float32)

    report = srjit.srjit(step, recipe=both).explain(w, x)
    assert report.sites and all(s.status != "kept" for s in report.sites)
    assert [(p.path, p.status) for p in report.write_backs] == [("w", "stochastic")]
    quantized = [srjit.srjit(step, recipe=r)(w, x, sr_key=0) for r in (int8, both)]
    assert same(quantized[0][1], quantized[1][1]) and not same(quantized[0][0], quantized[1][0])
