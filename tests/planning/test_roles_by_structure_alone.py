"""Programs that differentiate in other ways than once, backward: roles with and without names."""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from nameless import both, flops, told
from small_programs import PARAMS, X, Y, loss, mlp, mlp_params, normal, sgd

from . import programs
from .test_roles_from_structure import _forward_over_reverse, _leaves_product

DEEP = mlp_params(3, 7, 6, 2)
STEP = DEEP, X, Y
SQUARES, ROWS = jnp.stack([normal(4, 4, seed=i) for i in range(3)]), normal(6, 4)


def _product(fun: Any) -> Any:
    """The product of the Hessian of a function with a vector, forward over reverse."""
    return lambda p, v, *args: jax.jvp(lambda p: jax.grad(fun)(p, *args), (p,), (v,))


def _squared(fun: Any) -> Any:
    return lambda p, x: (fun(p, x) ** 2).sum()


def _scanned(ws: jax.Array, x: jax.Array) -> jax.Array:
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0]


def _gated(p: Any, x: jax.Array) -> jax.Array:
    layer = lambda x, w: x + (jax.nn.silu(x @ w["gate"]) * (x @ w["up"])) @ w["down"]  # noqa: E731
    return lax.scan(lambda x, w: (layer(x, w), None), x, p)[0]


GATED = {"gate": normal(2, 4, 7), "up": normal(2, 4, 7, seed=1), "down": normal(2, 7, 4, seed=2)}


def _conjugate_gradients(p: Any, x: jax.Array, y: jax.Array) -> Any:
    def step(c: Any, _: Any) -> Any:
        return sgd(c, _product(loss)(p, c, x, y)[1]), None

    return sgd(p, lax.scan(step, jax.grad(loss)(p, x, y), length=3)[0])


def _estimated_diagonal(p: Any, xs: jax.Array, ys: jax.Array, key: jax.Array) -> Any:
    """Steps of an optimizer that reads Hessian-vector products, in a loop."""

    def step(p: Any, batch: Any) -> Any:
        v = jax.tree.map(lambda a: jax.random.normal(key, a.shape), p)
        g, h = _product(loss)(p, v, *batch)
        return jax.tree.map(lambda p, g, h: p - g / (1 + abs(h)), p, g, h), None

    return lax.scan(step, p, (xs, ys))[0]


def _perturbed(p: Any, x: jax.Array, y: jax.Array) -> Any:
    """Sharpness-aware: a second step, from where the first one would go."""
    return sgd(p, jax.grad(loss)(sgd(p, jax.grad(loss)(p, x, y)), x, y))


def _adversarial(d: Any, g: Any, z: jax.Array, x: jax.Array) -> Any:
    """Both steps of a GAN: the critic's mean has constant gradients."""
    critic = lambda d: (mlp(d, mlp(g, z)) - mlp(d, x)).mean()  # noqa: E731
    return jax.grad(critic)(d), jax.grad(lambda g: mlp(d, mlp(g, z)).mean())(g)


def _two_tasks(p: Any, x: jax.Array, y: jax.Array) -> Any:
    a, b = jax.grad(loss)(p, x, y), jax.grad(loss)(p, 2 * x, y)
    overlap = _leaves_product(a, b)
    return sgd(p, jax.tree.map(lambda a, b: a - b * overlap, a, b))


def _gauss_newton(p: Any, v: Any, x: jax.Array) -> Any:
    out, tangent = jax.jvp(lambda p: mlp(p, x), (p,), (v,))
    return jax.vjp(lambda p: mlp(p, x), p)[1](tangent / out.size)


def _attacked(p: Any, x: jax.Array, y: jax.Array) -> Any:
    """Adversarial training: forward passes read what gradients became."""
    moved = jnp.zeros_like(x)
    for _ in range(2):
        moved += 0.1 * jnp.sign(jax.grad(lambda d: loss(p, x + d, y))(moved))
    return sgd(p, jax.grad(loss)(p, x + moved, y))


