"""Cotangents that are given, and derivatives of derivatives: never the role of something else."""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from nameless import both, told
from small_programs import PARAMS, X, Y, explain, loss, mlp, mlp_params, normal, roles, sgd

from . import test_roles_from_structure as structure
from .test_roles_by_structure_alone import DEEP, _product

WIDE, NOISE = mlp_params(3, 7, 3), normal(5, 3, seed=3)


def _trace_estimated(p: Any, z: jax.Array, noise: jax.Array) -> Any:
    """Hutchinson's estimate of a divergence: the cotangent is an input of the program."""
    out, pullback = jax.vjp(lambda z: mlp(p, z), z)
    return out, (pullback(noise)[0] * noise).sum(-1)


def _flow(p: Any, x: jax.Array, noise: jax.Array) -> jax.Array:
    """A continuous normalizing flow."""

    def step(carry: Any, _: Any) -> Any:
        dz, trace = _trace_estimated(p, carry[0], noise)
        return (carry[0] + 0.1 * dz, carry[1] - 0.1 * trace), None

    (z, total), _ = lax.scan(step, (x, jnp.zeros(len(x))), length=3)
    return (0.5 * (z**2).sum(-1) + total).mean()


def _third_order(p: Any, v: Any, x: jax.Array, y: jax.Array) -> Any:
    return jax.grad(lambda p: structure._leaves_product(_product(loss)(p, v, x, y)[1], v))(p)


