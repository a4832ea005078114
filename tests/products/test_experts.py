"""Products with groups have scales for each: as if every expert's rows were a tensor of their own.

The oracle quantizes each expert's rows, weight and cotangents alone, by ``oracles.scales``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import srjit
from oracles import scales
from small_programs import explain, normal

from .test_products import check, nearest

SIZES = np.array([37, 0, 20, 3, 25, 0])
ENDS = np.cumsum(SIZES)
ROWS = [slice(end - n, end) for end, n in zip(ENDS, SIZES, strict=True)]
M, K, N, G = 96, 48, 40, len(SIZES)
VALID = int(ENDS[-1])  # rows past that belong to nobody


def operands(weights: int = 4, cotangents: int = 3) -> tuple[np.ndarray, ...]:
    """w, x, ct; experts' weights and cotangents are up to 2^that larger or smaller than others'."""
    of_expert = np.arange(G) % 3 - 1
    of_row = np.zeros(M)
    for g, rows in enumerate(ROWS):
        of_row[rows] = -of_expert[g]
    w = np.ldexp(np.asarray(normal(G, K, N, seed=1)), weights * of_expert[:, None, None])
    ct = np.ldexp(np.asarray(normal(M, N, seed=2)), (cotangents * of_row[:, None]).astype(int))
    return w, np.array(normal(M, K)), ct


def step(w: jax.Array, x: jax.Array, ct: jax.Array, sizes: jax.Array) -> tuple[jax.Array, ...]:
    """y, dw, dx."""
    y, pullback = jax.vjp(lambda w, x: lax.ragged_dot(x, w, sizes), w, x)
    return y, *pullback(ct)


def with_garbage(x: np.ndarray, garbage: float) -> np.ndarray:
    """x with garbage in the rows that belong to nobody."""
    x = x.copy()
    x[VALID:] = garbage
    return x


def run(recipe: Any, w: Any, x: Any, ct: Any, key: int = 0, **options: Any) -> list[np.ndarray]:
    """What a quantized step returns."""
    outs = srjit.srjit(step, recipe=recipe, **options)(w, x, ct, jnp.asarray(SIZES), sr_key=key)
    return [np.asarray(out) for out in outs]


# -------------------------------------------------------------------- codes and scales of experts

Oracle = Callable[[np.ndarray], np.ndarray]  # of a matrix whose rows are contracted


def tensor(element: str) -> Oracle:
    return lambda t: scales.float_scaled(t, element, np.abs(t).max()).dequantized()


def channel(element: str) -> Oracle:
    return lambda t: scales.float_scaled(t, element, np.abs(t).max(1, keepdims=True)).dequantized()


def block(element: str, size: int) -> Oracle:
    def of(t: np.ndarray) -> np.ndarray:
        return scales.float_scaled(t, element, scales.block_amax(t, size), size).dequantized(size)

    return of


def mx(element: str, **options: Any) -> Oracle:
    return lambda t: scales.mx(t, element, **options).dequantized(32)


def nvfp4(**options: Any) -> Oracle:
    return lambda t: scales.nvfp4(t, **options).dequantized(16)


class Oracles(NamedTuple):
    activation: Oracle
    weight: Oracle
    gradient: Oracle


RECIPES = {
    "int8": Oracles(*[tensor("int8")] * 3),
    "int8-channel": Oracles(*[channel("int8")] * 3),
    "int4": Oracles(*[block("int4", 32)] * 3),
    "fp8": Oracles(*[tensor("float8_e4m3fn")] * 2, tensor("float8_e5m2")),
    "mxfp8": Oracles(*[mx("float8_e4m3fn")] * 2, mx("float8_e4m3fn", up=True)),
    "mxfp4": Oracles(*[mx("float4_e2m1fn")] * 2, mx("float4_e2m1fn", up=True)),
    "nvfp4": Oracles(nvfp4(), nvfp4(square=True), nvfp4()),
    "nvfp4-unbiased": Oracles(nvfp4(), nvfp4(square=True), nvfp4(up=True)),
}


def check_experts(q: Oracles, y: Any, dw: Any, dx: Any, w: Any, x: Any, ct: Any) -> None:
    """Every expert's results are products of what its codes stand for."""
    for g, rows in enumerate(ROWS):
        if not SIZES[g]:
            assert (dw[g] == 0).all() and not np.signbit(dw[g]).any()
            continue
        a, b, c = x[rows], w[g], ct[rows]
        check(y[rows], lambda u, v: u @ v.T, q.activation(a), q.weight(b.T), K)
        check(dx[rows], lambda u, v: u @ v.T, q.gradient(c), q.weight(b), N)
        check(dw[g], lambda u, v: u @ v.T, q.activation(a.T), q.gradient(c.T), int(SIZES[g]))