def _virtually_attacked(p: Any, x: jax.Array, noise: jax.Array) -> Any:
    """Virtual adversarial training: a forward pass that is linear in a gradient."""

    def smoothness(p: Any) -> jax.Array:
        told = lax.stop_gradient(mlp(p, x))
        away = lambda d: ((mlp(p, x + d) - told) ** 2).sum()  # noqa: E731
        d = jax.grad(away)(noise)
        return away(lax.stop_gradient(d / jnp.linalg.norm(d)))

    return sgd(p, jax.grad(smoothness)(p))


def _taught(p: Any, teacher: Any, x: jax.Array) -> Any:
    """Weights that are data, in the place of weights."""
    distance = lambda p: ((mlp(p, x) - mlp(teacher, x)) ** 2).mean()  # noqa: E731
    return sgd(p, jax.grad(distance)(p))


def _with_residuals(change: Any) -> Any:
    """A step whose products, differentiated by a rule, keep their operands changed."""

    @jax.custom_vjp
    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return a @ b

    rule = lambda r, g: (g @ r[1].T, r[0].T @ g)  # noqa: E731
    dot.defvjp(lambda a, b: (a @ b, (change(a), change(b))), rule)
    hidden = lambda p, x: jnp.tanh(dot(jnp.tanh(dot(x, p["w1"])), p["w2"]))  # noqa: E731
    return jax.grad(lambda p, x, y: ((dot(hidden(p, x), p["w3"]) - y) ** 2).mean())


def _dispatched(p: Any, x: jax.Array) -> jax.Array:
    """Experts: a matrix sends them rows, and reads the input over the rows, as a gradient would."""
    gate = jax.nn.softmax(x @ p["gate"])
    chosen = jax.nn.one_hot(gate.argmax(-1), 4)
    place = jax.nn.one_hot(((jnp.cumsum(chosen, 0) - 1) * chosen).sum(-1).astype(int), 3)
    sent = chosen[:, :, None] * place[:, None]
    rows = jnp.tanh(jnp.einsum("bec,bd,edh->ech", sent, x, p["experts"]))
    return (jnp.einsum("bec,ech->bh", sent * gate.max(-1)[:, None, None], rows) ** 2).mean()


