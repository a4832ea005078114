"""The catalogue: training steps of public models, each through its own library, unchanged.

An entry builds a ``Case``: a pure ``step(params, *rest)``, its arguments, and the loss that it
differentiates, which the oracle of ``flops.py`` needs. Weights are random and sizes small.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What the catalogue imports, by import name; a missing one is a failure, never a skip.
LIBRARIES = ("flax", "equinox", "haiku", "keras", "optax", "equimo", "flowjax", "penzai")

_ZOO = ("plain_jax", "flax_linen", "flax_nnx", "eqx", "hk", "keras_jax", "pz")


@dataclasses.dataclass(frozen=True)
class Case:
    """A training step, its arguments, and what is known about it.

    ``step`` takes ``args``; its first result is the new parameters, its last one the loss.
    ``loss(*loss_args)`` gives the loss, or ``(loss, aux)``, and is differentiated with respect to
    its first argument. ``frozen`` numbers the arguments that are parameters too but are not
    trained; the step runs the loss ``repeats`` times.
    """

    step: Callable[..., Any]
    args: tuple[Any, ...]
    loss: Callable[..., Any]
    loss_args: tuple[Any, ...]
    frozen: tuple[int, ...] = ()
    repeats: int = 1

    @property
    def params_argnums(self) -> int | tuple[int, ...]:
        """Which arguments of the step are parameters."""
        return (0, *self.frozen) if self.frozen else 0


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of the catalogue: ``runs`` if a step of it is also executed."""

    library: str
    name: str
    build: Callable[[], Case]
    runs: bool = False
    slow: bool = False

    @property
    def id(self) -> str:
        """What a test report calls it."""
        return f"{self.library}:{self.name}"


_ENTRIES: list[Entry] = []


def model(
    library: str, name: str, *, runs: bool = False, slow: bool = False
) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Registers the decorated function as the builder of an entry."""

    def register(build: Callable[[], Case]) -> Callable[[], Case]:
        _ENTRIES.append(Entry(library, name, build, runs=runs, slow=slow))
        return build

    return register


def missing_libraries() -> list[str]:
    """The libraries that the catalogue needs and that are not installed."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


def entries() -> list[Entry]:
    """All entries; the libraries themselves are imported only when one is built."""
    for name in _ZOO:
        importlib.import_module(f".zoo.{name}", __package__)
    return list(_ENTRIES)


# ---------------------------------------------------------------------------------------------
# Training steps


def sgd(params: Any, grads: Any, rate: float = 0.01) -> Any:
    """Plain gradient descent."""
    return jax.tree.map(lambda p, g: p - rate * g, params, grads)


def sgd_case(loss: Callable[..., Any], *args: Any, frozen: tuple[int, ...] = ()) -> Case:
    """A step of gradient descent on ``loss(params, *batch)``."""

    def step(params: Any, *batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, *batch)
        return sgd(params, grads), value

    return Case(step, args, loss, args, frozen=frozen)


def stateful_case(loss: Callable[..., Any], *args: Any) -> Case:
    """A step of gradient descent on ``loss(params, state, *batch) -> (loss, state)``."""

    def step(params: Any, *rest: Any) -> Any:
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, *rest)
        return sgd(params, grads), state, value

    return Case(step, args, loss, args)


def optax_case(loss: Callable[..., Any], optimizer: Any, params: Any, *batch: Any) -> Case:
    """A step of an optax optimizer on ``loss(params, *batch)``."""
    import optax

    def step(params: Any, state: Any, *batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return Case(step, (params, optimizer.init(params), *batch), loss, (params, *batch))


# ---------------------------------------------------------------------------------------------
# Data, weights, losses


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Standard normal data."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def integers(limit: int, *shape: int, seed: int = 0) -> jax.Array:
    """Random labels or tokens below a limit."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, limit, shape), jnp.int32)


def random_weights(init: Callable[..., Any], *args: Any) -> Any:
    """Random weights of the shapes that ``init(*args)`` would give, without compiling it."""
    rng = np.random.default_rng(0)

    def fill(leaf: Any) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        if leaf.ndim < 2:
            return jnp.ones(leaf.shape, leaf.dtype)
        values = rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(values / math.sqrt(math.prod(leaf.shape[:-1])), leaf.dtype)

    return jax.tree.map(fill, jax.eval_shape(init, *args))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross entropy with integer labels."""
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(logp, labels[..., None], axis=-1))


def mean_squared(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error."""
    return jnp.mean((prediction - target) ** 2)