def _rectified(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    for name in sorted(p)[:-1]:
        x = jax.nn.relu(x @ p[name])
    return ((x @ p[max(p)] - y) ** 2).mean()


def _gauss_newton(p: Any, v: Any, x: jax.Array, y: jax.Array) -> Any:
    """The Gauss-Newton product: of the Jacobian, the loss's Hessian, and the Jacobian again."""
    model = lambda p: mlp(p, x)  # noqa: E731
    out, tangent = jax.jvp(model, (p,), (v,))
    curved = jax.jvp(jax.grad(lambda o: ((o - y) ** 2).mean()), (out,), (tangent,))[1]
    return jax.vjp(model, p)[1](curved)[0]


def _gauss_newton_step(p: Any, x: jax.Array, y: jax.Array) -> Any:
    return sgd(p, _gauss_newton(p, jax.grad(loss)(p, x, y), x, y))


def _kernel_product(p: Any, v: jax.Array, x: jax.Array) -> jax.Array:
    """A tangent kernel times a vector: forward mode along a gradient."""
    model = lambda p: mlp(p, x)  # noqa: E731
    return jax.jvp(model, (p,), jax.vjp(model, p)[1](v))[1]


def _influence(p: Any, x: jax.Array, y: jax.Array) -> Any:
    """An inverse Hessian times a gradient, by a series that is unrolled."""
    start = h = jax.grad(loss)(p, 2 * x, y)
    for _ in range(2):
        curved = _product(loss)(p, h, x, y)[1]
        h = jax.tree.map(lambda g, h, c: g + h - 0.1 * c, start, h, curved)
    return h


def _flattened(p: Any, x: jax.Array) -> jax.Array:
    """A penalty of the Jacobian: its forward pass ends in a product that is dead code."""
    model = lambda row: mlp(p, row[None])[0]  # noqa: E731
    return (mlp(p, 2 * x) ** 2).sum() + (jax.vmap(jax.jacrev(model))(x) ** 2).sum()


def _laplacian(p: Any, x: jax.Array) -> jax.Array:
    """A network whose Laplacian is to be a function: forward mode around a gradient, of inputs."""
    field = lambda x: mlp(p, x[None])[0, 0]  # noqa: E731
    traces = jax.vmap(lambda x: jnp.trace(jax.hessian(field)(x)))(x)
    return ((traces - jnp.sin(x[:, 0])) ** 2).mean()


def _score(p: Any, x: jax.Array, v: jax.Array) -> jax.Array:
    """Sliced score matching of an energy."""
    gradient = lambda x: jax.grad(lambda x: mlp(p, x).sum())(x)  # noqa: E731
    out, along = jax.jvp(gradient, (x,), (v,))
    return ((v * along).sum(-1) + 0.5 * (out**2).sum(-1)).mean()


def _path_length(p: Any, z: jax.Array, noise: jax.Array) -> jax.Array:
    """StyleGAN's: a gradient along given noise, whose last forward product is dead code."""
    along = jax.vjp(lambda z: mlp(p, z), z)[1](noise)[0]
    return ((jnp.sqrt((along**2).sum(-1)) - 1) ** 2).mean()


def _one_layer(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return ((jnp.tanh(x @ w) - y) ** 2).mean()


def _one_linear(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return ((x @ w - y) ** 2).mean()


def _laplacian_by_rows(p: Any, x: jax.Array) -> jax.Array:
    """Backward twice, from the rows of an identity, which reads a weight as data would."""
    field = lambda x: mlp(p, x[None])[0, 0]  # noqa: E731
    traces = jax.vmap(lambda x: jnp.trace(jax.jacrev(jax.jacrev(field))(x)))(x)
    return (traces**2).mean()


def _messages(p: Any, x: jax.Array) -> jax.Array:
    """Messages of a graph network that are products without a sum, as e3nn's."""
    h, apart = jnp.tanh(x @ p["own"]), x[:, None] - x[None]
    radial = jax.nn.silu((apart**2) @ p["radial"])
    messages = jnp.einsum("ijc,ijm,jc->icm", radial, apart, h)
    return jnp.tanh((messages**2).sum(-1) @ p["mix"]).sum()


def _message_forces(p: Any, x: jax.Array, target: jax.Array) -> jax.Array:
    energy, gradient = jax.value_and_grad(_messages, 1)(p, x)
    return energy**2 + ((gradient + target) ** 2).mean()


def _kernel_along(p: Any, v: jax.Array, x: jax.Array) -> jax.Array:
    """Along the gradient of outputs that are given: the last layer's own product is dead code."""
    model = lambda p: mlp(p, x)  # noqa: E731
    return jax.jvp(model, (p,), jax.vjp(model, p)[1](v))[1]


def _distilled(made: jax.Array, p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Data whose gradients are to be those of others: the data are what is trained."""
    pairs = zip(*(jax.tree.leaves(jax.grad(loss)(p, at, y)) for at in (made, x)), strict=True)
    return sum(((a - b) ** 2).sum() for a, b in pairs)


MESSAGES = {"own": normal(3, 4), "radial": normal(3, 4, seed=1), "mix": normal(4, 4)}
FIELD, DEEP_FIELD = mlp_params(3, 7, 1), mlp_params(3, 7, 6, 1)
UNKNOWN = "unknown"
PROGRAMS: dict[str, tuple[Any, tuple[Any, ...], dict[str, int]]] = {
    "a trace that is estimated": (_trace_estimated, (WIDE, X, NOISE), {"fprop": 2, "dgrad": 2}),
    # Of the gradient of the gradient three products, beside all of the first one.
    "a flow, trained": (
        jax.grad(_flow), (WIDE, X, NOISE), {"fprop": 2, "dgrad": 3, "wgrad": 2, UNKNOWN: 3},
    ),
    "a third derivative": (
        _third_order, (PARAMS, PARAMS, X, Y), {"fprop": 2, "dgrad": 2, UNKNOWN: 20},
    ),
    "a Hessian of two rectified layers": (
        jax.hessian(_rectified), (PARAMS, X, Y), {"fprop": 2, UNKNOWN: 8},
    ),
    "a Hessian of three rectified layers": (
        jax.hessian(_rectified), (DEEP, X, Y), {"fprop": 3, "dgrad": 1, UNKNOWN: 14},
    ),
    "a penalty of the Jacobian": (
        jax.grad(_flattened), (PARAMS, X), {"fprop": 3, "dgrad": 3, "wgrad": 3, UNKNOWN: 3},
    ),
    # What forward mode adds to a forward pass alone is forward.
    "a Gauss-Newton product": (
        _gauss_newton, (PARAMS, PARAMS, X, Y), {"fprop": 5, "dgrad": 1, "wgrad": 2},
    ),
    "a Gauss-Newton step": (
        _gauss_newton_step, (PARAMS, X, Y), {"fprop": 7, "dgrad": 2, "wgrad": 4},
    ),
    "a tangent kernel's product": (
        _kernel_product, (PARAMS, Y, X), {"fprop": 5, "dgrad": 1, "wgrad": 2},
    ),
    # Of each layer the direction's product, and all of the gradient that is made of it.
    "a Laplacian": (
        jax.grad(_laplacian), (FIELD, X), {"fprop": 1, "dgrad": 1, "wgrad": 1, UNKNOWN: 6},
    ),
    "a Laplacian of two hidden layers": (
        jax.grad(_laplacian), (DEEP_FIELD, X), {"fprop": 2, "dgrad": 3, "wgrad": 2, UNKNOWN: 14},
    ),
    "a score of one hidden layer": (
        jax.grad(_score), (FIELD, X, 2 * X), {"fprop": 1, "dgrad": 2, "wgrad": 1, UNKNOWN: 7},
    ),
    "a score of two hidden layers": (
        jax.grad(_score), (DEEP_FIELD, X, 2 * X), {"fprop": 2, "dgrad": 4, "wgrad": 2, UNKNOWN: 15},
    ),
    "one layer's Hessian, times a vector": (
        lambda *args: _product(_one_layer)(*args)[1],
        (normal(3, 2), normal(3, 2, seed=1), X, Y),
        {"fprop": 1, UNKNOWN: 2},
    ),
    "path lengths": (
        jax.grad(_path_length), (PARAMS, X, Y), {"fprop": 1, "dgrad": 2, "wgrad": 1, UNKNOWN: 3},
    ),
    "path lengths of two hidden layers": (
        jax.grad(_path_length), (DEEP, X, Y), {"fprop": 2, "dgrad": 4, "wgrad": 2, UNKNOWN: 5},
    ),
    "a Laplacian by rows": (
        jax.grad(_laplacian_by_rows), (FIELD, X), {"fprop": 1, "dgrad": 2, "wgrad": 1, UNKNOWN: 5},
    ),
    "one linear layer's Hessian, times a vector": (
        lambda *args: _product(_one_linear)(*args)[1],
        (normal(3, 2), normal(3, 2, seed=1), X, Y),
        {UNKNOWN: 2},
    ),
    # The force is seven gradients; of each two more are taken, but for one of an input.
    "forces between messages": (
        jax.grad(_message_forces),
        (MESSAGES, X, X),
        {"fprop": 5, "dgrad": 11, "wgrad": 3, UNKNOWN: 13},
    ),
    # The network is data, so that its gradients are of activations.
    "distilled data": (
        jax.grad(_distilled),
        (X, DEEP, 2 * X, Y),
        {"fprop": 6, "dgrad": 12, "wgrad": 1, UNKNOWN: 8},
    ),
    "a deep tangent kernel's product": (
        _kernel_along, (DEEP, Y, X), {"fprop": 9, "dgrad": 2, "wgrad": 3},
    ),
    "influence functions": (
        _influence, (PARAMS, X, Y), {"fprop": 6, "dgrad": 3, "wgrad": 2, UNKNOWN: 16},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_higher_derivatives_have_no_role_of_first_ones(name: str):
    fun, args, expected = PROGRAMS[name]
    named, nameless = both(fun, *args)
    assert collections.Counter(c.role for c in named) == expected
    for a, b in zip(named, nameless, strict=True):
        # Without names, two gradients of weights are plain that names leave open.
        is_plain = name == "a third derivative" and a.role == "unknown" and b.phase == "backward"
        assert b.role == "unknown" or told(a) == told(b) or is_plain, (told(a), told(b), b.why)


def test_the_gradient_along_a_direction_is_that_of_the_weight():
    """Of one linear layer: its own product is dead code, and the direction stands in its place."""
    along = lambda w, v, *batch: jax.jvp(lambda w: _one_linear(w, *batch), (w,), (v,))[1]  # noqa: E731
    named, nameless = both(jax.grad(along), normal(3, 2), normal(3, 2, seed=1), X, Y)
    assert [c.role for c in named] == ["fprop", "wgrad"]
    assert {c.role for c in nameless} == {UNKNOWN}  # it may be a Hessian-vector product


def test_multiples_of_a_batch_are_no_products_of_matrices():
    row = lambda p, x: jnp.vdot(mlp(p, x[None])[0], x[:2])  # noqa: E731
    found = both(jax.grad(lambda p, x: jax.vmap(row, (None, 0))(p, x).sum()), PARAMS, X)
    for multiple in ([c for c in cs if c.site.lhs_shape == (5,)] for cs in found):
        assert [(c.site.out_shape, "no product" in c.keep) for c in multiple] == [((5, 2), True)]


@pytest.mark.parametrize("differentiated", [(0,), (0, 1)], ids=["weights", "and inputs"])
def test_a_backward_pass_alone_is_unknown_whatever_its_residuals_are(differentiated: Any):
    """Declared as parameters, the activations among them are not told from weights."""
    args = mlp_params(3, 7, 6, 2), X
    of = lambda *some: mlp(*some, *args[len(some) :])  # noqa: E731
    pullback = jax.vjp(of, *args[: len(differentiated)])[1]
    residuals, tree = jax.tree.flatten(pullback)
    fun = lambda given, g: jax.tree.unflatten(tree, given)(g)  # noqa: E731
    for parameters in ((), (0,)):
        for found in both(fun, residuals, Y, parameters=parameters):
            assert len(found) == 4 + len(differentiated)
            assert {c.role for c in found} == {"unknown"}


def test_sums_that_a_graph_network_makes_are_a_forward_pass():
    """One value is summed over both of its dimensions, as a cotangent is; neither is returned."""

    def network(p: Any, x: jax.Array, edges: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["own"] + (edges @ x) @ p["next"])
        return h @ p["out"]

    p = {"own": normal(3, 4), "next": normal(3, 4, seed=1), "out": normal(4, 2)}
    for found in both(network, p, X, normal(5, 5)):
        assert {c.role for c in found} == {"fprop"}


def _staged_adjoint(residuals: Any, g: jax.Array) -> Any:
    """Solves an adjoint equation in stages: the first one stands alone, the others in a loop."""
    p, _, (end, _) = residuals

    def stage(y: jax.Array, g: jax.Array) -> Any:
        out, pullback = jax.vjp(structure._field, p, y)
        return out, *pullback(g)

    def back(carry: Any, _: Any) -> Any:
        y, g, total = carry
        k = stage(y, g)
        k, _ = lax.scan(lambda k, _: (stage(y - k[0], g + k[2]), None), k, length=2)
        return (y - k[0], g + k[2], jax.tree.map(jnp.add, total, k[1])), None

    (_, g, total), _ = lax.scan(back, (end, g, jax.tree.map(jnp.zeros_like, p)), length=4)
    return total, g


def test_stages_of_an_adjoint_have_the_roles_that_names_tell():
    step = jax.grad(structure._solver(_staged_adjoint))
    named, nameless = both(step, structure.FIELD, normal(3, structure.D))
    assert [told(c) for c in nameless] == [told(c) for c in named]
    found = collections.Counter(c.role for c in named)
    assert found == {"fprop": len(named) - 8, "wgrad": 4, "dgrad": 4}


# ------------------------------------------------------------ sums that weigh, and no products


@jax.custom_vjp
def _staged(p: jax.Array, x: jax.Array, h: jax.Array) -> jax.Array:
    return x + h * jnp.tanh(x @ p)


def _staged_backward(residuals: Any, g: jax.Array) -> Any:
    """As a solver's: stages that a tableau weighs, and steps multiplied as products."""
    p, x, h = residuals
    stages = jnp.stack([jnp.tanh(x @ p + i) for i in range(3)])
    g = g * jnp.tensordot(TABLEAU[1], stages, 1)
    g = lax.dot_general(g, h, (((), ()), ((), ())))
    error = jnp.vdot(stages, stages)
    return x.T @ g, g @ p.T / error, jnp.zeros(())


TABLEAU = jnp.arange(6.0).reshape(2, 3)
_staged.defvjp(lambda p, x, h: (_staged(p, x, h), (p, x, h)), _staged_backward)


def test_sums_that_weigh_in_a_backward_pass_are_kept_and_no_candidates():
    """The batch is such that the weighed sum has the shape of the parameter."""
    loss = lambda p, x, h: (_staged(p, jnp.tanh(x @ p), h) ** 2).sum()  # noqa: E731
    step = lambda p, x, h: sgd(p, jax.grad(loss)(p, x, h))  # noqa: E731
    args = normal(4, 4), normal(4, 4), jnp.ones(())
    found = roles(step, *args)
    assert (found["fprop"], found["wgrad"], found["dgrad"]) == (2, 2, 1)
    weighed = [s for s in explain(step, *args, strict=True).sites if s.role == "unknown"]
    assert len(weighed) == 3
    assert all("no product of matrices" in s.reason or "constant" in s.reason for s in weighed)