@pytest.mark.crossed(1, most=5)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_expert_is_quantized_as_if_it_were_alone(recipe: str):
    w, x, ct = operands()
    garbage = with_garbage(x, np.nan), with_garbage(ct, np.inf)
    check_experts(RECIPES[recipe], *run(nearest(recipe), w, *garbage), w, x, ct)


@pytest.mark.parametrize("kind", ["activation", "gradient"])
def test_experts_of_which_one_operand_is_quantized(kind: str):
    """The other is multiplied as it is, by codes within 4 of what they stand for."""
    plain = lambda t: t.astype(np.float64)  # noqa: E731
    rules = [
        dataclasses.replace(
            rule,
            **{
                role: dataclasses.replace(
                    getattr(rule, role), **{k: None for k in Oracles._fields if k != kind}
                )
                for role in ("fprop", "dgrad", "wgrad")
            },
        )
        for rule in nearest("int8").rules
    ]
    w, x, ct = operands()
    oracles = Oracles(plain, plain, plain)._replace(**{kind: tensor("int8")})
    recipe = srjit.Recipe(name="one operand", rules=tuple(rules))
    check_experts(oracles, *run(recipe, w, with_garbage(x, 0), with_garbage(ct, 0)), w, x, ct)


def relative(got: np.ndarray, exact: np.ndarray) -> float:
    """The relative error of a result."""
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("spread", [(0, 0), (4, 3)])
def test_no_expert_is_lost_in_int8(spread: tuple[int, int]):
    w, x, ct = operands(*spread)
    exact = [np.asarray(out) for out in step(w, x, ct, jnp.asarray(SIZES))]
    (y, dw, dx), (y0, dw0, dx0) = run("int8", w, x, ct), exact
    for g, rows in enumerate(ROWS):
        if SIZES[g]:
            pairs = (y[rows], y0[rows]), (dw[g], dw0[g]), (dx[rows], dx0[rows])
            assert max(relative(*pair) for pair in pairs) < 0.02, g


def test_what_is_not_finite_stays_with_its_expert():
    w, x, ct = operands()
    plain = run("int8", w, x, ct)
    x[ROWS[2].start, 3] = np.nan
    y, dw, dx = run("int8", w, x, ct)
    others = [g for g in range(G) if g != 2]
    for got, expected in zip((y, dx), (plain[0], plain[2]), strict=True):
        for g in others:
            np.testing.assert_array_equal(got[ROWS[g]], expected[ROWS[g]])
    np.testing.assert_array_equal(dw[others], plain[1][others])
    assert np.isnan(y[ROWS[2]]).all() and np.isnan(dw[2]).all()


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("recipe", ["int8-channel", "fp8-delayed", "nvfp4", "mxfp8"])
def test_both_doors_give_the_same_bits(recipe: str):
    w, x, ct = operands()
    args = w, with_garbage(x, np.nan), ct, jnp.asarray(SIZES)
    found: list[Any] = []
    for layer in ("jaxpr", "stablehlo"):
        fun = srjit.srjit(step, recipe=recipe, layer=layer)
        state, outs = fun.init_state(*args) or None, None
        for key in range(2 if state else 1):
            outs = fun(*args, sr_key=key, sr_state=state)
            state = outs[1] if state else None
        found.append(outs)
    jax.tree.map(np.testing.assert_array_equal, *found)


# --------------------------------------------------------------------------------- delayed scales


