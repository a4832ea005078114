"""Programs that go through both doors: every kind of product, loop, branch and call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Step = Callable[..., Any]


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Random weights and data, so small that activations stay near 1."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) / 3, jnp.float32)


def sgd(loss: Callable[..., jax.Array]) -> Step:
    """One step of gradient descent on ``loss(params, *batch)``."""

    def step(params: Any, *batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, *batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    return step


X = normal(8, 16, seed=9)
LAYERS = {
    "q": normal(3, 16, 16, seed=1),
    "up": normal(3, 16, 32, seed=2),
    "down": normal(3, 32, 16, seed=3),
}
PARAMS = {"layers": LAYERS, "head": normal(16, 5, seed=4)}


def _mlp(params: Any, x: jax.Array) -> jax.Array:
    for i in range(3):
        x = jax.nn.gelu(x @ params["layers"]["up"][i]) @ params["layers"]["down"][i]
    return ((x @ params["head"]) ** 2).mean()


@jax.jit
def _feed_forward(x: jax.Array, layer: Any) -> jax.Array:
    with jax.named_scope("mlp"):
        return jnp.tanh(x @ layer["up"]) @ layer["down"]


def _block(x: jax.Array, layer: Any) -> jax.Array:
    with jax.named_scope("attention"):
        q = x @ layer["q"]
        x = x + jax.nn.softmax(q @ q.T) @ q
    return x + _feed_forward(x, layer)


def _transformer(params: Any, x: jax.Array) -> jax.Array:
    """Scanned and rematerialized layers, one more that shares their function, and a branch."""
    body = jax.checkpoint(lambda x, layer: (_block(x, layer), None))
    x, _ = lax.scan(body, x, params["layers"])
    x = _feed_forward(x, jax.tree.map(lambda w: w[0], params["layers"]))
    logits = lax.cond(
        x.sum() > 0, lambda x: x @ params["head"], lambda x: 2 * x @ params["head"], x
    )
    return (logits**2).mean()


def _convolutions(params: Any, x: jax.Array) -> jax.Array:
    names = ("NHWC", "HWIO", "NHWC")
    conv = functools.partial(lax.conv_general_dilated, padding="SAME", dimension_numbers=names)
    x = jax.nn.relu(conv(x, params["a"], (2, 2)))
    x = conv(x, params["b"], (1, 1), rhs_dilation=(2, 2), feature_group_count=2)
    return (x.mean((1, 2)) @ params["head"]).var()


def _experts(params: Any, x: jax.Array) -> jax.Array:
    sizes = jnp.array([2, 3, 1])  # two rows belong to nobody
    x = jax.nn.relu(lax.ragged_dot(x, params["up"], sizes))
    return (lax.ragged_dot(x, params["down"], sizes)[:6] ** 2).mean()


def _while(params: Any, x: jax.Array) -> Any:
    weights = params["layers"]["q"]

    def going_on(state: Any) -> jax.Array:
        return (state[0] < 2.5) & (jnp.abs(state[1] @ weights[1]).sum() > 1e-6)

    def body(state: Any) -> Any:
        return state[0] + 1, jnp.tanh(state[1] @ weights[0])

    return lax.while_loop(going_on, body, (0.0, x))[1]


def _counted(params: Any, x: jax.Array) -> jax.Array:
    body = lambda i, x: jnp.tanh(x @ params["layers"]["q"][0]) * (i + 1)  # noqa: E731
    return lax.fori_loop(0, 3, body, x).sum()


def _backwards(params: Any, x: jax.Array) -> jax.Array:
    def layer(x: jax.Array, w: jax.Array) -> Any:
        return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=2)[0], x.sum()

    x, sums = lax.scan(layer, x, params["layers"]["q"], reverse=True)
    return x.sum() + sums.sum()


def _switch(params: Any, x: jax.Array) -> jax.Array:
    head = params["head"]
    branches = [lambda x: x @ head, lambda x: jnp.tanh(x) @ head, lambda x: (2 * x) @ head]
    return lax.switch(jnp.int32(x[0, 0] > 0) + 1, branches, x).sum()


def _shared(params: Any, x: jax.Array) -> jax.Array:
    layer = jax.jit(lambda x, w: jnp.tanh(x @ w))
    for w in params["layers"]["q"]:
        x = layer(x, w)
    return x.sum()


def _policy(params: Any, x: jax.Array) -> jax.Array:
    policy = jax.checkpoint_policies.dots_saveable
    return jax.checkpoint(_transformer, policy=policy)(params, x)


def _vmapped(params: Any, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: jnp.tanh(x @ params["layers"]["q"][0]).sum())(x[:, None]).sum()


def _dead(params: Any, x: jax.Array) -> Any:
    two = jax.jit(lambda x, w: (x @ w, (2 * x) @ w))
    _ = x @ params["layers"]["q"][0]
    return two(x, params["layers"]["q"][1])[1] + two(x, params["layers"]["q"][2])[0]


def _half(params: Any, x: jax.Array) -> jax.Array:
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    return jnp.tanh(x.astype(jnp.bfloat16) @ low["layers"]["q"][0]).astype(jnp.float32).sum()


def _sharded(params: Any, x: jax.Array, *, check: bool) -> jax.Array:
    """Rows and contraction sharded by hand."""

    def shard(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tanh(lax.psum(x @ w, "m")).sum(keepdims=True)

    mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(AxisType.Auto,) * 2)
    specs = PartitionSpec("m"), PartitionSpec("d", "m")
    out = PartitionSpec("d")
    mapped = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=out, check_vma=check)
    return mapped(params["layers"]["q"][0], x).sum()


def _collectives(params: Any, x: jax.Array, *, check: bool) -> Any:
    """Values that differ along one axis, along both, and not at all, laid out in several ways."""

    def shard(w: jax.Array, x: jax.Array) -> Any:
        mine = jnp.tanh(x @ w) + lax.axis_index("d")
        turned = lax.ppermute(mine, "d", [(i, (i + 1) % 4) for i in range(4)])
        swapped = lax.all_to_all(jnp.tanh(turned), "m", 1, 1, tiled=True)
        parts = lax.psum_scatter(swapped @ w, "m", scatter_dimension=1, tiled=True)
        whole = lax.all_gather(parts, "d", axis=0, tiled=True)
        return mine @ w, parts, whole, (whole.T @ whole)[None]

    mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(AxisType.Auto,) * 2)
    rows, both = PartitionSpec("d"), PartitionSpec("d", "m")
    outs = rows, both, PartitionSpec("d", "m"), PartitionSpec(("d", "m"))
    if check:
        outs = PartitionSpec("d"), both, both, PartitionSpec(("d", "m"))
    specs = PartitionSpec(), rows
    mapped = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=outs, check_vma=check)
    return mapped(params["layers"]["q"][0], x)


def _two_layouts(params: Any, x: jax.Array) -> Any:
    """What two shard_maps made alike, and put together along other axes or dimensions."""

    def of(*spec: Any) -> jax.Array:
        mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(AxisType.Auto,) * 2)
        return jax.shard_map(
            jnp.tanh, mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec(*spec),
            check_vma=False,
        )(x)  # fmt: skip

    w = params["layers"]["q"][0]
    square = of("d") @ w, of(("d", "m"))[:8] @ w
    return *square, of(None, "d") @ jnp.concatenate([w] * 4)


def _two_versions(params: Any, x: jax.Array) -> jax.Array:
    """A function with shards, of a weight here and of an activation there: it becomes two."""

    @jax.jit
    def layer(w: jax.Array, v: jax.Array, x: jax.Array) -> jax.Array:
        shard = lambda w, x: lax.psum(x @ w, "m")  # noqa: E731
        mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(AxisType.Auto,) * 2)
        specs = PartitionSpec("m"), PartitionSpec("d", "m")
        out = PartitionSpec("d")
        mapped = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
        return jnp.tanh(mapped(w, x)) @ v

    q = params["layers"]["q"]
    return layer(q[0], q[1], x).sum() + layer(q[0], x.T @ x, x).sum()


_KERNELS = {"a": normal(3, 3, 3, 8), "b": normal(3, 3, 4, 8, seed=1), "head": normal(8, 5, seed=2)}
_EXPERTS = {"up": normal(3, 16, 32, seed=1), "down": normal(3, 32, 16, seed=2)}

PROGRAMS: dict[str, tuple[Step, tuple[Any, ...]]] = {
    "mlp": (sgd(_mlp), (PARAMS, X)),
    "transformer": (sgd(_transformer), (PARAMS, X)),
    "convolutions": (sgd(_convolutions), (_KERNELS, normal(2, 8, 8, 3))),
    "experts": (sgd(_experts), (_EXPERTS, X)),
    "while": (_while, (PARAMS, X)),
    "fori": (sgd(_counted), (PARAMS, X)),
    "nested reverse scan": (sgd(_backwards), (PARAMS, X)),
    "switch": (sgd(_switch), (PARAMS, X)),
    "shared function": (sgd(_shared), (PARAMS, X)),
    "checkpoint policy": (sgd(_policy), (PARAMS, X)),
    "vmap": (sgd(_vmapped), (PARAMS, X)),
    "dead code": (_dead, (PARAMS, X)),
    "bfloat16": (sgd(_half), (PARAMS, X)),
    "shard_map": (sgd(functools.partial(_sharded, check=True)), (PARAMS, X)),
    "collectives": (functools.partial(_collectives, check=True), (PARAMS, X)),
    "unchecked collectives": (functools.partial(_collectives, check=False), (PARAMS, X)),
    "two layouts": (_two_layouts, (PARAMS, X)),
    "two versions": (sgd(_two_versions), (PARAMS, X)),
    "unchecked shard_map": (sgd(functools.partial(_sharded, check=False)), (PARAMS, X)),
}


def on_eight_devices(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of a program, the batch sharded over eight devices, parameters on all of them."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    params, x = args
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec("d"))
    return jax.device_put(params, whole), jax.device_put(x, rows)
