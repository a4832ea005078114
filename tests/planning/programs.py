"""Programs, and how many products of each role they have."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from small_programs import (
    PARAMS,
    X,
    Y,
    loss,
    mlp,
    normal,
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
