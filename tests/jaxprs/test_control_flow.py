"""Sites inside every operation that holds a program; what srjit does not rewrite stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback, pallas
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import srjit
from small_programs import count, equations, explain, mlp, normal

D = 8
W, H = normal(3, D, D) / D**0.5, normal(6, D, seed=1)
NEAREST = srjit.recipes.get("int8").with_rounding(gradients="nearest")


def layer(h: jax.Array, w: jax.Array) -> jax.Array:
    """One layer."""
    return jnp.tanh(h @ w)


def straight(ws: jax.Array, h: jax.Array) -> jax.Array:
    """Three layers without any control flow: what all of the programs below compute."""
    for w in ws:
        h = layer(h, w)
    return h


def _nested_jit(ws: jax.Array, h: jax.Array) -> jax.Array:
    inner = jax.jit(jax.jit(layer))
    return inner(inner(inner(h, ws[0]), ws[1]), ws[2])


def _static_jit(ws: jax.Array, h: jax.Array) -> jax.Array:
    pick = jax.jit(lambda i, ws, h: layer(h, ws[i]), static_argnums=0)
    return pick(2, ws, pick(1, ws, pick(0, ws, h)))


def _scan(ws: jax.Array, h: jax.Array) -> jax.Array:
    return lax.scan(lambda h, w: (layer(h, w), None), h, ws)[0]


def _reverse_scan(ws: jax.Array, h: jax.Array) -> jax.Array:
    return lax.scan(lambda h, w: (layer(h, w), None), h, ws[::-1], reverse=True)[0]


def _unrolled_scan(ws: jax.Array, h: jax.Array) -> jax.Array:
    return lax.scan(lambda h, w: (layer(h, w), h), h, ws, unroll=2)[0]


def _scan_without_xs(ws: jax.Array, h: jax.Array) -> jax.Array:
    def body(state: Any, _: None) -> Any:
        i, h = state
        return (i + 1, layer(h, ws[i])), None

    return lax.scan(body, (0, h), None, length=3)[0][1]


def _nested_scan(ws: jax.Array, h: jax.Array) -> jax.Array:
    return lax.scan(lambda h, ws: (_scan(ws, h), None), h, ws[:, None])[0]


def _while(ws: jax.Array, h: jax.Array) -> jax.Array:
    step = lambda s: (s[0] + 1, layer(s[1], ws[s[0]]))  # noqa: E731
    return lax.while_loop(lambda s: s[0] < 3, step, (0, h))[1]


def _fori(ws: jax.Array, h: jax.Array) -> jax.Array:
    return lax.fori_loop(0, 3, lambda i, h: layer(h, ws[i]), h)


def _cond(ws: jax.Array, h: jax.Array) -> jax.Array:
    h = lax.cond(h[0, 0] < 100, layer, lambda h, w: h @ w, h, ws[0])
    return lax.switch(1, [lambda h: h, lambda h: straight(ws[1:], h), lambda h: 2 * h], h)


def _checkpoint(ws: jax.Array, h: jax.Array) -> jax.Array:
    return jax.checkpoint(straight)(ws, h)


def _scanned_checkpoint(ws: jax.Array, h: jax.Array) -> jax.Array:
    return lax.scan(jax.checkpoint(lambda h, w: (layer(h, w), None)), h, ws)[0]


def _shard_map(check: bool) -> Callable[..., jax.Array]:
    def run(ws: jax.Array, h: jax.Array) -> jax.Array:
        mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))
        whole, rows = PartitionSpec(), PartitionSpec("d")
        f = jax.shard_map(
            straight, mesh=mesh, in_specs=(whole, rows), out_specs=rows, check_vma=check
        )
        return f(ws, h)

    return run


def _vmap(ws: jax.Array, h: jax.Array) -> jax.Array:
    return jax.vmap(straight, in_axes=(None, 0))(ws, h)


PROGRAMS = {
    "nested jit": _nested_jit,
    "jit with static arguments": _static_jit,
    "scan": _scan,
    "reverse scan": _reverse_scan,
    "unrolled scan": _unrolled_scan,
    "scan without xs": _scan_without_xs,
    "nested scan": _nested_scan,
    "while": _while,
    "fori": _fori,
    "cond and switch": _cond,
    "checkpoint": _checkpoint,
    "scanned checkpoint": _scanned_checkpoint,
    "shard_map": _shard_map(True),
    "shard_map, unchecked": _shard_map(False),
    "vmap": _vmap,
}
EXPECTED: dict[str, Any] = {}


def expected(name: str) -> Any:
    """What ``straight`` gives, with the gradient inside the decorated function."""
    if name not in EXPECTED:
        EXPECTED[name] = _results(straight, name)
    return EXPECTED[name]


def _results(program: Any, where: str) -> Any:
    f = lambda ws, h: (program(ws, h) ** 2).sum()  # noqa: E731
    if where == "value":
        return srjit.srjit(program, recipe=NEAREST)(W, H)
    if where == "inside":
        return srjit.srjit(jax.value_and_grad(f), recipe=NEAREST)(W, H)
    decorated = srjit.transform(f, recipe=NEAREST)
    return jax.jit(jax.value_and_grad(lambda ws, h: decorated(ws, h, sr_key=0)))(W, H)


@pytest.mark.crossed(1, most=6)
@pytest.mark.parametrize("where", ["value", "inside", "outside"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_control_flow_changes_nothing_of_what_is_computed(name: str, where: str):
    """With nearest rounding: to the last bits, which XLA may fuse in another order."""
    if where != "value" and name == "while":
        pytest.skip("JAX has no reverse-mode derivative of a while loop")
    result = _results(PROGRAMS[name], where)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected(where)), strict=True):
        # A code that falls on the other side of a tie moves an output by a step: 2^-7 of it.
        np.testing.assert_allclose(a, b, rtol=0, atol=2.0**-7 * float(abs(b).max()))


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_product_is_rewritten_wherever_it_stands(name: str):
    plain = jax.make_jaxpr(PROGRAMS[name])(W, H)
    rewritten = srjit.srjit(PROGRAMS[name], recipe="int8-qat").rewritten(W, H)
    assert count(plain, "dot_general") == count(rewritten, "srjit_site") >= 1
    assert count(rewritten, "dot_general") == 0


def test_a_product_in_a_loops_condition_is_a_site_too():
    def run(w: jax.Array, h: jax.Array) -> jax.Array:
        return lax.while_loop(lambda h: (h @ w).sum() > 1e9, lambda h: h @ w, h)

    assert [s.role for s in explain(run, W[0], H, mode="inference").sites] == ["fprop"] * 2
    assert count(srjit.srjit(run, recipe="int8-qat").rewritten(W[0], H), "srjit_site") == 2


def test_a_conditionals_result_has_codes_of_its_own():
    def run(w: jax.Array, x: jax.Array, flag: jax.Array) -> Any:
        y = lax.cond(flag, lambda: x, lambda: jnp.zeros_like(x))
        return x @ w, y @ w

    f = srjit.srjit(run, recipe="int8-qat")
    for flag in (True, False):
        whole, part = f(W[0], H, jnp.array(flag))
        np.testing.assert_array_equal(part, whole if flag else 0 * whole)


def test_inner_jits_keep_their_shardings_donation_and_name():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("d"))
    inner = jax.jit(layer, in_shardings=(rows, None), out_shardings=rows, donate_argnums=0)
    rewritten = srjit.srjit(lambda w, h: inner(h * 1, w), recipe="int8-qat").rewritten(
        W[0], normal(16, D)
    )
    (call,) = equations(rewritten, "layer")
    assert rows in call.params["in_shardings"] and call.params["out_shardings"][0] == rows
    assert sum(call.params["donated_invars"]) == 1


# --------------------------------------------------------------------------- rules of the user's


@jax.custom_vjp
def _doubled(h: jax.Array, w: jax.Array) -> jax.Array:
    """A product whose rule says twice its gradient."""
    return h @ w


def _doubled_forward(h: jax.Array, w: jax.Array) -> Any:
    return _doubled(h, w), (h, w)


def _doubled_backward(residuals: Any, g: jax.Array) -> Any:
    h, w = residuals
    return 2 * (g @ w.T), 2 * (h.T @ g)


_doubled.defvjp(_doubled_forward, _doubled_backward)


@jax.custom_jvp
def _tripled(h: jax.Array, w: jax.Array) -> jax.Array:
    """A product whose rule says three times its derivative."""
    return h @ w


@_tripled.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (h, w), (th, tw) = primals, tangents
    return _tripled(h, w), 3 * (th @ w + h @ tw)


@pytest.mark.parametrize(("fun", "factor"), [(_doubled, 2), (_tripled, 3)])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
@pytest.mark.parametrize("inside", [True, False], ids=["grad inside", "grad outside"])
def test_a_derivative_rule_stays_the_users(fun: Any, factor: int, wrap: Any, inside: bool):
    def value(w: jax.Array, h: jax.Array) -> jax.Array:
        return (wrap(fun)(h, w) ** 2).sum()

    assert count(srjit.srjit(value, recipe="int8-qat").rewritten(W[0], H), "srjit_site") == 1
    if inside:
        got = srjit.srjit(jax.grad(value), recipe="int8")(W[0], H, sr_key=1)
    else:
        f = srjit.transform(value, recipe="int8")
        got = jax.grad(lambda w: f(w, H, sr_key=1))(W[0])
    plain = 2 * H.T @ (H @ W[0])
    # The rule's factor, to the nearest: int8 is far closer than half of it.
    assert round(float(jnp.vdot(got, plain) / jnp.vdot(plain, plain)), 1) == factor
    assert not np.array_equal(got, factor * plain)


def test_the_report_says_that_a_users_rule_differentiates():
    sites = explain(lambda w, h: _doubled(h, w).sum(), W[0], H).sites
    assert [s.role for s in sites] == ["fprop"]
    assert "own rule" in sites[0].why


# ------------------------------------------------------------------------------ left alone


def _kernel(x_ref: Any, w_ref: Any, out_ref: Any) -> None:
    out_ref[...] = x_ref[...] @ w_ref[...]


def _with_kernel(w: jax.Array, h: jax.Array) -> jax.Array:
    with jax.named_scope("flash"):
        shape = jax.ShapeDtypeStruct((6, D), jnp.float32)
        h = pallas.pallas_call(_kernel, out_shape=shape, interpret=True)(h, w)
    return h @ w


def test_kernels_are_left_alone_and_reported():
    report = explain(_with_kernel, W[0], H)
    assert [s.role for s in report.sites if s.phase == "forward"] == ["fprop", "unknown"]
    assert any("pallas_call at flash" in note and "left alone" in note for note in report.notes)
    f = srjit.srjit(_with_kernel, recipe="int8-qat")
    assert count(f.rewritten(W[0], H), "pallas_call") == 1
    np.testing.assert_allclose(f(W[0], H), H @ W[0] @ W[0], atol=0.1)


def test_products_inside_a_call_without_a_rule_are_reported():
    def run(w: jax.Array, h: jax.Array) -> jax.Array:
        return jax.lax.composite(lambda h: h @ h.T, "mine.gram")(h) @ (h @ w)

    report = explain(run, W[0], H, mode="inference")
    assert [s.op for s in report.sites] == ["dot_general", "dot_general", "composite"]
    assert any("composite" in note for note in report.notes)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_callbacks_happen_once_and_in_order(wrap: Any):
    seen: list[tuple[str, int]] = []

    def body(h: jax.Array, w: jax.Array) -> Any:
        io_callback(lambda i: seen.append(("io", int(i))), None, 1, ordered=True)
        h = layer(h, w)
        io_callback(lambda i: seen.append(("io", int(i))), None, 2, ordered=True)
        return h, jax.pure_callback(
            lambda h: np.float32(h.sum()), jax.ShapeDtypeStruct((), jnp.float32), h
        )

    def run(ws: jax.Array, h: jax.Array) -> Any:
        h, sums = lax.scan(body, h, ws)
        io_callback(lambda i: seen.append(("io", int(i))), None, 3, ordered=True)
        return h, sums

    if wrap is jax.checkpoint:
        wrap = lambda f: f  # noqa: E731  (JAX has no ordered effects there)
    h, sums = srjit.srjit(wrap(run), recipe="int8-qat")(W, H)
    jax.effects_barrier()
    assert seen == [("io", 1), ("io", 2)] * 3 + [("io", 3)]
    np.testing.assert_allclose(sums[-1], h.sum(), rtol=1e-5)


def test_scopes_survive_and_inserted_operations_have_names():
    def run(w: jax.Array, h: jax.Array) -> jax.Array:
        with jax.named_scope("block"):
            return jnp.sin(jnp.tanh(h @ w) @ w)

    text = srjit.srjit(run, recipe="int8-qat").lower(W[0], H).compile().as_text()
    names = [
        line.split('op_name="')[1].split('"')[0] for line in text.splitlines() if "op_name" in line
    ]
    assert any(n.endswith("block/sin") for n in names)
    assert any("block/" in n and "srjit_quantize_int8" in n for n in names)
    assert any("block/" in n and "srjit_fprop" in n for n in names)


# --------------------------------------------------------------------- functions without srjit


def test_nothing_else_is_affected_before_or_after():
    traced = [0]

    @jax.jit
    def shared(h: jax.Array, w: jax.Array) -> jax.Array:
        traced[0] += 1
        return layer(h, w)

    before = jax.make_jaxpr(shared)(H, W[0])
    value = shared(H, W[0])
    assert traced == [1]
    f = srjit.srjit(lambda w, h: shared(h, w), recipe="int8-qat")
    quantized = f(W[0], H)
    assert traced == [1]  # the function that had been traced before is quantized all the same
    assert not np.array_equal(quantized, value)
    np.testing.assert_array_equal(shared(H, W[0]), value)
    assert str(jax.make_jaxpr(shared)(H, W[0])) == str(before)
    assert traced == [1]

    @jax.jit
    def later(h: jax.Array, w: jax.Array) -> jax.Array:
        return layer(h, w)

    srjit.srjit(lambda w, h: later(h, w), recipe="int8-qat")(W[0], H)
    np.testing.assert_array_equal(later(H, W[0]), value)


def test_a_second_call_traces_nothing():
    traced = [0]

    def step(w: jax.Array, h: jax.Array) -> jax.Array:
        traced[0] += 1
        return mlp({"w1": w, "w2": w}, h)

    f = srjit.srjit(step, recipe="int8-qat")
    f(W[0], H)
    f(W[1], H + 1)
    assert traced == [1]
    f(W[0], normal(3, D))
    assert traced == [2]


def test_the_rewritten_program_grows_linearly():
    def size(layers: int) -> int:
        f = srjit.srjit(jax.grad(lambda ws, h: (straight(ws, h) ** 2).sum()), recipe="int8")
        return len(equations(f.rewritten(normal(layers, D, D), H)))

    a, b, c = (size(n) for n in (4, 8, 16))
    assert c - b == 2 * (b - a)
