"""The instruments themselves, on known programs and against XLA's own counts; the catalogue."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from . import flops
from .catalogue import LIBRARIES, entries, missing_libraries, normal

B, D, H, O, L = 5, 3, 7, 2, 4
X, Y = normal(B, D), normal(B, O)
MLP = {"w1": normal(D, H), "w2": normal(H, O)}
SQUARE, STACK = normal(D, D), normal(L, D, D)
KERNELS = [normal(4, 3, 3, 3), normal(6, 2, 3, 3)]
EXPERTS = [normal(L, D, H), normal(L, H, O)]


def _mlp(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w1"]) @ params["w2"]


def _mlp_loss(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((_mlp(params, x) - Y) ** 2)


def _recomputed(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((jax.checkpoint(_mlp)(params, x) - Y) ** 2)


def _kept_products(params: Any, x: jax.Array) -> jax.Array:
    policy = jax.checkpoint_policies.everything_saveable
    return jnp.mean((jax.checkpoint(_mlp, policy=policy)(params, x) - Y) ** 2)


def _scanned(stack: jax.Array, x: jax.Array) -> jax.Array:
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, stack)[0].sum()


def _scanned_twice(stack: jax.Array, x: jax.Array) -> jax.Array:
    def layer(h: jax.Array, w: jax.Array) -> Any:
        return jnp.tanh(jnp.tanh(h @ w) @ w), None

    return lax.scan(jax.checkpoint(layer), x, stack)[0].sum()


def _looped(w: jax.Array, x: jax.Array) -> jax.Array:
    return lax.fori_loop(0, L, lambda _, h: jnp.tanh(h @ w), x).sum()


def _branched(params: Any, x: jax.Array) -> jax.Array:
    return lax.cond(x[0, 0] > 0, _mlp_loss, lambda p, x: _mlp_loss(p, 2 * x), params, x)


def _attention(weights: jax.Array, x: jax.Array) -> jax.Array:
    q, k, v = x @ weights[0], x @ weights[1], x @ weights[2]
    return (jax.nn.softmax(q @ k.T) @ v @ weights[3]).sum()


def _convolved(kernels: Any, x: jax.Array) -> jax.Array:
    h = jnp.tanh(lax.conv_general_dilated(x, kernels[0], (2, 2), "SAME"))
    return lax.conv_general_dilated(h, kernels[1], (1, 1), "VALID", feature_group_count=2).sum()


def _routed(experts: Any, x: jax.Array) -> jax.Array:
    groups = jnp.array([4, 4, 4, 4])
    return lax.ragged_dot(jnp.tanh(lax.ragged_dot(x, experts[0], groups)), experts[1], groups).sum()


_MLP_FORWARD = 2 * B * D * H + 2 * B * H * O
_LAYER = 2 * B * D * D
_SCORES = 2 * B * B * D
_FIRST = 2 * (2 * 4 * 4 * 4) * (3 * 3 * 3)
_SECOND = 2 * (2 * 6 * 2 * 2) * (2 * 3 * 3)

# loss, parameters, data; sites and FLOPs of fprop, dgrad, wgrad, worked out by hand
KNOWN = {
    "mlp": (_mlp_loss, MLP, X, (2, 1, 2), (_MLP_FORWARD, 2 * B * H * O, _MLP_FORWARD)),
    "mlp, recomputed": (
        _recomputed,
        MLP,
        X,
        (3, 1, 2),
        (_MLP_FORWARD + 2 * B * D * H, 2 * B * H * O, _MLP_FORWARD),
    ),
    "mlp, all kept": (_kept_products, MLP, X, (2, 1, 2), (_MLP_FORWARD, 140, _MLP_FORWARD)),
    "scan": (_scanned, STACK, X, (1, 1, 1), (L * _LAYER, L * _LAYER, L * _LAYER)),
    "scan, recomputed": (
        _scanned_twice,
        STACK,
        X,
        (4, 2, 2),
        (4 * L * _LAYER, 2 * L * _LAYER, 2 * L * _LAYER),
    ),
    "loop": (_looped, SQUARE, X, (1, 1, 1), (L * _LAYER, L * _LAYER, L * _LAYER)),
    "cond": (_branched, MLP, X, (4, 2, 4), (2 * _MLP_FORWARD, 280, 2 * _MLP_FORWARD)),
    "attention": (
        _attention,
        normal(4, D, D),
        X,
        (6, 5, 4),
        (4 * _LAYER + 2 * _SCORES, _LAYER + 4 * _SCORES, 4 * _LAYER),
    ),
    # The gradient of the grouped convolution is as large as its input, 4 × 4, not 2 × 2.
    "convolution": (
        _convolved,
        KERNELS,
        normal(2, 3, 8, 8),
        (2, 1, 2),
        (_FIRST + _SECOND, 2 * (2 * 4 * 4 * 4) * (3 * 3 * 3), _FIRST + _SECOND),
    ),
    "experts": (
        _routed,
        EXPERTS,
        normal(16, D),
        (2, 1, 2),
        (2 * 16 * (D * H + H * O), 2 * 16 * H * O, 2 * 16 * (D * H + H * O)),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_programs(name: str) -> None:
    """The oracle finds the sites and the FLOPs that were worked out by hand."""
    loss, params, x, sites, amounts = KNOWN[name]
    found = flops.oracle(loss, (params, x))
    roles = (flops.FPROP, flops.DGRAD, flops.WGRAD)
    counts = collections.Counter(site.role for site in found)
    assert tuple(counts[role] for role in roles) == sites
    assert tuple(flops.by_role(found)[role] for role in roles) == amounts
    step = flops.matmuls(jax.value_and_grad(loss), params, x)
    assert flops.counted(step, roles=False) == flops.counted(found, roles=False)


def _xla_flops(fun: Callable[..., Any], *args: Any) -> float:
    analysis = jax.jit(fun).lower(*args).compile().cost_analysis()
    return analysis["flops"]


def _inner_products(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("bij,bkj->bik", a, b)


def _windows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID")


@pytest.mark.parametrize(
    ("fun", "args"),
    [
        (jnp.dot, (normal(16, 32), normal(32, 8))),
        (_inner_products, (normal(3, 16, 32), normal(3, 8, 32))),
        (_windows, (normal(2, 3, 8, 8), normal(4, 3, 3, 3))),
    ],
)
def test_the_compiler_counts_the_same(fun: Callable[..., Any], args: Any) -> None:
    """Without padding or dilation, XLA's cost analysis must agree to the unit."""
    assert flops.total(flops.matmuls(fun, *args)) == _xla_flops(fun, *args)


