"""The programs of tpu_mesh.py and gpu_mesh.py, written as users write them: none knows of srjit.

A step takes its parameters (of AdamW: with both moments), x and a cotangent y, and gives back the
new parameters and the loss. Shapes are of the whole mesh.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention
from jax.sharding import PartitionSpec as P

BF16, F32 = jnp.bfloat16, jnp.float32
SEQUENCE, HEADS = 2048, 32


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large a layer is: tokens of a device, or of a group that shares a product."""

    tokens: int = 8192
    width: int = 4096
    hidden: int = 16384


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a program is sharded: axes of the mesh that tokens, rows and columns go over.

    Attributes:
      axes: sizes by name.
      groups: how many groups of devices have tokens of their own.
      tokens: what tokens are sharded over.
      rows: what the dimension of weights is sharded over that nothing else uses: FSDP.
      columns: what the hidden dimension is sharded over: tensor parallelism.
      sequence_parallel: whether tokens are whole where the hidden dimension is sharded.
    """

    axes: Mapping[str, int] = dataclasses.field(hash=False)
    groups: int
    tokens: str | None = None
    rows: str | None = None
    columns: str | None = None
    sequence_parallel: bool = False

    @property
    def x(self) -> P:
        return P(self.tokens, None)

    @property
    def hidden(self) -> P:
        return P(None if self.sequence_parallel else self.tokens, self.columns)

    @property
    def up(self) -> P:
        return P(self.rows, self.columns)

    @property
    def down(self) -> P:
        return P(self.columns, self.rows)


def layouts(devices: int) -> dict[str, Layout]:
    """Layouts of a mesh of that many devices, by what they are called."""
    data, model = {"data": devices}, {"model": devices}
    both = {"data": devices // 2, "model": 2}
    return {
        "DP": Layout(data, devices, tokens="data"),
        "FSDP": Layout(data, devices, tokens="data", rows="data"),
        "TP": Layout(model, 1, columns="model"),
        "TP + SP": Layout(model, 1, tokens="model", columns="model", sequence_parallel=True),
        "FSDP x TP 2": Layout(both, devices // 2, tokens="data", rows="data", columns="model"),
    }


@dataclasses.dataclass(frozen=True)
class Program:
    """A step, its arguments without values, and how those and its results are sharded."""

    axes: Mapping[str, int]
    step: Callable[..., Any]
    args: tuple[Any, ...]
    specs: tuple[Any, ...]
    out_specs: Any
    layers: int


def shape(*dims: int, dtype: Any = BF16) -> Any:
    return jax.ShapeDtypeStruct(dims, dtype)


# ----------------------------------------------------------------------------- linear layer, MLP

Apply = Callable[..., jax.Array]


def linear_of(layout: Layout) -> Apply:
    return lambda params, x: constrained(x @ params["up"], layout.hidden)


def mlp_of(layout: Layout) -> Apply:
    def apply(params: Any, x: jax.Array) -> jax.Array:
        hidden = constrained(jax.nn.gelu(x @ params["up"]), layout.hidden)
        return constrained(hidden @ params["down"], layout.x)

    return apply


def constrained(x: jax.Array, spec: P) -> jax.Array:
    return lax.with_sharding_constraint(x, spec) if any(spec) else x


def linear(layout: Layout, sizes: Sizes) -> Program:
    params, specs = {"up": shape(sizes.width, sizes.hidden)}, {"up": layout.up}
    return sgd_program(layout, sizes, linear_of(layout), params, specs, layers=1)


def mlp(layout: Layout, sizes: Sizes) -> Program:
    params = {"up": shape(sizes.width, sizes.hidden), "down": shape(sizes.hidden, sizes.width)}
    specs = {"up": layout.up, "down": layout.down}
    return sgd_program(layout, sizes, mlp_of(layout), params, specs, layers=2)


def sgd_program(
    layout: Layout, sizes: Sizes, apply: Apply, params: Any, specs: Any, layers: int, *extra: Any
) -> Program:
    """One step of SGD; what is ``extra`` among the arguments, such as a key, goes to ``apply``."""

    def loss(params: Any, x: jax.Array, y: jax.Array, *extra: Any) -> jax.Array:
        return jnp.mean((apply(params, x, *extra) * y).astype(F32))

    def step(params: Any, x: jax.Array, y: jax.Array, *extra: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, x, y, *extra)
        moved = lambda p, g: (p - 1e-3 * g.astype(F32)).astype(p.dtype)  # noqa: E731
        return jax.tree.map(moved, params, grads), value

    tokens = sizes.tokens * layout.groups
    x = shape(tokens, sizes.width)
    y, y_spec = (x, layout.x) if layers > 1 else (shape(tokens, sizes.hidden), layout.hidden)
    return Program(
        axes=layout.axes,
        step=step,
        args=(params, x, y, *extra),
        specs=(specs, layout.x, y_spec, *(P() for _ in extra)),
        out_specs=(specs, P()),
        layers=layers,
    )


# --------------------------------------------------------------------------- transformer blocks


def _norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    y = x.astype(F32)
    y = y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-6)
    return (y * gain).astype(x.dtype)


def attention(qkv: jax.Array) -> jax.Array:
    """Causal attention of one device: (batch, time, 3, heads, head), in JAX's own kernels."""
    parts = qkv.transpose(2, 0, 3, 1, 4)
    size = min(512, qkv.shape[1])
    sizes = dict.fromkeys(BlockSizes.get_default(1, 1, 1, 1, 1).__dict__, size)
    blocks = BlockSizes(**{**sizes, "block_b": 1})
    scale = qkv.shape[-1] ** -0.5
    out = flash_attention(*parts, causal=True, sm_scale=scale, block_sizes=blocks)
    return out.transpose(0, 2, 1, 3)


