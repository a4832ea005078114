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
from jax.sharding import AxisType, NamedSharding, PartitionSpec

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


def sgd(w: Any, g: Any) -> Any:
    return jax.tree.map(lambda w, g: w - 1e-3 * g, w, g)


def test_float32_parameters_are_left_alone_and_need_no_key():
    w, g = jnp.ones(N), jnp.ones(N)
    step = step_of(sgd)
    assert same(step(w, g), jax.jit(sgd)(w, g))
    assert step.explain(w, g).write_backs == ()
    both = {"a": jnp.ones(N), "b": jnp.ones(N, BF16)}
    moved = step(both, both, sr_key=0)
    assert same(moved["a"], jax.jit(sgd)(both, both)["a"]) and mean(moved["b"]) < 1


def test_a_copy_of_master_weights_is_cast_as_it_was():
    def step(params: Any, master: Any, g: Any) -> Any:
        del params  # overwritten
        new = master - 1e-3 * g
        return new.astype(BF16), new

    w = jnp.ones(N)
    fun = step_of(step)
    args = (w.astype(BF16), w, w)
    assert same(fun(*args), jax.jit(step)(*args))
    (write,) = fun.explain(*args).write_backs
    assert write.status == "kept" and not write.asked
    assert "a copy of float32 values that the program returns too" in write.reason


def unrelated(w: Any, g: Any) -> Any:
    return {"a": w["a"] - 1e-3 * g, "b": jnp.tanh(w["b"]), "c": w["c"]}


def test_what_cannot_be_written_back_is_said_with_its_reason():
    w = {k: jnp.ones(n, BF16) for n, k in enumerate("abcd", 8)}
    found = {p.path: p for p in step_of(unrelated).explain(w, jnp.ones(8, BF16)).write_backs}
    assert {k: p.status for k, p in found.items()} == {
        "w['a']": "stochastic", "w['b']": "kept", "w['c']": "kept", "w['d']": "kept",
    }  # fmt: skip
    assert "tanh makes it" in found["w['b']"].reason
    assert found["w['c']"].reason == "returned as it came"
    assert "no output has its shape" in found["w['d']"].reason
    assert [k for k, p in found.items() if p.asked] == ["w['a']", "w['b']"]


def test_a_write_back_that_cannot_be_had_warns_and_is_an_error_if_strict():
    w, g = {k: jnp.ones(n, BF16) for n, k in enumerate("abc", 8)}, jnp.ones(8, BF16)
    with pytest.warns(UserWarning, match=r"w\['b'\].*tanh makes it"):
        step_of(unrelated)(w, g, sr_key=0)
    with pytest.raises(srjit.UnsupportedSiteError, match=r"w\['b'\]"):
        step_of(unrelated, strict=True)(w, g, sr_key=0)


def sparse(w: jax.Array, g: jax.Array) -> jax.Array:
    return w.at[0].add(-1e-3 * g[0])


def test_an_update_of_the_only_parameter_that_cannot_be_found_is_no_silence():
    w = jnp.ones((2, N), BF16)
    with pytest.warns(UserWarning, match="scatter-add makes it"):
        assert same(step_of(sparse)(w, w), sparse(w, w))
    with pytest.raises(srjit.UnsupportedSiteError, match="parameter w"):
        step_of(sparse, strict=True)(w, w)


def test_parameters_that_are_another_argument_are_no_silence():
    w = jnp.ones(N, BF16)

    def step(batch: Any, params: Any) -> Any:
        return params["w"] - 1e-3 * batch.sum()

    batch = jnp.ones(8, BF16)
    with pytest.warns(UserWarning, match=r"params\['w'\].*params_argnums"):
        step_of(step)(batch, {"w": w})
    right = step_of(step, params_argnums=1)
    assert became(right, batch, {"w": w}) == {"params['w']": "stochastic"}


def test_a_moment_of_float32_parameters_is_none_of_another_argument():
    def step(p: Any, m: Any, g: Any) -> Any:
        m = (0.9 * m.astype(jnp.float32) + 0.1 * g).astype(BF16)
        return p - 1e-3 * m.astype(jnp.float32), m

    w = jnp.ones(N)
    fun = step_of(step, strict=True)
    assert fun.explain(w, w.astype(BF16), w).write_backs == ()
    assert same(fun(w, w.astype(BF16), w), jax.jit(step)(w, w.astype(BF16), w))


def test_a_loss_writes_nothing_and_needs_no_key():
    w = {"a": jnp.ones((8, 8), BF16), "b": jnp.ones(8, BF16)}
    loss = step_of(lambda w: w["a"] @ w["a"] @ w["b"], strict=True)
    assert loss(w).shape == (8,) and set(became(loss, w).values()) == {"kept"}


def test_inference_writes_back_as_the_program_does_and_takes_no_key():
    w = jnp.ones(N, BF16)
    assert same(step_of(sgd, mode="inference")(w, w), sgd(w, w))


def test_nan_and_infinity_stay_what_they_are():
    w = jnp.array([1.0, jnp.inf, -jnp.inf, jnp.nan, 1.0, 1.0], BF16)
    u = jnp.array([jnp.nan, 1.0, 1.0, 1.0, jnp.inf, -jnp.inf], BF16)
    out = np.asarray(step_of(lambda w, u: w + u)(w, u, sr_key=0), np.float32)
    np.testing.assert_array_equal(out, [np.nan, np.inf, -np.inf, np.nan, np.inf, -np.inf])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float8_e5m2])