def test_every_expert_has_a_history():
    w, x, ct = operands()
    fun = srjit.srjit(step, recipe="fp8-delayed")
    args = w, with_garbage(x, np.nan), with_garbage(ct, 1e30), jnp.asarray(SIZES)
    state = fun.init_state(*args)
    assert {s.shape for s in state.values()} == {(G, 16)} and len(state) == 3
    _, seen = fun(*args, sr_key=0, sr_state=state)
    largest = [
        [np.abs(t[rows]).max(initial=0) for rows in ROWS]
        for t in (x, ct)
    ] + [np.abs(w).max((1, 2))]  # fmt: skip
    got = [np.asarray(s)[:, 0] for s in seen.values()]
    np.testing.assert_array_equal(np.sort(got, axis=0), np.sort(largest, axis=0))
    # An expert without rows keeps what it had: nothing but its weight is there to be seen.
    filled = {name: np.full((G, 16), 7, np.float32) for name in state}
    (y, *_), seen = fun(*args, sr_key=0, sr_state=filled)
    empty = SIZES == 0
    assert sum((np.asarray(s)[empty, 0] == 7).all() for s in seen.values()) == 2
    # Codes are made with the history of each.
    of_third = {n: state[n].at[2].set(7) for n in state}
    (mixed, *_), _ = fun(*args, sr_key=0, sr_state=of_third)
    (fresh, *_), _ = fun(*args, sr_key=0, sr_state=state)
    np.testing.assert_array_equal(mixed[ROWS[2]], y[ROWS[2]])
    np.testing.assert_array_equal(mixed[: ENDS[1]], fresh[: ENDS[1]])


def test_layers_of_experts_have_histories_of_their_own():
    def fun(ws: jax.Array, x: jax.Array, sizes: jax.Array) -> jax.Array:
        return lax.scan(lambda x, w: (lax.ragged_dot(x, w, sizes), None), x, ws)[0]

    args = normal(2, G, K, K), normal(M, K, seed=1), jnp.asarray(SIZES)
    outs: list[Any] = []
    for layer in ("jaxpr", "stablehlo"):
        made = srjit.srjit(fun, recipe="fp8-delayed", mode="inference", layer=layer)
        state = made.init_state(*args)
        assert {s.shape for s in state.values()} == {(2, G, 16)}
        outs.append(made(*args, sr_state=made(*args, sr_state=state)[1]))
    jax.tree.map(np.testing.assert_array_equal, *outs)


# ------------------------------------------------------------------------- batches, devices, files