def test_weights_take_part_in_all_but_the_products_of_attention() -> None:
    """Scores and mixing, forward, and their four gradients have no weight in them."""
    found = flops.oracle(_attention, (normal(4, D, D), X))
    bare = collections.Counter(site.role for site in found if not site.weighted)
    assert bare == {flops.FPROP: 2, flops.DGRAD: 4}


def test_dead_products_do_not_count() -> None:
    """A product whose result nobody uses is not there."""

    def fun(x: jax.Array, w: jax.Array) -> jax.Array:
        _ = x @ w
        return x + 1

    assert flops.matmuls(fun, X, SQUARE) == []


def test_a_spoofed_name_changes_nothing() -> None:
    """The oracle trusts no names of the program."""

    def loss(params: Any, x: jax.Array) -> jax.Array:
        with jax.named_scope("oracle_wgrad"), jax.named_scope("transpose(jvp(fake))"):
            return _mlp_loss(params, x)

    honest = flops.counted(flops.oracle(_mlp_loss, (MLP, X)), roles=True)
    assert flops.counted(flops.oracle(loss, (MLP, X)), roles=True) == honest


# ---------------------------------------------------------------------------------------------
# The catalogue


def test_every_library_is_installed() -> None:
    """A missing library is a failure, not a reason to skip its models."""
    assert missing_libraries() == []


def test_the_catalogue_is_broad() -> None:
    """Enough models from enough libraries, each name once, one of each large family executed."""
    everything = entries()
    assert len({entry.id for entry in everything}) == len(everything) >= 24
    assert len({entry.library for entry in everything if not entry.slow}) >= 5
    runs = {entry.library for entry in everything if entry.runs}
    assert runs >= {"jax", "flax.nnx", "equinox", "haiku", "keras"}
    assert {"flax", "equinox", "haiku", "keras"} <= set(LIBRARIES)