def test_an_overflow_is_infinite_as_in_a_cast(dtype: Any):
    most = jnp.finfo(dtype).max
    w = jnp.array([most, -most, most, 1.0], dtype)
    u = jnp.array([most, -most, 0, most / 2], dtype)
    assert same(step_of(lambda w, u: w + u)(w, u, sr_key=0)[:3], (w + u)[:3])
    assert np.isinf(np.asarray(w + u, np.float32)[:2]).all()


# ----------------------------------------------------------------------------------------- noise


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


# --------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("d"), PartitionSpec(None, "d")])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_eight_devices_write_what_one_does(spec: PartitionSpec, kind: AxisType):
    w, g = jnp.ones((16, 64), BF16), jnp.ones((16, 64), BF16)
    alone = step_of(adamw)(w, g, sr_key=3)
    sharding = NamedSharding(jax.make_mesh((8,), ("d",), axis_types=(kind,)), spec)
    spread = step_of(adamw)(*jax.device_put((w, g), sharding), sr_key=3)
    assert spread.sharding.is_equivalent_to(sharding, 2)
    assert same(np.asarray(spread), np.asarray(alone))
    assert len({np.asarray(s.data).tobytes() for s in spread.addressable_shards}) == (
        1 if spec == PartitionSpec() else 8
    )


@pytest.mark.parametrize("check", [True, False])
def test_replicas_do_not_diverge_under_data_parallelism(check: bool):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    w, x = jnp.ones((16, 64), BF16), jax.random.normal(jax.random.key(0), (64, 16), BF16)

    def shard(w: jax.Array, x: jax.Array) -> jax.Array:
        local = lax.pcast(w, "d", to="varying") if check else w
        grads = jax.grad(lambda w: ((x @ w) ** 2).sum().astype(jnp.float32))(local)
        return w - 1e-3 * lax.pmean(grads, "d")

    specs = (PartitionSpec(), PartitionSpec("d"))
    step = step_of(
        jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=check)
    )
    (write,) = step.explain(w, x).write_backs
    assert write.status == "stochastic"
    for key in range(3):
        w = step(w, x, sr_key=key)
        copies = {np.asarray(s.data).tobytes() for s in w.addressable_shards}
        assert len(copies) == 1 and len(w.addressable_shards) == 8


@pytest.mark.parametrize("check", [True, False])
def test_shards_of_a_parameter_do_not_share_noise(check: bool):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("d")
    spread = jax.shard_map(sgd, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=check)
    w = jnp.ones((8, N), BF16)
    rows = np.asarray(step_of(spread)(w, w, sr_key=0), np.float64) < 1
    for i, row in enumerate(rows):
        for other in rows[:i]:
            assert abs(np.corrcoef(row, other)[0, 1]) < SIGMAS / math.sqrt(N)


# ----------------------------------------------------------------------------- the other door


def several_trained(w: jax.Array, x: jax.Array) -> jax.Array:
    def body(w: jax.Array, x: jax.Array) -> Any:
        grads = jax.grad(lambda w: jnp.tanh(x @ w).astype(jnp.float32).sum())(w)
        return w - 1e-3 * grads, None

    return lax.scan(body, w, x)[0]


@pytest.mark.parametrize("fun", [decayed, layer_by_layer, several_trained])
@pytest.mark.parametrize("base", ["bf16-sr", "int8"])
def test_both_layers_write_the_same_bits(base: str, fun: Callable[..., Any]):
    recipe = dataclasses.replace(recipes.get(base), weights="stochastic")
    w, g = jnp.ones((16, 64), BF16), jnp.ones((16, 64), BF16)
    if fun is several_trained:
        g = jax.random.normal(jax.random.key(0), (3, 8, 16), BF16)
    by_jaxpr, by_module = (step_of(fun, recipe=recipe, layer=la) for la in ("jaxpr", "stablehlo"))
    out = by_jaxpr(w, g, sr_key=5)
    assert same(by_module(w, g, sr_key=5), out) and not same(out, fun(w, g))
    reports = [f.explain(w, g) for f in (by_jaxpr, by_module)]
    assert reports[0].write_backs == reports[1].write_backs != ()
    assert [s.status for s in reports[0].sites] == [s.status for s in reports[1].sites]
    assert [s.site.role for s in reports[0].sites] == [s.site.role for s in reports[1].sites]


def test_passes_say_that_they_leave_write_backs_alone():
    from srjit.passes.report import report_of

    text = jax.jit(sgd).lower(jnp.ones(N, BF16), jnp.ones(N, BF16)).as_text()
    options = "srjit-annotate-matmuls,srjit-insert-quantize{recipe=bf16-sr%s}"
    with pytest.warns(srjit.passes.PassWarning, match="passes leave that alone"):
        module = srjit.passes.parse(options % "").run(text)
    assert any("passes leave that alone" in note for note in report_of(module.operation).notes)
    with pytest.raises(srjit.passes.PipelineError, match="passes leave that alone"):
        srjit.passes.parse(options % " strict=true").run(text)
