"""Calls with one key in a loop are warned of: every trip draws the same noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import srjit
from steps import KEY, W, X, step

XS = jnp.stack([X, -X])
NARROW = srjit.Quantization(format="int8", rounding="stochastic")
QUANTIZED = srjit.srjit(step, recipe="int8")
REJITTED = srjit.rejit(
    jax.jit(step).lower(W, X),
    "srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8},srjit-legalize{target=cpu}",
)
SAID = "with a key from outside of it: every trip draws the same noise.*fold_in"

Call = Callable[[jax.Array, Any], Any]
CALLS: dict[str, Call] = {
    "srjit": lambda x, key: QUANTIZED(W, x, sr_key=key),
    "transform": lambda x, key: srjit.transform(step, recipe="int8")(W, x, sr_key=key),
    "rejit": lambda x, key: REJITTED(W, x, sr_key=key),
    "export": lambda x, key: srjit.export(QUANTIZED, W, X)(W, x, sr_key=key),
    "stochastic_round": lambda x, key: srjit.stochastic_round(x, jnp.bfloat16, key),
    "quantize": lambda x, key: srjit.quantize(x, NARROW, key).codes,
}
ROUND = CALLS["stochastic_round"]


def total(call: Call, x: jax.Array, key: Any) -> jax.Array:
    return call(jax.lax.stop_gradient(x), key).astype(float).sum() * x.sum()


LOOPS: dict[str, Callable[[Call, Any], Any]] = {
    "map": lambda call, key: jax.lax.map(lambda x: call(x, key), XS),
    "scan": lambda call, key: jax.lax.scan(lambda c, x: (c, call(x, key)), 0, XS),
    "fori_loop": lambda call, key: jax.lax.fori_loop(0, 2, lambda i, x: 0 * call(x, key) + x, X),
    "while_loop": lambda call, key: jax.lax.while_loop(
        lambda s: s[0] < 2, lambda s: (s[0] + 1, 0 * call(s[1], key) + s[1]), (0, X)
    ),
    "jit inside": lambda call, key: jax.lax.map(jax.jit(lambda x: call(x, key)), XS),
    "argument of a jit": lambda call, key: jax.lax.map(
        lambda x: jax.jit(lambda n, k, x: n * call(x, k), static_argnums=0)(1, key, x), XS
    ),
    "argument of two jits": lambda call, key: jax.lax.map(
        lambda x: jax.jit(lambda x, key: jax.jit(lambda k: call(x, k))(k=key))(x, key=key), XS
    ),
    "argument of a remat": lambda call, key: jax.lax.map(
        lambda x: jax.checkpoint(lambda x, k: call(x, k))(x, key), XS
    ),
    "remat inside": lambda call, key: jax.lax.map(jax.checkpoint(lambda x: call(x, key)), XS),
    "vmap inside": lambda call, key: jax.lax.map(jax.vmap(lambda x: call(x[None], key)), XS),
    "grad inside": lambda call, key: jax.lax.map(jax.grad(lambda x: total(call, x, key)), XS),
    "vmap outside": lambda call, key: jax.vmap(
        lambda k: jax.lax.map(lambda x: call(x, k), XS)
    )(jnp.stack([key, key])),
}  # fmt: skip


def own_keys(call: Call, key: Any) -> Any:
    return jax.lax.map(lambda xk: call(*xk), (XS, jax.random.split(key)))


def folded(call: Call, key: Any) -> Any:
    def body(i: Any, x: jax.Array) -> Any:
        return jax.jit(lambda: call(x, jax.random.fold_in(key, i)).sum() * 0)() + x

    return jax.lax.fori_loop(0, 2, body, X)


def passed(call: Call, key: Any) -> Any:
    """A key of the trip's own is the argument of a jit."""

    def body(i: Any, x: jax.Array) -> Any:
        return jax.jit(lambda k, x: call(x, k).sum() * 0)(jax.random.fold_in(key, i), x) + x

    return jax.lax.fori_loop(0, 2, body, X)


def folded_inside(call: Call, key: Any) -> Any:
    """The trip's number is folded into the argument of a jit, inside it."""

    def body(i: Any, x: jax.Array) -> Any:
        fold = jax.jit(lambda k, i, x: call(x, jax.random.fold_in(k, i)).sum() * 0)
        return fold(key, i, x) + x

    return jax.lax.fori_loop(0, 2, body, X)


NO_LOOPS: dict[str, Callable[[Call, Any], Any]] = {
    "a key a trip": own_keys,
    "the trip folded in": folded,
    "a key a trip, passed": passed,
    "the trip folded in inside": folded_inside,
    "jit": lambda call, key: jax.jit(lambda x: call(x, key))(X),
    "argument of a jit without a loop": lambda call, key: jax.jit(lambda x, k: call(x, k))(X, key),
    "grad": lambda call, key: jax.grad(lambda x: total(call, x, key))(X),
    "vmap": lambda call, key: jax.vmap(lambda x: call(x, key))(XS),
    "remat": lambda call, key: jax.checkpoint(lambda x: call(x, key))(X),
    "cond": lambda call, key: jax.lax.cond(True, lambda x: call(x, key), lambda x: call(x, key), X),
}


@pytest.mark.parametrize("call", CALLS)
def test_one_key_in_a_loop_is_warned_of(call: str):
    with pytest.warns(UserWarning, match=f"{'step' if 'j' in call else ''}.*{SAID}"):
        jax.eval_shape(lambda key: LOOPS["scan"](CALLS[call], key), KEY)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("is_traced", [True, False])
def test_every_kind_of_loop_is_seen(loop: str, is_traced: bool):
    with pytest.warns(UserWarning, match=SAID):
        if is_traced:
            jax.eval_shape(lambda key: LOOPS[loop](ROUND, key), KEY)
        else:
            jax.eval_shape(lambda: LOOPS[loop](ROUND, KEY))


@pytest.mark.parametrize("loop", ["argument of two jits", "argument of a remat", "scan"])
def test_looking_for_loops_leaks_no_tracers(loop: str):
    with jax.checking_leaks(), pytest.warns(UserWarning, match=SAID):
        jax.eval_shape(lambda key: LOOPS[loop](ROUND, key), KEY)


@pytest.mark.parametrize("around", NO_LOOPS)
@pytest.mark.parametrize("call", ["srjit", "stochastic_round"])
def test_keys_that_no_trip_repeats_are_not_warned_of(around: str, call: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(lambda key: NO_LOOPS[around](CALLS[call], key), KEY)


def test_a_loop_without_noise_is_not_warned_of():
    keyless = srjit.srjit(lambda w, x: x @ w, recipe="int8-qat")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(lambda key: jax.lax.map(lambda x: keyless(W, x, sr_key=key), XS), KEY)
