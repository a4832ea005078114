"""Objects of Flax and Equinox go into a decorated function and come back."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from srjit import srjit, transform
from steps import KEY, X, same

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


# -------------------------------------------------------------------------------------- frameworks


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.dropout(nnx.gelu(self.first(x))))


def nnx_step(net: Any, optimizer: Any, x: jax.Array) -> jax.Array:
    """Changes both objects in place: parameters, optimizer state, and the count of dropout."""
    value, grads = nnx.value_and_grad(lambda net: jnp.mean(net(x) ** 2))(net)
    optimizer.update(net, grads)
    return value


def nnx_objects() -> tuple[Any, Any]:
    net = Net(nnx.Rngs(0))
    return net, nnx.Optimizer(net, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)


NNX_WAYS = {
    "srjit": lambda: srjit(nnx_step, recipe="int8"),
    "transform": lambda: transform(nnx_step, recipe="int8"),
    "nnx.jit of transform": lambda: nnx.jit(transform(nnx_step, recipe="int8")),
    "nnx.jit of srjit": lambda: nnx.jit(srjit(nnx_step, recipe="int8")),
}


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("way", NNX_WAYS)
def test_objects_that_a_step_changes_in_place_are_changed(way: str):
    run, reference = NNX_WAYS[way](), nnx.jit(nnx_step)
    objects, twins = nnx_objects(), nnx_objects()
    for number in range(2):
        value, expected = run(*objects, X, sr_key=number), reference(*twins, X)
        np.testing.assert_allclose(value, expected, rtol=0.05)
    states = [jax.tree.leaves(nnx.state(list(o))) for o in (objects, twins)]
    assert len(states[0]) == len(states[1])
    for ours, theirs in zip(*states, strict=True):
        if jnp.issubdtype(ours.dtype, jnp.integer):  # steps of the optimizer, draws of the dropout
            assert int(ours) == int(theirs) == 2 or same(ours, theirs)
    moved = jnp.abs(objects[0].first.kernel[...] - nnx_objects()[0].first.kernel[...])
    assert float(moved.max()) > 0.02
    assert not same(objects[0].first.kernel[...], twins[0].first.kernel[...])


def test_compiled_programs_change_objects_too():
    run = srjit(nnx_step, recipe="int8")
    objects, twins = nnx_objects(), nnx_objects()
    compiled = run.lower(*objects, X, sr_key=0).compile()
    assert same(compiled(*objects, X, sr_key=1), run(*twins, X, sr_key=1))
    assert same(nnx.state(objects[0]), nnx.state(twins[0]))
    assert run.eval_shape(*objects, X, sr_key=0).shape == ()


def test_a_changed_structure_is_an_error():
    def grows(net: Any, x: jax.Array) -> jax.Array:
        net.extra = nnx.Param(x)
        return x

    with pytest.raises(TypeError, match="changes the structure"):
        transform(grows)(Net(nnx.Rngs(0)), X)


class Tied(nnx.Module):
    def __init__(self) -> None:
        self.first = nnx.Linear(16, 16, rngs=nnx.Rngs(0))
        self.second = self.first


def test_shared_state_is_changed_by_transform_and_an_error_under_srjit():
    """As pytrees, which is what jax.jit takes them for, shared parameters are two."""

    def scale(net: Any) -> None:
        net.second.kernel[...] = 2 * net.second.kernel[...]

    tied, expected = Tied(), 2 * Tied().first.kernel[...]
    with pytest.raises(TypeError, match=r"nnx\.jit\(srjit\.transform"):
        srjit(scale)(tied)
    transform(scale)(tied)
    assert tied.first is tied.second
    assert same(tied.first.kernel[...], expected)


def test_an_equinox_module_with_functions_among_its_leaves():
    net = eqx.nn.MLP(16, 4, 8, 1, key=KEY)

    def apply(net: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(net)(x)

    expected = apply(net, X)
    result = eqx.filter_jit(transform(apply, recipe="int8"))(net, X, sr_key=KEY)
    np.testing.assert_allclose(result, expected, atol=0.1)
    assert not same(result, expected)
    with pytest.raises(TypeError) as ours:
        srjit(apply, recipe="int8")(net, X, sr_key=KEY)
    with pytest.raises(TypeError) as jits:
        jax.jit(apply)(net, X)
    strip = re.compile("0x[0-9a-f]+")
    assert strip.sub("", str(ours.value)) == strip.sub("", str(jits.value))