def plain_attention(qkv: jax.Array) -> jax.Array:
    """The same where JAX's kernels do not run."""
    q, k, v = (qkv[:, :, i] for i in range(3))
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def _block(params: Any, x: jax.Array, attend: Callable[..., jax.Array], tokens: Any) -> jax.Array:
    batch, time, width = x.shape
    qkv = (_norm(x, params["norm1"]) @ params["qkv"]).reshape(batch, time, 3, HEADS, -1)
    spec = P(tokens, None, None, None, None)
    mixed = jax.shard_map(
        attend, in_specs=spec, out_specs=P(tokens, None, None, None), check_vma=False
    )(qkv)
    x = x + mixed.reshape(batch, time, width) @ params["out"]
    return x + jax.nn.gelu(_norm(x, params["norm2"]) @ params["up"]) @ params["down"]


POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def blocks(
    layout: Layout,
    sizes: Sizes,
    policy: str,
    attend: Callable[..., jax.Array] = attention,
    layers: int = 4,
) -> Program:
    """Scanned transformer blocks, AdamW with float32 masters, what is not kept computed again."""
    w, h = sizes.width, sizes.hidden
    rows = layout.rows
    own = {"qkv": ((w, 3 * w), (rows, None)), "out": ((w, w), (None, rows))}
    own |= {"up": ((w, h), layout.up), "down": ((h, w), layout.down)}
    own |= {"norm1": ((w,), ()), "norm2": ((w,), ())}
    params = {name: shape(layers, *dims, dtype=F32) for name, (dims, _) in own.items()}
    specs = {name: P(None, *spec) for name, (_, spec) in own.items()}

    def layer(x: jax.Array, params: Any) -> tuple[jax.Array, None]:
        narrow = {k: p.astype(BF16) if p.ndim > 1 else p for k, p in params.items()}
        out = _block(narrow, x, attend, layout.tokens)
        return constrained(out, P(layout.tokens, None, None)), None

    kept = jax.checkpoint(layer, policy=POLICIES[policy], prevent_cse=False)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(lax.scan(kept, x, params)[0].astype(F32) * y)

    time = min(SEQUENCE, sizes.tokens)
    x = shape(sizes.tokens // time * layout.groups, time, w)
    x_spec = P(layout.tokens, None, None)
    return Program(
        axes=layout.axes,
        step=functools.partial(_adamw, loss),
        args=((params,) * 3, x, x),
        specs=((specs,) * 3, x_spec, x_spec),
        out_specs=((specs,) * 3, P()),
        layers=layers,
    )


def _adamw(loss: Callable[..., Any], state: Any, x: jax.Array, y: jax.Array) -> Any:
    params, m, v = state
    value, grads = jax.value_and_grad(loss)(params, x, y)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, v, grads)
    params = jax.tree.map(
        lambda p, m, v: p - 1e-3 * (m * lax.rsqrt(v + 1e-8) + 0.1 * p), params, m, v
    )
    return (params, m, v), value


PROGRAMS: dict[str, Callable[[Layout, Sizes], Program]] = {
    "linear": linear,
    "MLP": mlp,
    "4 blocks, nothing kept": functools.partial(blocks, policy="nothing"),
    "4 blocks, dots kept": functools.partial(blocks, policy="dots"),
}
