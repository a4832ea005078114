"""What each product computes: inferred where differentiation is inside the decorated function."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import srjit
from small_programs import (
    IN,
    PARAMS,
    X,
    Y,
    count,
    equations,
    explain,
    loss,
    mlp,
    normal,
    roles,
    sgd,
)

D = 4
SQUARE, ROWS = normal(D, D), normal(6, D)
MLP = {"fprop": 2, "wgrad": 2, "dgrad": 1}
BOTH = {"fprop": 2, "wgrad": 2, "dgrad": 2}


def _with(fun: Any, *args: Any) -> tuple[Any, tuple[Any, ...]]:
    return fun, args


def _scan_layers(body: Any) -> Any:
    return lambda ws, x: lax.scan(lambda h, w: (body(h, w), None), x, ws)[0].sum()


def _attention(params: Any, x: jax.Array) -> jax.Array:
    q, k, v = (x @ params[name] for name in "qkv")
    a = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k))
    return jnp.einsum("bqk,bkd->bqd", a, v) @ params["o"]


def _squares(fun: Any) -> Any:
    return lambda *args: (fun(*args) ** 2).sum()


ATTENTION = {name: normal(D, D, seed=i) for i, name in enumerate("qkvo")}
TOKENS = normal(2, 5, D)


def _explicit_cotangent(p: Any, x: jax.Array, y: jax.Array) -> Any:
    out, pullback = jax.vjp(mlp, p, x)
    return pullback(2 * (out - y) / out.size)


@jax.custom_vjp
def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b


_dot.defvjp(lambda a, b: (a @ b, (a, b)), lambda r, g: (g @ r[1].T, r[0].T @ g))


@jax.custom_vjp
def _scaled_dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b


def _scaled_forward(a: jax.Array, b: jax.Array) -> Any:
    return a @ b, (a * 1.5, b * 1.5)


def _scaled_backward(residuals: Any, g: jax.Array) -> Any:
    a, b = residuals
    return g @ b.T, a.T @ g


_scaled_dot.defvjp(_scaled_forward, _scaled_backward)


@jax.custom_jvp
def _ruled_dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b


@_ruled_dot.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (a, b), (ta, tb) = primals, tangents
    return _ruled_dot(a, b), ta @ b + a @ tb


def _by_hand_mlp(rule: Any) -> Any:
    @jax.custom_vjp
    def run(p: Any, x: jax.Array) -> jax.Array:
        return mlp(p, x)

    run.defvjp(lambda p, x: (mlp(p, x), (p, x)), rule)
    return lambda p, x, y: ((run(p, x) - y) ** 2).mean()


def _recomputing_rule(residuals: Any, g: jax.Array) -> Any:
    p, x = residuals
    h = jnp.tanh(x @ p["w1"])
    dh = (g @ p["w2"].T) * (1 - h * h)
    return {"w1": x.T @ dh, "w2": h.T @ g}, dh @ p["w1"].T


def _differentiating_rule(residuals: Any, g: jax.Array) -> Any:
    return jax.vjp(mlp, *residuals)[1](g)


@jax.custom_vjp
def _flash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.softmax(q @ k.T) @ v


def _flash_backward(residuals: Any, g: jax.Array) -> Any:
    """In blocks of two keys, as the forward pass did not."""
    q, k, v, top, total = residuals
    delta = (g * _flash(q, k, v)).sum(-1, keepdims=True)

    def block(dq: jax.Array, i: jax.Array) -> Any:
        kb, vb = (lax.dynamic_slice_in_dim(x, 2 * i, 2) for x in (k, v))
        a = jnp.exp(q @ kb.T - top) / total
        ds = a * (g @ vb.T - delta)
        return dq + ds @ kb, (ds.T @ q, a.T @ g)

    dq, (dk, dv) = lax.scan(block, jnp.zeros_like(q), jnp.arange(3))
    return dq, dk.reshape(k.shape), dv.reshape(v.shape)


def _flash_forward(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
    s = q @ k.T
    top = s.max(-1, keepdims=True)
    return _flash(q, k, v), (q, k, v, top, jnp.exp(s - top).sum(-1, keepdims=True))


_flash.defvjp(_flash_forward, _flash_backward)


def _flash_attention(p: Any, x: jax.Array) -> jax.Array:
    return (_flash(*(x @ p[name] for name in "qkv")) ** 2).sum()


def _mlp_of(dot: Any) -> Any:
    return lambda p, x, y: ((dot(jnp.tanh(dot(x, p["w1"])), p["w2"]) - y) ** 2).mean()


def _accumulated(p: Any, xs: jax.Array, ys: jax.Array) -> Any:
    def body(total: Any, batch: Any) -> Any:
        return jax.tree.map(jnp.add, total, jax.grad(loss)(p, *batch)), None

    return lax.scan(body, jax.tree.map(jnp.zeros_like, p), (xs, ys))[0]


def _many_steps(p: Any, xs: jax.Array, ys: jax.Array) -> Any:
    def body(p: Any, batch: Any) -> Any:
        return sgd(p, jax.grad(loss)(p, *batch)), None

    return lax.scan(body, p, (xs, ys))[0]


def _momentum_steps(state: Any, xs: jax.Array, ys: jax.Array) -> Any:
    def body(state: Any, batch: Any) -> Any:
        grads = jax.grad(loss)(state["params"], *batch)
        m = jax.tree.map(lambda m, g: 0.9 * m + g, state["m"], grads)
        finite = jnp.isfinite(grads["w1"]).all()
        p = jax.tree.map(
            lambda p, q: jnp.where(finite, q, p), state["params"], sgd(state["params"], m)
        )
        return {"params": p, "m": m}, None

    return lax.scan(body, state, (xs, ys))[0]


def _tied(p: Any, tokens: jax.Array) -> jax.Array:
    h = jnp.tanh(p["embedding"][tokens] @ p["w"])
    return jax.nn.log_softmax(h @ p["embedding"].T).mean()


def _lora(p: Any, x: jax.Array) -> jax.Array:
    frozen = lax.stop_gradient(x @ p["w"])
    return jnp.tanh(frozen + (x @ p["a"]) @ p["b"]).sum()


def _merged_lora(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ (p["w"] + p["a"] @ p["b"])).sum()


def _shard_mapped(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))
    rows, whole = PartitionSpec("d"), PartitionSpec()
    f = jax.shard_map(mlp, mesh=mesh, in_specs=(whole, rows), out_specs=rows)
    return ((f(p, x) - y) ** 2).mean()


def _spoofed(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    with jax.named_scope("transpose(jvp(fake))"):
        return loss(p, x, y)


def _remat(policy: Any = None) -> Any:
    block = jax.checkpoint(mlp, policy=policy)

    def run(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        with jax.named_scope("block"):
            return ((block(p, x) - y) ** 2).mean()

    return run


def _cond(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return lax.cond(x[0, 0] > 0, lambda: loss(p, x, y), lambda: loss(p, 2 * x, y))


def _bfloat16(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    cast = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (p, x))
    return loss(*cast, y)


STEP = (PARAMS, X, Y)
BATCHES = (jnp.stack([X, X]), jnp.stack([Y, Y]))
ADAPTERS = {"w": SQUARE, "a": normal(D, 2), "b": normal(2, D)}
CASES: dict[str, tuple[Any, tuple[Any, ...], dict[str, int]]] = {
    "an MLP": (*_with(jax.grad(loss), *STEP), MLP),
    "both arguments": (*_with(jax.jit(jax.value_and_grad(loss, argnums=(0, 1))), *STEP), BOTH),
    "grad of jit": (*_with(jax.grad(jax.jit(loss)), *STEP), MLP),
    "no gradient": (*_with(lambda *a: loss(*a) * 1.0, *STEP), {}),
    "w @ x": (
        *_with(jax.grad(lambda w, x: jnp.tanh(w @ x).sum(), argnums=(0, 1)), SQUARE, ROWS.T),
        {"fprop": 1, "wgrad": 1, "dgrad": 1},
    ),
    "scanned layers": (
        *_with(jax.grad(_scan_layers(lambda h, w: jnp.tanh(h @ w))), jnp.stack([SQUARE] * 3), ROWS),
        {"fprop": 1, "wgrad": 1, "dgrad": 1},
    ),
    "scanned checkpoints": (
        *_with(
            jax.grad(_scan_layers(jax.checkpoint(lambda h, w: jnp.tanh(jnp.tanh(h @ w) @ w)))),
            jnp.stack([SQUARE] * 3),
            ROWS,
        ),
        {"fprop": 2, "recomputed fprop": 2, "wgrad": 2, "dgrad": 2},
    ),
    "checkpoint in a scope": (*_with(jax.grad(_remat()), *STEP), MLP | {"recomputed fprop": 1}),
    "checkpoint in a checkpoint": (
        *_with(jax.grad(lambda *a: jax.checkpoint(_remat())(*a)), *STEP),
        {"recomputed fprop": 3, "wgrad": 2, "dgrad": 1},
    ),
    "checkpoint that saves dots": (
        *_with(jax.grad(_remat(jax.checkpoint_policies.dots_saveable)), *STEP),
        MLP,
    ),
    "cond": (*_with(jax.grad(_cond), *STEP), {"fprop": 4, "wgrad": 4, "dgrad": 2}),
    "a loop without gradient": (
        *_with(lambda w, x: lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ w), x), SQUARE, ROWS),
        {},
    ),
    "attention": (
        *_with(jax.grad(_squares(_attention), argnums=(0, 1)), ATTENTION, TOKENS),
        {"fprop": 4, "fprop.act": 2, "wgrad": 4, "dgrad": 4, "dgrad.act": 4},
    ),
    "attention in jit in checkpoint": (
        *_with(
            jax.grad(_squares(jax.checkpoint(jax.jit(_attention)))),
            ATTENTION,
            TOKENS,
        ),
        {"fprop": 4, "fprop.act": 2, "recomputed fprop": 3, "recomputed fprop.act": 2}
        | {"wgrad": 4, "dgrad": 1, "dgrad.act": 4},
    ),
    "vmap of grad": (
        *_with(
            jax.vmap(jax.grad(lambda p, x, y: loss(p, x[None], y[None])), in_axes=(None, 0, 0)),
            *STEP,
        ),
        MLP,
    ),
    "grad of vmap": (
        *_with(
            jax.grad(lambda p, x, y: ((jax.vmap(mlp, (None, 0))(p, x) - y) ** 2).mean()), *STEP
        ),
        MLP,
    ),
    "an explicit cotangent": (*_with(_explicit_cotangent, *STEP), BOTH),
    "custom_vjp": (*_with(jax.grad(_mlp_of(_dot)), *STEP), MLP),
    "custom_vjp with other residuals": (*_with(jax.grad(_mlp_of(_scaled_dot)), *STEP), MLP),
    "custom_vjp that computes its forward products again": (
        *_with(jax.grad(_by_hand_mlp(_recomputing_rule), (0, 1)), *STEP),
        BOTH | {"recomputed fprop": 1},
    ),
    "custom_vjp that differentiates by itself": (
        *_with(jax.grad(_by_hand_mlp(_differentiating_rule), (0, 1)), *STEP),
        BOTH | {"recomputed fprop": 1},
    ),
    "custom_jvp": (*_with(jax.grad(_mlp_of(_ruled_dot)), *STEP), MLP),
    "shard_map": (*_with(jax.grad(_shard_mapped), *STEP), MLP),
    "weights cast to bfloat16": (*_with(jax.grad(_bfloat16), *STEP), MLP),
    "accumulated gradients": (*_with(_accumulated, PARAMS, *BATCHES), MLP),
    "many steps in a loop": (*_with(_many_steps, PARAMS, *BATCHES), MLP),
    "parameters nested in a state": (
        *_with(_momentum_steps, {"params": PARAMS, "m": PARAMS}, *BATCHES),
        MLP,
    ),
    "tied embeddings": (
        *_with(jax.grad(_tied), {"embedding": normal(9, D), "w": SQUARE}, jnp.arange(5)),
        {"fprop": 2, "wgrad": 2, "dgrad": 2},
    ),
    "LoRA beside a frozen weight": (
        *_with(jax.grad(_lora), ADAPTERS, ROWS),
        {"fprop": 3, "wgrad": 2, "dgrad": 1},
    ),
    "LoRA merged into the weight": (
        *_with(jax.grad(_merged_lora), ADAPTERS, ROWS),
        {"fprop": 2, "wgrad": 2, "dgrad": 1},
    ),
}  # fmt: skip


def test_attention_in_blocks_knows_scores_from_their_gradients():
    args = {name: normal(D, D, seed=i) for i, name in enumerate("qkv")}, normal(6, D)
    sites = explain(jax.grad(_flash_attention), *args).sites
    scores = [s for s in sites if s.phase == "recompute"]
    assert {s.role for s in scores} == {"fprop"}
    assert (6, 2) in {s.out_shape for s in scores}  # q @ kb.T
    inside = [s for s in sites if s.trips == 3 and s not in scores]
    # In a.T @ g both were computed backward, and neither as it was forward: nobody can tell.
    assert sorted(s.role for s in inside) == ["dgrad", "dgrad", "dgrad", "unknown"]


def test_what_a_rule_computes_again_is_rounded_as_it_was_forward():
    noisy = srjit.recipes.get("int8").with_rounding(activations="stochastic")
    f = srjit.srjit(jax.value_and_grad(_by_hand_mlp(_recomputing_rule)), recipe=noisy)
    (again,) = [s for s in f.explain(*STEP).sites if s.phase == "recompute"]
    assert (again.lhs.rounding, again.rhs.rounding) == ("stochastic", "nearest")
    calls = equations(f.rewritten(*STEP), "int8_stochastic")
    shapes = [v.aval.shape for e in calls for v in e.invars if v.aval.ndim]
    assert shapes.count(X.shape) == 1  # one draw serves both


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2]])
def test_roles_are_those_of_the_mathematics(name: str):
    fun, args, expected = CASES[name]
    assert roles(fun, *args) == expected


def test_without_differentiation_inside_each_product_comes_with_its_gradients():
    assert roles(loss, *STEP) == {"fprop": 2, "wgrad": 2, "dgrad": 2}
    assert roles(loss, *STEP, mode="inference") == {"fprop": 2}


def test_a_scope_cannot_pretend_to_be_a_transposition():
    assert roles(_spoofed, *STEP, mode="inference") == {"fprop": 2}


def test_both_operands_of_each_backward_product_have_their_kinds():
    fun, args, _ = CASES["custom_vjp with other residuals"]
    for site in explain(fun, *args).sites:
        # This rule puts the gradient on the left of dgrad and on the right of wgrad.
        expected = {
            "fprop": ("activation", "weight"),
            "dgrad": ("gradient", "weight"),
            "wgrad": ("activation", "gradient"),
        }
        assert (site.lhs_kind, site.rhs_kind) == expected[site.role]


def test_w_at_x_has_its_weight_on_the_left():
    (site, *_) = explain(lambda w, x: w @ x, SQUARE, ROWS.T).sites
    assert (site.lhs_kind, site.rhs_kind) == ("weight", "activation")


def test_captured_arrays_are_weights_where_they_meet_data():
    def step(x: jax.Array, y: jax.Array) -> Any:
        return jax.grad(lambda p: loss(p, x, y))(PARAMS)

    assert roles(step, X, Y, params_argnums=()) == MLP


def test_an_argument_that_is_no_parameter_makes_an_activation():
    assert roles(lambda w, x: x @ w, SQUARE, ROWS, params_argnums=()) == {
        "fprop.act": 1,
        "dgrad.act": 2,
    }
    assert roles(lambda x, w: x @ w, ROWS, SQUARE, params_argnums=1) == {
        "fprop": 1,
        "wgrad": 1,
        "dgrad": 1,
    }


@pytest.mark.parametrize("scanned", [False, True], ids=["a layer", "a stack of layers"])
def test_a_frozen_base_beside_adapters_is_asked_for(scanned: bool):
    def step(adapters: Any, base: Any, x: jax.Array) -> Any:
        layer = lambda h, w: jnp.tanh(h @ w + (h @ adapters["a"]) @ adapters["b"])  # noqa: E731
        out = lax.scan(lambda h, w: (layer(h, w), None), x, base)[0] if scanned else layer(x, base)
        return (out**2).sum()

    base = jnp.stack([SQUARE] * 3) if scanned else SQUARE
    args = {k: v for k, v in ADAPTERS.items() if k != "w"}, base, ROWS
    asked = lambda **options: [  # noqa: E731
        n for n in explain(jax.grad(step), *args, **options).notes if "params_argnums" in n
    ]
    assert len(asked()) == 1
    assert not asked(params_argnums=(0, 1))
    assert not [n for n in explain(_attention, ATTENTION, TOKENS).notes if "argument" in n]


# ------------------------------------------------------------------------ what is not inferred


def _orthogonalized(g: jax.Array) -> jax.Array:
    g = g / jnp.linalg.norm(g)
    return 1.5 * g - 0.5 * g @ (g.T @ g)


def _muon(state: Any, x: jax.Array, y: jax.Array) -> Any:
    grads = jax.grad(loss)(state["params"], x, y)
    m = jax.tree.map(lambda m, g: 0.9 * m + g, state["m"], grads)
    return {"params": sgd(state["params"], jax.tree.map(_orthogonalized, m)), "m": m}


def _muon_apart(params: Any, m: Any, x: jax.Array, y: jax.Array) -> Any:
    state = _muon({"params": params, "m": m}, x, y)
    return state["params"], state["m"]


@pytest.mark.parametrize(
    ("step", "args"),
    [(_muon, ({"params": PARAMS, "m": PARAMS}, X, Y)), (_muon_apart, (PARAMS, PARAMS, X, Y))],
    ids=["state in one argument", "state in two"],
)
def test_the_products_of_an_optimizer_are_kept_with_a_reason(step: Any, args: Any):
    srjit.srjit(step, recipe="int8", strict=True).lower(
        *args
    )  # nothing that was asked for is missed
    report = explain(step, *args)
    updates = [s for s in report.sites if s.role == "unknown"]
    assert len(updates) == 4
    assert {s.status for s in updates} == {"kept"}
    assert all("update" in s.reason for s in updates)
    assert len([s for s in report.sites if s.status != "kept"]) == 5


def test_a_model_outside_of_the_gradient_is_still_a_forward_pass():
    def step(params: Any, teacher: Any, x: jax.Array) -> Any:
        return jax.grad(loss)(params, x, mlp(teacher, x))

    assert roles(step, PARAMS, PARAMS, X, params_argnums=(0, 1)) == MLP | {"fprop": 4}


def _penalty(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss)(p, x, y)))


@pytest.mark.parametrize(
    "fun",
    [jax.grad(_penalty), lambda p, x, y: jax.jvp(jax.grad(loss), (p, x, y), (p, x, y))],
    ids=["reverse over reverse", "forward over reverse"],
)
def test_second_derivatives_inside_are_unknown_kept_and_reported(fun: Any):
    report = explain(fun, *STEP)
    seconds = [s for s in report.sites if s.role == "unknown"]
    assert seconds and all(s.status == "kept" and "second derivative" in s.reason for s in seconds)
    with pytest.raises(srjit.UnsupportedSiteError, match="second derivative"):
        srjit.srjit(fun, recipe="int8", strict=True).lower(*STEP)


def test_a_hessian_whose_forward_pass_is_dead_code_is_not_taken_for_a_gradient():
    loss = lambda w, x: ((x @ w) ** 2).sum()  # noqa: E731

    def hvp(w: jax.Array, v: jax.Array, x: jax.Array) -> jax.Array:
        return jax.grad(lambda w: jnp.vdot(jax.grad(loss)(w, x), v))(w)

    sites = explain(hvp, normal(D, 3), normal(D, 3, seed=1), ROWS).sites
    assert "fprop" not in {s.role for s in sites} and sites[0].role == "unknown"


def test_a_jvp_rule_that_differentiates_by_itself_may_be_a_second_derivative_and_is_told_so():
    rule = jax.custom_jvp(mlp)
    rule.defjvp(lambda primals, tangents: jax.jvp(mlp, primals, tangents))
    sites = explain(jax.grad(lambda p, x, y: ((rule(p, x) - y) ** 2).mean()), *STEP).sites
    assert {s.status for s in sites} == {"kept"}
    assert all("rule that differentiates by itself" in s.reason for s in sites)


def _by_hand(tagged: bool) -> Any:
    tag = srjit.role if tagged else (lambda *a, **k: jax.named_scope("plain"))

    def step(p: Any, x: jax.Array, y: jax.Array) -> Any:
        h = jnp.tanh(x @ p["w1"])
        out = h @ p["w2"]
        g = 2 * (out - y) / out.size
        with tag("wgrad", gradient=1):
            dw2 = h.T @ g
        with tag("dgrad", gradient=0):
            dh = (g @ p["w2"].T) * (1 - h * h)
        with tag("wgrad", gradient=1):
            dw1 = x.T @ dh
        return {"w1": dw1, "w2": dw2}

    return step


def test_a_backward_pass_written_by_hand_needs_tags_and_then_is_right():
    assert roles(_by_hand(tagged=True), *STEP, mode="inference") == MLP
    assert roles(_by_hand(tagged=False), *STEP, mode="inference") != MLP
    gradients = {
        s.role: (s.lhs_kind, s.rhs_kind) for s in explain(_by_hand(tagged=True), *STEP).sites
    }
    assert gradients["wgrad"] == ("activation", "gradient")
    assert gradients["dgrad"] == ("gradient", "weight")


# ---------------------------------------------------------------------------------- keeping


def _kept_layer(wrap: Any) -> Any:
    def layer(x: jax.Array, w: jax.Array) -> jax.Array:
        with srjit.keep_high_precision():
            return x @ w

    inner = wrap(layer)
    return lambda p, x, y: ((inner(jnp.tanh(x @ p["w1"]), p["w2"]) - y) ** 2).mean()


def _kept_backward(layer: Any) -> Any:
    @jax.custom_vjp
    def run(x: jax.Array, w: jax.Array) -> jax.Array:
        return layer(x, w)

    def backward(residuals: Any, g: jax.Array) -> Any:
        x, w = residuals
        with srjit.keep_high_precision():
            return g @ w.T, x.T @ g

    run.defvjp(lambda x, w: (run(x, w), (x, w)), backward)
    return run


@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, jax.checkpoint, _kept_backward, lambda f: jax.jit(jax.jit(f))]
)
@pytest.mark.parametrize("inside", [True, False], ids=["grad inside", "grad outside"])
def test_what_a_user_keeps_stays_in_high_precision_with_its_gradients(wrap: Any, inside: bool):
    fun = _kept_layer(wrap)
    sites = explain(jax.grad(fun) if inside else fun, *STEP).with_gradients
    kept = [s for s in sites if s.status == "kept"]
    assert {s.reason for s in kept} == {"srjit.keep_high_precision"}
    assert {s.role for s in kept} >= ({"fprop", "wgrad", "dgrad"} if inside else {"fprop"})
    assert len([s for s in sites if s.status != "kept"]) == (2 if inside else 3)


def test_ends_are_kept_with_their_gradients_also_under_checkpoint():
    recipe = srjit.Recipe(
        name="ends", rules=srjit.recipes.get("int8").rules, keep_first=1, keep_last=1
    )
    params = {f"w{i}": normal(IN, IN, seed=i) for i in range(1, 5)}
    step = jax.grad(lambda p, x: (jax.checkpoint(mlp)(p, x) ** 2).mean())
    quantized = [s for s in explain(step, params, X, recipe=recipe).sites if s.status != "kept"]
    # Of four layers the two in the middle: forward, recomputed forward, dgrad and wgrad.
    assert sorted(s.role for s in quantized) == ["dgrad"] * 2 + ["fprop"] * 4 + ["wgrad"] * 2


# ------------------------------------------------------------------------------ names for people


def _named(params: Any, x: jax.Array) -> jax.Array:
    @jax.jit
    def feed_forward(x: jax.Array, w: jax.Array) -> jax.Array:
        with jax.named_scope("up"):
            return jnp.einsum("ij,jk->ik", x, w)

    for i in range(2):
        with jax.named_scope(f"block{i}"):
            x = jax.checkpoint(functools.partial(feed_forward, w=params["w"]))(x)
            with jax.named_scope("body"):
                x = lax.scan(lambda h, _: (jnp.tanh(h @ params["w"]), None), x, None, length=2)[0]
    return x.sum()


@pytest.mark.parametrize("fun", [_named, jax.grad(_named), jax.jit(jax.grad(jax.jit(_named)))])
def test_paths_are_the_users_scopes_and_nothing_else(fun: Any):
    paths = [s.path for s in explain(fun, {"w": SQUARE}, ROWS).sites]
    assert set(paths) == {"block0/up", "block0/body", "block1/up", "block1/body"}


def test_sites_say_how_their_role_was_found_and_where_they_stand():
    for site in explain(jax.grad(loss), *STEP).sites:
        assert site.why and __package__ not in site.why
        assert site.location.split(":")[0].endswith("programs.py")


def test_a_rule_that_matches_nothing_is_reported_unless_every_model_may_lack_it():
    rules = srjit.recipes.get("nvfp4").rules
    mine = srjit.Recipe(name="mine", rules=(srjit.Rule(path="*typo*", keep="mine"), *rules))
    notes = explain(loss, *STEP, recipe=mine).notes
    assert len([n for n in notes if "matched no site" in n]) == 1
    assert not [n for n in explain(loss, *STEP, recipe="nvfp4").notes if "matched no site" in n]


def test_the_cotangent_of_a_product_that_is_dead_code_is_its_gradient():
    def step(params: Any, x: jax.Array, ct: jax.Array) -> Any:
        _, pullback = jax.vjp(mlp, params, x)
        return pullback(ct)

    sites = explain(step, PARAMS, X, jnp.ones_like(Y)).sites
    assert sorted(s.role for s in sites) == ["dgrad", "dgrad", "fprop", "wgrad", "wgrad"]
    last = next(s for s in sites if s.role == "wgrad")
    assert (last.lhs_kind, last.rhs_kind) == ("gradient", "activation")
    assert (last.lhs.rounding, last.rhs.rounding) == ("stochastic", "nearest")


def test_a_cotangent_from_outside_makes_gradients():
    def step(w: jax.Array, x: jax.Array, ct: jax.Array) -> Any:
        out, pullback = jax.vjp(lambda w, x: x @ w, w, x)
        return out, pullback(ct)

    assert roles(step, SQUARE, ROWS, ROWS + 1) == {"fprop": 1, "dgrad": 1, "wgrad": 1}


@pytest.mark.parametrize("recipe", ["int8", "nvfp4"])
def test_what_an_inner_srjit_has_rewritten_is_left_alone(recipe: str):
    def inner(w: jax.Array, x: jax.Array) -> jax.Array:
        return (srjit.transform(lambda w, x: x @ w, recipe=recipe)(w, x, sr_key=1) ** 2).sum()

    report = explain(jax.grad(inner), SQUARE, ROWS, recipe=recipe)
    assert not report.sites
    assert any("already rewritten by an inner srjit" in note for note in report.notes)


def test_two_calls_of_a_stateful_generator_are_two_values():
    def fun(w: jax.Array) -> jax.Array:
        a, b = (lax.rng_uniform(0.0, 1.0, (8, w.shape[0])) for _ in range(2))
        return a @ w - b @ w

    jaxpr = srjit.srjit(fun, recipe="int8-qat").rewritten(SQUARE)
    assert count(jaxpr, "srjit_quantize_int8") == 3  # two of data, one of the weight


@pytest.mark.parametrize("size", [4, 5])
def test_rules_know_the_size_of_every_kind_of_product(size: int):
    def fun(params: Any, x: jax.Array, image: jax.Array) -> Any:
        conv = lax.conv_general_dilated(image, params["kernel"], (1, 1), "SAME")
        ragged = lax.ragged_dot(x, params["experts"], jnp.array([3, 5]))
        return conv, ragged, x @ params["w"]

    params = {
        "kernel": jnp.ones((4, 3, 3, 3)), "experts": jnp.ones((2, 8, 4)), "w": jnp.ones((8, 4)),
    }  # fmt: skip
    (rule,) = (r for r in srjit.recipes.get("int8").rules if r.fprop)
    recipe = srjit.Recipe(name="mine", rules=(dataclasses.replace(rule, min_size=size),))
    report = explain(fun, params, jnp.ones((8, 8)), jnp.ones((1, 3, 5, 5)), recipe=recipe)
    forward = [s for s in report.sites if s.role == "fprop"]
    assert len(forward) == 3
    assert all((s.status != "kept") == (size == 4) for s in forward)
