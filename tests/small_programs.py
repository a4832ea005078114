"""Small programs that the tests of this folder share, and what they ask of a report."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from srjit import srjit

BATCH, IN, HIDDEN, OUT = 5, 3, 7, 2


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def mlp_params(*sizes: int) -> dict[str, jax.Array]:
    """Weights of an MLP, scaled so that activations stay near 1."""
    pairs = itertools.pairwise(sizes)
    return {f"w{i}": normal(a, b, seed=i) / a**0.5 for i, (a, b) in enumerate(pairs, 1)}


def mlp(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """tanh between the layers."""
    *hidden, last = sorted(params)
    for name in hidden:
        x = jnp.tanh(x @ params[name])
    return x @ params[last]


def loss(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error of the MLP."""
    return ((mlp(params, x) - y) ** 2).mean()


def sgd(params: Any, grads: Any) -> Any:
    """One step."""
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


PARAMS = mlp_params(IN, HIDDEN, OUT)
X, Y = normal(BATCH, IN, seed=8), normal(BATCH, OUT, seed=9)


def explain(fun: Callable[..., Any], *args: Any, recipe: Any = "int8", **options: Any) -> Any:
    """The report of a decorated function."""
    return srjit(fun, recipe=recipe, **options).explain(*args)


def roles(fun: Callable[..., Any], *args: Any, **options: Any) -> dict[str, int]:
    """How many sites of each role; of two activations with ``.act``, recomputed ones apart."""
    counts: collections.Counter[str] = collections.Counter()
    for site in explain(fun, *args, **options).with_gradients:
        role = site.role if site.phase != "recompute" else f"recomputed {site.role}"
        attention = site.role != "wgrad" and "weight" not in (site.lhs_kind, site.rhs_kind)
        counts[role + ".act" * (attention and site.role != "unknown")] += 1
    return dict(counts)


def equations(jaxpr: Any, name: str = "") -> list[Any]:
    """All equations, however deep, whose primitive's or function's name holds ``name``."""
    found: list[Any] = []
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if name in eqn.primitive.name or name in str(eqn.params.get("name", "")):
            found.append(eqn)
        for inner in core.jaxprs_in_params(eqn.params):
            found += equations(inner, name)
    return found


def count(jaxpr: Any, name: str) -> int:
    """How many equations ``equations`` finds."""
    return len(equations(jaxpr, name))
