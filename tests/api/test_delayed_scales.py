"""Delayed scales: explicit state, threaded through control flow."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from srjit import srjit

WIDTH, TOKENS, LAYERS = 32, 24, 3


def _params() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    layers = rng.standard_normal((LAYERS, WIDTH, WIDTH)) / 6
    return {"layers": jnp.asarray(layers, jnp.float32), "out": jnp.asarray(layers[0], jnp.float32)}


def _inputs(scale: float = 1.0) -> jax.Array:
    return jnp.asarray(
        np.random.default_rng(1).standard_normal((TOKENS, WIDTH)) * scale, jnp.float32
    )


def _loss(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    x = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["layers"])[0]
    out = jax.checkpoint(lambda h: h @ params["out"])
    x = jax.jit(lambda h: lax.cond(h.sum() > -1e9, out, lambda h: h, h))(x)
    return jnp.mean(x**2)


def _step(params: dict[str, jax.Array], x: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    loss, grads = jax.value_and_grad(_loss)(params, x)
    return jax.tree.map(lambda p, g: p - g, params, grads), loss


def _equal(a: object, b: object) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_the_first_step_is_that_of_dynamic_scales() -> None:
    delayed, dynamic = srjit(_step, recipe="fp8-delayed"), srjit(_step, recipe="fp8")
    state = delayed.init_state(_params(), _inputs())
    result, _ = delayed(_params(), _inputs(), sr_key=1, sr_state=state)
    assert _equal(result, dynamic(_params(), _inputs(), sr_key=1))


def _four_steps(target: str, layer: Literal["jaxpr", "stablehlo"] = "jaxpr") -> object:
    step = srjit(_step, recipe="fp8-delayed", target=target, layer=layer)
    params, state = _params(), step.init_state(_params(), _inputs())
    seen: list[object] = []
    for k, scale in enumerate((0.0, 1.0, 1.0, 30.0)):  # the first has nothing to remember
        (params, loss), state = step(params, _inputs(scale), sr_key=k, sr_state=state)
        seen.append((loss, params, state))
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    ["v5e", *(pytest.param(t, marks=pytest.mark.nightly) for t in ("v6e", "tpu7x", "h200"))],
)
def test_every_target_takes_the_same_steps_through_both_doors(target: str) -> None:
    steps = _four_steps(target)
    assert _equal(steps, _four_steps(target, "stablehlo"))
    # Sums in another order: a code that differs would differ by a sixteenth.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        steps,
        _four_steps("cpu"),
    )


def test_the_state_holds_the_amax_of_every_layer() -> None:
    forward = srjit(lambda p, x: _loss(p, x), recipe="fp8-delayed")
    state = forward.init_state(_params(), _inputs())
    _, after = forward(_params(), _inputs(), sr_state=state)
    weights = [v for v in after.values() if v.shape[0] == LAYERS]
    expected = np.abs(_params()["layers"]).max((1, 2))
    assert any(np.array_equal(v[:, 0], expected) for v in weights)
    inputs = np.abs(_inputs()).max()
    assert any(float(v[0, 0]) == inputs for v in weights)


def test_a_later_step_uses_the_scale_of_an_earlier_one() -> None:
    forward = srjit(lambda w, x: x @ w, recipe="fp8-delayed")
    w = jnp.eye(WIDTH)
    state = forward.init_state(w, _inputs())
    _, state = forward(w, _inputs(), sr_state=state)
    seen = float(jnp.abs(_inputs()).max())
    out, state = forward(w, _inputs(100.0), sr_state=state)
    assert float(jnp.abs(out).max()) == pytest.approx(seen, rel=1e-6)  # saturated there
    out, _ = forward(w, _inputs(100.0), sr_state=state)
    assert float(jnp.abs(out).max()) == pytest.approx(100 * seen, rel=1e-6)


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    step = srjit(_step, recipe="fp8-delayed")
    params, state = _params(), step.init_state(_params(), _inputs())
    for k in range(4):
        (params, _), state = step(params, _inputs(), sr_key=k, sr_state=state)
        if k == 1:
            kept = jax.tree.map(np.asarray, (params, state))
    again, state_again = kept
    for k in (2, 3):
        (again, _), state_again = step(again, _inputs(), sr_key=k, sr_state=state_again)
    assert _equal((params, state), (again, state_again))


def test_nan_stays_visible_and_is_not_remembered() -> None:
    forward = srjit(lambda w, x: x @ w, recipe="fp8-delayed")
    w, x = jnp.eye(WIDTH), _inputs()
    _, state = forward(w, x, sr_state=forward.init_state(w, x))
    out, after = forward(w, x.at[0, 0].set(jnp.nan), sr_state=state)
    finite = np.isfinite(out)  # FP8 codes show it themselves, where it is
    assert not finite[0].any() and finite[1:].all()
    assert after and all(np.isfinite(v).all() for v in after.values())
    assert np.isfinite(forward(w, x, sr_state=after)[0]).all()


def test_shards_agree_on_the_largest() -> None:
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(lambda w, x: x @ w, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"))
    forward = srjit(sharded, recipe="fp8-delayed")
    w, x = jnp.eye(WIDTH), _inputs()
    _, state = forward(w, x, sr_state=forward.init_state(w, x))
    assert {float(v[0]) for v in state.values()} == {1.0, float(jnp.abs(x).max())}


def test_a_compiled_program_takes_state() -> None:
    step = srjit(_step, recipe="fp8-delayed")
    state = step.init_state(_params(), _inputs())
    compiled = step.lower(_params(), _inputs(), sr_key=1).compile()
    expected = step(_params(), _inputs(), sr_key=1, sr_state=state)
    assert _equal(compiled(_params(), _inputs(), sr_key=1, sr_state=state), expected)
    with pytest.raises(TypeError, match="sr_state"):
        compiled(_params(), _inputs(), sr_key=1)


def test_state_that_is_missing_or_of_another_program_is_an_error() -> None:
    step = srjit(_step, recipe="fp8-delayed")
    with pytest.raises(TypeError, match="init_state"):
        step(_params(), _inputs(), sr_key=1)
    with pytest.raises(ValueError, match="does not fit"):
        step(_params(), _inputs(), sr_key=1, sr_state={"other": jnp.zeros(16)})
    state = step.init_state(_params(), _inputs())
    with pytest.raises(ValueError, match="does not fit"):
        srjit(_step, recipe="fp8")(_params(), _inputs(), sr_key=1, sr_state=state)


def test_delayed_gradients_from_outside_are_kept_and_said() -> None:
    report = srjit(_loss, recipe="fp8-delayed").explain(_params(), _inputs())
    gradients = [s for site in report.sites for s in site.backward]
    assert gradients
    assert all(s.status == "kept" and "whole training step" in s.reason for s in gradients)