def test_a_batch_of_groups_has_scales_of_every_expert():
    """Each batch with sizes, and rows that belong to nobody, of its own."""
    sizes = np.array([SIZES, SIZES[::-1] // 2])
    w, x, ct = (np.stack([a, np.ldexp(b, -6)]) for a, b in zip(operands(), operands(), strict=True))
    x[0, VALID:] = x[1, sizes[1].sum() :] = ct[0, VALID:] = ct[1, sizes[1].sum() :] = np.nan

    def plain(w: jax.Array, x: jax.Array, sizes: jax.Array) -> jax.Array:
        return lax.ragged_dot(x, w, sizes)

    def of_program(w: jax.Array, x: jax.Array, ct: jax.Array, sizes: jax.Array) -> Any:
        """The examples are a dimension of the products, which share scales."""
        y, pullback = jax.vjp(lambda w, x: jax.vmap(plain)(w, x, sizes), w, x)
        return y, *pullback(ct)

    quantized = srjit.transform(plain, recipe=nearest("int8"))

    def of_vmap(w: jax.Array, x: jax.Array, ct: jax.Array, sizes: jax.Array) -> Any:
        """The examples are quantized each for itself, but for the cotangents."""
        y, pullback = jax.vjp(
            lambda w, x: jax.vmap(lambda *a: quantized(*a, sr_key=0))(w, x, sizes), w, x
        )
        return y, *pullback(ct)

    q = RECIPES["int8"].activation
    for fun, together in (
        (srjit.srjit(of_program, recipe=nearest("int8")), True),
        (of_vmap, False),
    ):
        y, dw, dx = map(np.asarray, jax.jit(fun)(w, x, ct, sizes))
        for g in range(G):
            ends = sizes.cumsum(1)[:, g]
            rows = [slice(end - n, end) for end, n in zip(ends, sizes[:, g], strict=True)]
            own = [[t[b, r] for b, r in enumerate(rows)] for t in (x, ct)]
            alike = [q(np.concatenate(t)) for t in own]
            codes = [[t[: len(o[0])], t[len(o[0]) :]] for t, o in zip(alike, own, strict=True)]
            weights = q(np.concatenate(w[:, g])).reshape(2, K, N)
            for b, r in enumerate(rows):
                if not sizes[b, g]:
                    assert not dw[b, g].any()
                    continue
                a = codes[0][b] if together else q(own[0][b])
                c, v = codes[1][b], weights[b] if together else q(w[b, g])
                check(y[b, r], np.matmul, a, v, K)
                check(dx[b, r], lambda c, v: c @ v.T, c, v, N)
                check(dw[b, g], lambda a, c: a.T @ c, a, c, int(sizes[b, g]))


@pytest.mark.parametrize("layer", ["jaxpr", "stablehlo"])
def test_sharded_experts_have_the_bits_of_one_device(layer: str):
    """Of rows over four devices, of contractions over two: sums of codes are exact."""
    w, x, ct = operands()
    mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = (None, "m"), ("d", "m"), ("d",)
    placed = [
        jax.device_put(t, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))
        for t, spec in zip((w, with_garbage(x, np.nan), ct), specs, strict=True)
    ]
    for a, b in zip(run("int8", *placed, layer=layer), run("int8", w, x, ct), strict=True):
        np.testing.assert_array_equal(a[:VALID], b[:VALID])


def test_experts_on_devices_of_their_own_are_quantized_there():
    """Through both doors, with histories that devices share."""
    w, x, _ = operands()
    sizes = np.array([SIZES[:3], SIZES[3:]])
    mesh = jax.make_mesh((2,), ("e",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = np.array([with_garbage(x, np.nan), np.roll(with_garbage(x, np.nan), -ENDS[2], axis=0)])

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=jax.P("e"), out_specs=jax.P("e"))
    def of_shards(w: jax.Array, x: jax.Array, sizes: jax.Array) -> jax.Array:
        return lax.ragged_dot(x[0], w, sizes[0])[None]

    outs: list[Any] = []
    for layer in ("jaxpr", "stablehlo"):
        fun = srjit.srjit(of_shards, recipe="fp8-delayed", mode="inference", layer=layer)
        args = w, rows, sizes
        y, state = fun(*args, sr_state=fun.init_state(*args))
        assert {s.shape for s in state.values()} == {(3, 16)}
        outs.append((y, state))
    jax.tree.map(np.testing.assert_array_equal, *outs)
    y = np.asarray(outs[0][0])
    q = RECIPES["fp8"]
    for g in np.flatnonzero(SIZES):
        here = slice(ROWS[g].start - (g > 2) * ENDS[2], ROWS[g].stop - (g > 2) * ENDS[2])
        check(y[g // 3, here], np.matmul, q.activation(x[ROWS[g]]), q.weight(w[g]), K)


@pytest.mark.parametrize("recipe", ["int8", "nvfp4"])
def test_packed_experts_give_the_bits_of_those_that_are_not(recipe: str):
    def apply(params: Any, x: jax.Array, sizes: jax.Array) -> jax.Array:
        return lax.ragged_dot(x, params["w"], sizes)

    w, x, _ = operands()
    args = {"w": w}, x, jnp.asarray(SIZES)
    fun = srjit.srjit(apply, recipe=recipe, mode="inference")
    packed, frozen = srjit.freeze(fun, *args)
    assert packed["w.tensor_scale" if recipe == "nvfp4" else "w.scale"].shape == (G, 1, 1)
    np.testing.assert_array_equal(frozen(packed, *args[1:]), fun(*args))


# ------------------------------------------------------------------------------ what is said of it


def test_every_draw_of_experts_is_unbiased():
    w, x, ct = operands()
    certificate = srjit.srjit(step, recipe="int8").verify(w, x, ct, jnp.asarray(SIZES), draws=64)
    assert certificate.passed, certificate


@pytest.mark.parametrize("recipe", ["int8", "fp8-delayed", "nvfp4"])
def test_figures_of_experts_are_of_scales_of_their_own(recipe: str):
    """One scale would send all of the weakest expert's numbers to zero."""
    records: list[Any] = []
    w, x, ct = operands(12, 12)
    fun: Any = srjit.srjit(step, recipe=recipe, watch=records.append)
    args = w, x, ct, jnp.asarray(SIZES)
    fun(*args, sr_key=0, sr_state=fun.init_state(*args) or None)
    fun.watch.wait()
    assert {r.kind for r in records} == {"gradient"} and max(r.zeros for r in records) < 0.2


def test_reports_say_which_scales_are_of_experts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")  # no cell of two lines
    w, x, ct = operands()
    args = w, x, ct, jnp.asarray(SIZES)
    report = explain(step, *args, recipe="int8")
    assert "weight 6x48x40 int8 E" in str(report) and "expert" in str(report)
    assert "96x40 gradient int8 stochastic per expert" in report.to_html()
    assert "E:" not in str(explain(lambda w, x: x @ w, w[0], x))
    notes = explain(step, *args, recipe="int8-static").notes
    assert any("one scale is given for all experts" in note for note in notes)
