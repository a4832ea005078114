"""A kind of product is one file: a made-up one is planned, reported, quantized and frozen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from products import made_up
from small_programs import normal
from srjit import freeze, srjit
from srjit.products import kinds


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(kinds.KINDS, made_up.KIND.primitive, made_up.KIND)


W, X = normal(32, 48, seed=1), normal(32, 16, seed=2)


def loss(w, x, product=made_up.matmul):
    return jnp.sum(jnp.tanh(product(x, w)) ** 2)


def as_dot(x, w):
    return lax.dot_general(x, w, (((0,), (0,)), ((), ())))


def test_the_report_has_its_name_and_its_operations():
    report = srjit(loss, recipe="int8").explain(W, X)
    assert (report.sites[0].op, report.sites[0].flops) == ("made_up_matmul", 2 * 32 * 48 * 16)
    assert " made up " in str(report)


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("recipe", ["int8", "mxfp8", "nvfp4"])
def test_it_is_quantized_forward_and_backward_as_a_dot_is(recipe):
    made, dotted = (
        jax.value_and_grad(srjit(functools.partial(loss, product=product), recipe=recipe), (0, 1))(
            W, X, sr_key=0
        )
        for product in (made_up.matmul, as_dot)
    )
    for got, expected in zip(jax.tree.leaves(made), jax.tree.leaves(dotted), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    plain = jax.grad(loss)(W, X)
    assert not np.allclose(made[1][0], plain, rtol=1e-4, atol=1e-4)


def test_a_whole_step_has_roles_for_it():
    def step(w, x):
        return w - 0.1 * jax.grad(loss)(w, x)

    forward, *_ = srjit(step, recipe="int8").explain(W, X).sites
    assert (forward.role, forward.rhs_kind, forward.status) == ("fprop", "weight", "emulated")


@pytest.mark.parametrize("recipe", ["int8", "nvfp4"])
def test_its_weight_is_frozen(recipe):
    apply = srjit(lambda w, x: made_up.matmul(x, w), recipe=recipe, mode="inference")
    packed, run = freeze(apply, W, X)
    assert {name.rpartition(".")[2] for name in packed} >= {"codes", "scale"}
    np.testing.assert_array_equal(run(packed, X), apply(W, X))