def _preferred(p: Any, reference: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Answers of a model and of a reference that is data; both are asked for each of two."""
    told = lambda p, y: (jax.nn.log_softmax(mlp(p, x)) * y).sum(-1)  # noqa: E731
    gain = lambda y: told(p, y) - told(reference, y)  # noqa: E731
    return -jax.nn.log_sigmoid(gain(y) - gain(2 * y)).mean()


def _guided(p: Any, classifier: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """A sampler whose steps go along a gradient of their own; it trains nothing."""

    def step(x: jax.Array, t: jax.Array) -> Any:
        told = lambda x: (jax.nn.log_softmax(mlp(classifier, x)) * y).sum()  # noqa: E731
        noise = jnp.tanh(x @ p["in"] + jnp.sin(t * jnp.arange(1.0, 4.0)) @ p["time"]) @ p["out"]
        return x - 0.1 * (noise - jax.grad(told)(x)), None

    return lax.scan(step, x, jnp.linspace(0.0, 1.0, 3))[0]


def _low_rank(p: Any, x: jax.Array, y: jax.Array) -> Any:
    """PowerSGD, with its directions among the parameters: a product, and another in its turn."""
    found = {}
    for name, g in jax.grad(loss)(p["model"], x, y).items():
        left = jnp.tanh(g @ p["directions"][name])
        found[name] = g.T @ left
    return found


def _statistics(p: Any, x: jax.Array, y: jax.Array) -> Any:
    """Of what the last layer's gradients are made of, as K-FAC keeps them."""
    probed = lambda p, at: ((mlp(p, x) + at - y) ** 2).mean()  # noqa: E731
    grads, g = jax.grad(probed, (0, 1))(p, jnp.zeros_like(y))
    return grads, g.T @ g


def _normalized(p: Any, u: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Weights over their largest singular values, which products estimate as a gradient's do."""

    def weight(name: str) -> jax.Array:
        left, right = u[name], u[name]
        for _ in range(2):
            right = lax.stop_gradient(jnp.tanh(p[name].T @ left))
            left = lax.stop_gradient(jnp.tanh(p[name] @ right))
        return p[name] / jnp.einsum("i,ij,j->", left, p[name], right)

    return ((jnp.tanh(x @ weight("w1")) @ weight("w2") - y) ** 2).mean()


def _clustered(p: Any, x: jax.Array) -> Any:
    """A codebook among the parameters that is moved to the means of what is nearest."""

    def distance(p: Any) -> Any:
        z = mlp(p["model"], x)
        chosen = jax.nn.one_hot((z @ p["codes"].T).argmax(-1), 6)
        return ((z + lax.stop_gradient(chosen @ p["codes"] - z) - 1) ** 2).mean(), (z, chosen)

    grads, (z, chosen) = jax.grad(distance, has_aux=True)(p)
    return grads["model"], 0.9 * p["codes"] + 0.1 * chosen.T @ z


@jax.custom_vjp
def _aligned(x: jax.Array, w: jax.Array, other: jax.Array) -> jax.Array:
    """Feedback alignment: gradients go back through other weights, which are data."""
    return x @ w


_aligned.defvjp(
    lambda x, w, other: (x @ w, (x, other)),
    lambda r, g: (g @ r[1].T, r[0].T @ g, jnp.zeros_like(r[1])),
)


def _fed_back(p: Any, others: Any, x: jax.Array) -> jax.Array:
    h = jnp.tanh(_aligned(x, p["w1"], others["w1"]))
    return (_aligned(h, p["w2"], others["w2"]) ** 2).mean()


SAMPLER = {"in": normal(3, 7), "time": normal(3, 7, seed=1), "out": normal(7, 3)}
EXPERTS = {"gate": normal(3, 4), "experts": normal(4, 3, 7)}
CRITIC, MAKER = mlp_params(4, 7, 1), mlp_params(3, 7, 4)
BATCHES = jnp.stack([X, X]), jnp.stack([Y, Y])
ALIKE: dict[str, tuple[Any, ...]] = {
    "forward over reverse": (_forward_over_reverse, DEEP, DEEP, X, Y),
    "the Hessian-vector product alone": (lambda *a: _product(loss)(*a)[1], DEEP, DEEP, X, Y),
    "a Hessian": (jax.hessian(loss), PARAMS, X, Y),
    "a Jacobian of a gradient": (jax.jacfwd(jax.grad(loss)), PARAMS, X, Y),
    "products of a batch of vectors": (
        lambda p, vs, *a: jax.vmap(lambda v: _product(loss)(p, v, *a)[1])(vs),
        *(DEEP, jax.tree.map(lambda a: jnp.stack([a, a]), DEEP), X, Y),
    ),
    "of layers in a loop": (_product(_squared(_scanned)), SQUARES, SQUARES, ROWS),
    "of gated layers in a loop": (_product(_squared(_gated)), GATED, GATED, ROWS),
    "of attention": (
        _product(_squared(programs._attention)),
        *(programs.ATTENTION, programs.ATTENTION, programs.TOKENS),
    ),
    "of a checkpointed function": (_product(programs._remat()), DEEP, DEEP, X, Y),
    "conjugate gradients": (_conjugate_gradients, *STEP),
    "an estimated diagonal": (_estimated_diagonal, DEEP, *BATCHES, jax.random.key(0)),
    "gated layers, trained": (jax.grad(_squared(_gated)), GATED, ROWS),
    "attention, reverse over reverse": (
        lambda p, v, x: jax.grad(
            lambda p: _leaves_product(jax.grad(_squared(programs._attention))(p, x), v)
        )(p),
        *(programs.ATTENTION, programs.ATTENTION, programs.TOKENS),
    ),
    "forward mode alone": (lambda p, v, x: jax.jvp(lambda p: mlp(p, x), (p,), (v,)), DEEP, DEEP, X),
    "a sharpness-aware step": (_perturbed, *STEP),
    "adversarial training": (_attacked, *STEP),
    "virtual adversarial training": (_virtually_attacked, DEEP, X, normal(5, 3, seed=3)),
    "a teacher's weights as data": (_taught, DEEP, DEEP, X),
    "a gate that is data": (
        jax.grad(lambda w, v, x: ((jnp.tanh(x @ w) * (x @ v)) ** 2).sum()),
        *(normal(3, 2), normal(3, 2, seed=1), X),
    ),
    "gradients of two tasks": (_two_tasks, *STEP),
    "an update of low rank": (
        _low_rank,
        *({"model": PARAMS, "directions": {"w1": normal(7, 2), "w2": normal(2, 2)}}, X, Y),
    ),
    "statistics of a gradient": (_statistics, *STEP),
    "feedback alignment": (jax.grad(_fed_back), PARAMS, PARAMS, X),
    "a reference that is data": (jax.grad(_preferred), DEEP, DEEP, X, Y),
    "experts, sent rows by a matrix": (jax.grad(_dispatched), EXPERTS, X),
    "a GAN": (_adversarial, CRITIC, MAKER, X, normal(5, 4)),
    **{
        f"residuals {name}": (_with_residuals(change), *STEP)
        for name, change in {
            "doubled": lambda a: 2 * a,
            "scaled by a root": lambda a: a / jnp.sqrt(3.0),
            "scaled by their size": lambda a: a / abs(a).max(),
            "moved": lambda a: a + 1.0,
            "negative, and rounded": lambda a: (-a).astype(jnp.bfloat16).astype(jnp.float32),
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_roles_are_those_that_names_tell(name: str):
    fun, *args = ALIKE[name]
    named, nameless = both(fun, *args, parameters=(0, 1) if name == "a GAN" else (0,))
    assert [told(c) for c in nameless] == [told(c) for c in named]


@pytest.mark.parametrize(
    ("fun", "args", "most"),
    [
        (jax.grad(_normalized), (PARAMS, {"w1": normal(3), "w2": normal(7)}, X, Y), 0.12),
        (_clustered, ({"model": PARAMS, "codes": normal(6, 2)}, X), 0.25),
    ],
    ids=["spectral norms", "a codebook"],
)
def test_products_in_the_place_of_gradients_are_none(fun: Any, args: Any, most: float):
    named, nameless = both(fun, *args)
    assert all(
        told(a) == told(b) or b.role == "unknown" for a, b in zip(named, nameless, strict=True)
    )
    assert flops([c for c in nameless if c.role == "unknown"]) <= most * flops(nameless)


def test_a_call_again_is_differentiated_again():
    """Its gradient of a weight is not that of the reference, which reads the same input."""
    fun, *args = ALIKE["a reference that is data"]
    found = [c.role for c in both(fun, *args)[0]]
    assert (found.count("wgrad"), found.count("dgrad")) == (6, 4)


def test_what_reads_gradients_and_trains_nothing_is_a_forward_pass():
    for found in both(_guided, SAMPLER, PARAMS, X, Y, parameters=(0, 1)):
        assert collections.Counter(c.role for c in found) == {"fprop": 5, "dgrad": 2}


# The same program can be another derivative, or the residual is another value.
UNDECIDED: dict[str, tuple[Any, float, tuple[Any, ...]]] = {
    "Gauss-Newton": (_gauss_newton, 0.3, (PARAMS, PARAMS, X)),
    "residuals squared": (_with_residuals(lambda a: a * a), 0.7, STEP),
    "residuals through tanh": (_with_residuals(jnp.tanh), 0.7, STEP),
    "a linearized gradient": (
        lambda p, v, x, y: jax.linearize(lambda p: jax.grad(loss)(p, x, y), p)[1](v),
        *(0.75, (DEEP, DEEP, X, Y)),
    ),
    "gradients projected by an optimizer": (
        lambda w, u, x: w - u @ (u.T @ jax.grad(lambda w: (jnp.tanh(x @ w) ** 2).sum())(w)),
        *(0.7, (normal(3, 2), normal(3, 2), X)),
    ),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_what_structure_leaves_open_is_unknown(name: str):
    fun, most, args = UNDECIDED[name]
    named, nameless = both(fun, *args)
    pairs = zip(named, nameless, strict=True)
    assert all("unknown" in (a.role, b.role) or told(a) == told(b) for a, b in pairs)
    unknown = [c for c in nameless if c.role == "unknown"]
    assert 0 < flops(unknown) <= most * flops(nameless)
    assert all("second derivative" in c.why or "may be a gradient" in c.why for c in unknown)


MOVED = {"bias": normal(7), "place": normal(3, 5), "first": normal(7, 3), "last": normal(2, 7)}


def _placed(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    h = p["first"] @ (x + p["place"])
    h = jnp.tanh(h + jnp.broadcast_to(p["bias"][:, None], h.shape))
    return ((p["last"] @ h - y) ** 2).mean()


def _attacked_in_columns(p: Any, x: jax.Array, y: jax.Array) -> Any:
    return jax.grad(_placed)(p, x + 0.1 * jnp.sign(jax.grad(_placed, 1)(p, x, y)), y)


def test_a_bias_or_a_place_added_to_moved_data_makes_no_weight_of_it():
    forward, backward = ("fprop", "weight", "activation"), ("dgrad", "gradient", "weight")
    weight = "wgrad", "gradient", "activation"
    expected = [*[forward] * 2, *[backward] * 2, *[forward] * 2, weight, backward, weight]
    for found in both(_attacked_in_columns, MOVED, normal(3, 5, seed=1), normal(2, 5)):
        told_of = [told(c) for c in found]
        assert sorted(told_of) == sorted([*expected, backward])  # and of the place
        assert told_of[:6] == expected[:6]


def _adapted(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return loss(sgd(p, jax.grad(loss)(p, x, y)), 2 * x, y)


def test_each_task_adapts_weights_of_its_own_which_are_weights():
    tasks = jax.grad(lambda p, *batch: jax.vmap(_adapted, (None, 0, 0))(p, *batch).mean())
    pairs = zip(both(tasks, PARAMS, *BATCHES), both(jax.grad(_adapted), PARAMS, X, Y), strict=True)
    for many, one in pairs:
        assert [told(c) for c in many] == [told(c) for c in one]


def test_a_captured_vector_is_no_gradient_and_no_activation():
    weights = jnp.arange(1.0, 4.0)  # of a solver's stages; results are shaped as the parameter

    @jax.custom_vjp
    def block(p: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tensordot(weights, jnp.stack([jnp.tanh(x @ p)] * 3), 1)

    def backward(residuals: Any, g: jax.Array) -> Any:
        p, x = residuals
        g *= jnp.tensordot(weights, jnp.stack([jnp.cos(x @ p + i) for i in range(3)]), 1)
        return x.T @ g, g @ p.T

    block.defvjp(lambda p, x: (block(p, x), (p, x)), backward)
    step = lambda p, x: p - jax.grad(lambda p: jnp.sum(block(p, x) ** 2))(p)  # noqa: E731
    for found in both(step, normal(4, 4), normal(4, 4)):
        roles = [c.role for c in found]
        assert roles[:-1].count("fprop") + roles[:-1].count("unknown") == len(found) - 1
        assert roles[-1] == "wgrad"


def test_an_input_that_is_read_both_ways_for_a_loss_is_no_gradient():
    """Nor are the products then a backward pass, which would return one of them whole."""
    both_ways = lambda p, x: (x @ p["a"]).sum() + (x.T @ p["b"]).sum()  # noqa: E731
    weights = {"a": normal(4, 5), "b": normal(6, 3)}
    for found in both(both_ways, weights, normal(6, 4)):
        assert [told(c) for c in found] == [("fprop", "activation", "weight")] * 2
