"""What looks like a write-back and is none is left alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srjit
from steps import same

from .test_write_backs import BF16, N, became, mean, sgd, step_of


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
    fun = step_of(step, params_argnums=0)
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
    return w.at[0].multiply(1 - 1e-3 * g[0])


def test_an_update_of_the_only_parameter_that_cannot_be_found_is_no_silence():
    w = jnp.ones((2, N), BF16)
    with pytest.warns(UserWarning, match="scatter.mul makes it"):
        assert same(step_of(sparse)(w, w), sparse(w, w))
    with pytest.raises(srjit.UnsupportedSiteError, match="parameter w"):
        step_of(sparse, strict=True)(w, w)


def test_parameters_that_are_another_argument_are_no_silence():
    w = jnp.ones(N, BF16)

    def step(batch: Any, params: Any) -> Any:
        return params["w"] - 1e-3 * batch.sum()

    batch = jnp.ones(8, BF16)
    with pytest.warns(UserWarning, match=r"params\['w'\].*params_argnums"):
        step_of(step, params_argnums=0)(batch, {"w": w})
    right = step_of(step)
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
