"""One decorator, four ways to write a model: plain JAX, Flax Linen, Flax NNX, Equinox.

Each model is unchanged, learns a small regression, and must do nearly as well as without srjit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx

from srjit import srjit, transform

from .catalogue import mean_squared, normal

STEPS, RATE = 20, 0.1
KEY = jax.random.key(5)
X = normal(64, 8)
Y = jnp.tanh(X @ normal(8, 2, seed=1))


class Toy(NamedTuple):
    """A model as a pure function of its parameters."""

    params: Any
    apply: Callable[[Any, jax.Array], jax.Array]

    def loss(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_squared(self.apply(params, x), y)


def _plain() -> Toy:
    params = {"in": 0.3 * normal(8, 32, seed=2), "out": 0.2 * normal(32, 2, seed=3)}
    return Toy(params, lambda p, x: jax.nn.gelu(x @ p["in"]) @ p["out"])


def _linen() -> Toy:
    net = linen.Sequential([linen.Dense(32), linen.gelu, linen.Dense(2)])
    params = net.init(jax.random.key(0), X)["params"]
    return Toy(params, lambda p, x: net.apply({"params": p}, x))


class Network(nnx.Module):
    """Two layers of NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(8, 32, rngs=rngs), nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nnx.gelu(self.first(x)))


def _nnx() -> Toy:
    definition, params = nnx.split(Network(nnx.Rngs(0)))
    return Toy(params, lambda p, x: nnx.merge(definition, p)(x))


def _multilayer() -> eqx.nn.MLP:
    return eqx.nn.MLP(8, 2, 32, 1, activation=jax.nn.gelu, key=jax.random.key(0))


def _equinox() -> Toy:
    params, rest = eqx.partition(_multilayer(), eqx.is_inexact_array)
    return Toy(params, lambda p, x: jax.vmap(eqx.combine(p, rest))(x))


TOYS = {"jax": _plain, "linen": _linen, "nnx": _nnx, "equinox": _equinox}


def _descend(params: Any, grads: Any) -> Any:
    return jax.tree.map(lambda p, g: p - RATE * g, params, grads)


def _keys() -> list[jax.Array]:
    return [jax.random.fold_in(KEY, number) for number in range(STEPS)]


def _learns(losses: list[float], reference: list[float]) -> None:
    """The loss falls by half, and stays close to that of the same steps without srjit."""
    assert len(losses) == len(reference) == STEPS
    assert losses[-1] < 0.5 * losses[0]
    assert all(abs(a - b) < 0.1 * b for a, b in zip(losses, reference, strict=True))
    assert losses != reference


def _reference(toy: Toy) -> list[float]:
    """The losses without srjit."""

    @jax.jit
    def step(params: Any) -> Any:
        value, grads = jax.value_and_grad(toy.loss)(params, X, Y)
        return _descend(params, grads), value

    params, losses = toy.params, []
    for _ in range(STEPS):
        params, value = step(params)
        losses.append(float(value))
    return losses


@pytest.mark.parametrize("name", TOYS)
def test_a_decorated_step(name: str) -> None:
    toy = TOYS[name]()

    @srjit(recipe="int8")
    def step(params: Any, x: jax.Array, y: jax.Array) -> Any:
        value, grads = jax.value_and_grad(toy.loss)(params, x, y)
        return _descend(params, grads), value

    params, losses = toy.params, []
    for key in _keys():
        params, value = step(params, X, Y, sr_key=key)
        losses.append(float(value))
    _learns(losses, _reference(toy))


@pytest.mark.parametrize("name", TOYS)
def test_a_decorated_loss_inside_grad(name: str) -> None:
    toy = TOYS[name]()
    loss = srjit(toy.loss, recipe="int8")

    @jax.jit
    def step(params: Any, key: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss)(params, X, Y, sr_key=key)
        return _descend(params, grads), value

    params, losses = toy.params, []
    for key in _keys():
        params, value = step(params, key)
        losses.append(float(value))
    _learns(losses, _reference(toy))


