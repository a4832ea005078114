"""A made-up primitive that calls is one entry in the table of control flow; all look into it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jex_core
from jax.interpreters import ad, mlir

from small_programs import normal
from srjit import freeze, recipes, srjit
from srjit.program import control_flow

# A call that JAX has no rule of dead code for, with a parameter of no name that JAX uses.
enclosed_p = jex_core.Primitive("enclosed")
enclosed_p.multiple_results = True


def run(*args, inside):
    return jex_core.jaxpr_as_fun(inside)(*args)


enclosed_p.def_impl(run)
enclosed_p.def_abstract_eval(lambda *avals, inside: inside.out_avals)
mlir.register_lowering(enclosed_p, mlir.lower_fun(run, multiple_results=True))
ad.primitive_jvps[enclosed_p] = lambda primals, tangents, inside: jax.jvp(
    jex_core.jaxpr_as_fun(inside), primals, map(ad.instantiate_zeros, tangents)
)


def enclosed(fun):
    def call(*args):
        inside, shape = jax.make_jaxpr(fun, return_shape=True)(*args)
        outs = enclosed_p.bind(*jax.tree.leaves(args), inside=inside)
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return call


def plain(fun):
    return fun


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(control_flow.FLOWS, "enclosed", control_flow.call("inside"))


W, X = normal(32, 32, seed=1), normal(16, 32, seed=2)
EVERYTHING = dataclasses.replace(recipes.get("int8"), weights="stochastic")


def loss(w, x):
    return jnp.sum(jnp.tanh(x @ w) ** 2)


def update(w, x):
    return w - (0.1 * jax.grad(loss)(w, x)).astype(w.dtype)


def step_of(call):
    return lambda w, x: call(update)(w, x)


def in_a_scan_of(call):
    def step(w, xs):
        return jax.lax.scan(lambda w, x: (call(update)(w, x), None), w, xs)[0]

    return step


def around_a_scan_of(call):
    return lambda w, xs: call(in_a_scan_of(plain))(w, xs)


def test_a_call_that_the_table_does_not_know_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(control_flow.FLOWS, "enclosed")
    report = srjit(step_of(enclosed), recipe="int8").explain(W, X)
    assert [(s.op, s.role, s.status) for s in report.sites] == [("enclosed", "unknown", "kept")]


def rows_of(report):
    return [(s.role, s.lhs_kind, s.rhs_kind, s.lhs, s.rhs, s.status) for s in report.sites]


@pytest.mark.parametrize("kind", [step_of, in_a_scan_of, around_a_scan_of])
def test_roles_and_the_report_reach_into_it(kind):
    x = X if kind is step_of else jnp.stack([X, X + 1])
    made, expected = (
        rows_of(srjit(kind(call), recipe="int8").explain(W, x)) for call in (enclosed, plain)
    )
    assert made == expected
    assert {row[0] for row in made} == {"fprop", "wgrad"}


@pytest.mark.parametrize("kind", [step_of, in_a_scan_of, around_a_scan_of])
def test_sites_and_write_backs_in_it_are_rewritten_to_the_same_bits(kind):
    w, x = W.astype(jnp.bfloat16), X if kind is step_of else jnp.stack([X, X + 1])
    x = x.astype(jnp.bfloat16)
    made, expected = (srjit(kind(call), recipe=EVERYTHING) for call in (enclosed, plain))
    assert [b.status for b in expected.explain(w, x).write_backs] == ["stochastic"]
    assert made.explain(w, x).write_backs == expected.explain(w, x).write_backs
    np.testing.assert_array_equal(made(w, x, sr_key=3), expected(w, x, sr_key=3))
    assert not np.array_equal(made(w, x, sr_key=3), kind(plain)(w, x))


def test_dead_code_in_it_is_no_site():
    def two(w, x):
        return x @ w, jnp.tanh(x @ w + 1)

    def step(w, x):
        return jax.lax.scan(lambda c, x: (c, enclosed(two)(w, x)[1]), 0, jnp.stack([x, x]))[1]

    assert len(srjit(step, recipe="int8").explain(W, X).sites) == 1
    assert len(srjit(enclosed(two), recipe="int8").explain(W, X).sites) == 2


def test_weights_in_it_are_frozen():
    def model(w, x):
        return enclosed(lambda w, x: jnp.tanh(x @ (w * 2)) @ w)(w, x)

    packed, frozen = freeze(srjit(model, recipe="int8"), W, X)
    assert sum(p.nbytes for p in jax.tree.leaves(packed)) < W.nbytes
    inference = srjit(model, recipe="int8", mode="inference")
    np.testing.assert_array_equal(frozen(packed, X), inference(W, X))


def test_it_is_verified():
    certificate = srjit(step_of(enclosed), recipe="int8").verify(W, X, draws=16)
    assert certificate.passed and len(certificate.operands) == 1