@pytest.mark.parametrize("name", TOYS)
def test_a_decorated_model_inside_a_loss(name: str) -> None:
    """Only the model's apply function is decorated; the rest of the program is not."""
    toy = TOYS[name]()
    apply = srjit(toy.apply, recipe="int8")

    @jax.jit
    def step(params: Any, key: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return mean_squared(apply(params, X, sr_key=key), Y)

        value, grads = jax.value_and_grad(loss)(params)
        return _descend(params, grads), value

    params, losses = toy.params, []
    for key in _keys():
        params, value = step(params, key)
        losses.append(float(value))
    _learns(losses, _reference(toy))


# ---------------------------------------------------------------------------------------------
# The jits of the frameworks themselves


def test_transform_inside_filter_jit() -> None:
    """Equinox's own idiom: filtered jit, the whole model as an argument."""

    @eqx.filter_jit
    def step(net: Any, key: jax.Array) -> Any:
        params, rest = eqx.partition(net, eqx.is_inexact_array)

        def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            return mean_squared(jax.vmap(eqx.combine(params, rest))(x), y)

        quantized = transform(loss, recipe="int8")
        value, grads = jax.value_and_grad(quantized)(params, X, Y, sr_key=key)
        return eqx.apply_updates(net, jax.tree.map(lambda g: -RATE * g, grads)), value

    net, losses = _multilayer(), []
    for key in _keys():
        net, value = step(net, key)
        losses.append(float(value))
    _learns(losses, _reference(_equinox()))


def test_filter_jit_of_a_transformed_step() -> None:
    """The model goes through ``transform`` as it is, with the functions that are leaves of it."""

    def step(net: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss(net: Any) -> jax.Array:
            return mean_squared(jax.vmap(net)(x), y)

        value, grads = eqx.filter_value_and_grad(loss)(net)
        return eqx.apply_updates(net, jax.tree.map(lambda g: -RATE * g, grads)), value

    quantized = eqx.filter_jit(transform(step, recipe="int8"))
    net, losses = _multilayer(), []
    for key in _keys():
        net, value = quantized(net, X, Y, sr_key=key)
        losses.append(float(value))
    _learns(losses, _reference(_equinox()))


def test_transform_inside_nnx_jit() -> None:
    """NNX's own idiom: the model and its optimizer are objects that a step changes in place."""
    net = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.sgd(RATE), wrt=nnx.Param)

    @nnx.jit
    def step(net: Any, optimizer: Any, key: jax.Array) -> jax.Array:
        definition, params = nnx.split(net)

        def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            return mean_squared(nnx.merge(definition, params)(x), y)

        quantized = transform(loss, recipe="int8")
        value, grads = jax.value_and_grad(quantized)(params, X, Y, sr_key=key)
        optimizer.update(net, grads)
        return value

    losses = [float(step(net, optimizer, key)) for key in _keys()]
    _learns(losses, _reference(_nnx()))


def test_transform_of_a_call_inside_nnx_value_and_grad() -> None:
    """The model is closed over: what is differentiated is an object, not an argument."""
    net = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.sgd(RATE), wrt=nnx.Param)

    @nnx.jit
    def step(net: Any, optimizer: Any, key: jax.Array) -> jax.Array:
        def loss(net: Any) -> jax.Array:
            predict = transform(lambda x: net(x), recipe="int8")
            return mean_squared(predict(X, sr_key=key), Y)

        value, grads = nnx.value_and_grad(loss)(net)
        optimizer.update(net, grads)
        return value

    losses = [float(step(net, optimizer, key)) for key in _keys()]
    _learns(losses, _reference(_nnx()))


def test_the_report_of_each_framework_says_the_same() -> None:
    """Two layers with data for input: two fprop, two wgrad, one dgrad, whoever wrote the layers."""
    for make in TOYS.values():
        toy = make()
        step = srjit(recipe="int8")(lambda p, x, y, toy=toy: jax.grad(toy.loss)(p, x, y))
        roles = [site.role for site in step.explain(toy.params, X, Y).sites]
        assert sorted(roles) == ["dgrad", "fprop", "fprop", "wgrad", "wgrad"]
