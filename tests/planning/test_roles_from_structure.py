"""Roles where names say too little: two readers, loops that compute again, second derivatives."""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import srjit
from nameless import both, told
from small_programs import PARAMS, X, Y, explain, loss, mlp, normal, roles, sgd

from .programs import ATTENTION, MLP, ROWS, SQUARE, STEP, D, _flash_attention

N, L = 2, 5


# ------------------------------------------------------------ several products read a value


def _scores(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("nld,nmd->nlm", a, b)  # one source line, as of a library


def _disentangled(p: Any, x: jax.Array) -> jax.Array:
    """Content and position, as in DeBERTa: three products, two of them with a weight."""
    q, k = x @ p["q"], x @ p["k"]
    pos = jnp.broadcast_to(p["pos"], (N, L, D))
    return (jax.nn.softmax(_scores(q, k) + _scores(q, pos) + _scores(pos, k)) ** 2).mean()


DISENTANGLED = {"q": SQUARE, "k": SQUARE, "pos": normal(L, D)}, normal(N, L, D)


def test_each_side_of_a_product_has_one_gradient():
    sites = explain(jax.grad(_disentangled), *DISENTANGLED).sites
    found = [(s.role, "weight" in (s.lhs_kind, s.rhs_kind)) for s in sites if s.out_shape[0] == N]
    inside = [(role, weight) for role, weight in found if role != "fprop"]
    # Of q @ pos and pos @ k a wgrad and a dgrad each; of q @ k two dgrads.
    assert sorted(inside) == [("dgrad", False)] * 2 + [("dgrad", True)] * 2 + [("wgrad", False)] * 2


def test_layers_that_share_a_weight_have_a_gradient_each():
    def network(w: jax.Array, x: jax.Array) -> jax.Array:
        for _ in range(4):
            x = jnp.tanh(x @ w)
        return (x**2).sum()

    assert roles(jax.grad(network), SQUARE, normal(D, D)) == {"fprop": 4, "wgrad": 4, "dgrad": 3}


def test_a_tied_decoder_is_no_gradient_of_its_encoder():
    def autoencoder(w: jax.Array, x: jax.Array) -> jax.Array:
        return ((x @ w @ w.T - x) ** 2).mean()

    expected = {"fprop": 2, "wgrad": 2, "dgrad": 1}
    assert roles(jax.grad(autoencoder), normal(6, D), normal(3, 6)) == expected


# ------------------------------------------------------------ what a backward loop computes


def _field(p: Any, y: jax.Array) -> jax.Array:
    return y + 0.1 * jnp.tanh(jnp.tanh(y @ p["a"]) @ p["b"])


FIELD = {"a": normal(D, 6), "b": normal(6, D)}


def _solver(rule: Any, length: int = 4) -> Any:
    def forward(p: Any, y: jax.Array) -> Any:
        return lax.scan(lambda y, _: (_field(p, y), y), y, length=length)

    @jax.custom_vjp
    def run(p: Any, y: jax.Array) -> jax.Array:
        return forward(p, y)[0]

    run.defvjp(lambda p, y: (run(p, y), (p, y, forward(p, y))), rule)
    return lambda p, y: (run(p, y) ** 2).mean()


def _recursive(residuals: Any, g: jax.Array) -> Any:
    """Runs again from the start for every step, and differentiates that step."""
    p, start, _ = residuals

    def back(i: jax.Array, carry: Any) -> Any:
        total, g = carry
        y = lax.fori_loop(0, 3 - i, lambda _, y: _field(p, y), start)
        dp, g = jax.vjp(_field, p, y)[1](g)
        return jax.tree.map(jnp.add, total, dp), g

    return lax.fori_loop(0, 4, back, (jax.tree.map(jnp.zeros_like, p), g))


def _reversed(residuals: Any, g: jax.Array) -> Any:
    """Solves backward from the end, as a continuous adjoint, with gradients written by hand."""
    p, _, (end, _) = residuals

    def back(carry: Any, _: Any) -> Any:
        y, g, da, db = carry
        y = y - 0.1 * jnp.tanh(jnp.tanh(y @ p["a"]) @ p["b"])
        h = jnp.tanh(y @ p["a"])
        out = jnp.tanh(h @ p["b"])
        d = 0.1 * g * (1 - out**2)
        dh = (d @ p["b"].T) * (1 - h**2)
        return (y, g + dh @ p["a"].T, da + y.T @ dh, db + h.T @ d), None

    zeros = jax.tree.map(jnp.zeros_like, (p["a"], p["b"]))
    (_, g, da, db), _ = lax.scan(back, (end, g, *zeros), length=4)
    return {"a": da, "b": db}, g


def _stacked(residuals: Any, g: jax.Array) -> Any:
    """Differentiates each step at the value that the forward loop stacked."""
    p, _, (_, stack) = residuals

    def back(carry: Any, y: jax.Array) -> Any:
        total, g = carry
        dp, g = jax.vjp(_field, p, y)[1](g)
        return (jax.tree.map(jnp.add, total, dp), g), None

    (dp, g), _ = lax.scan(back, (jax.tree.map(jnp.zeros_like, p), g), stack, reverse=True)
    return dp, g


@pytest.mark.parametrize(
    ("rule", "again"), [(_recursive, 4), (_reversed, 4), (_stacked, 2)], ids=lambda v: str(v)[:12]
)
def test_what_a_backward_loop_computes_again_is_forward(rule: Any, again: int):
    noisy = srjit.recipes.get("int8").with_rounding(activations="stochastic")
    sites = explain(jax.grad(_solver(rule)), FIELD, normal(3, D), recipe=noisy).sites
    found = roles(jax.grad(_solver(rule)), FIELD, normal(3, D))
    assert found.pop("fprop") in (2, 4)  # the rule's forward pass may run the loop twice
    assert found == {"recomputed fprop": again, "wgrad": 2, "dgrad": 2}
    for s in sites:
        if s.role == "fprop":
            assert (s.lhs.rounding, s.rhs.rounding) == ("stochastic", "nearest")


def test_a_reversible_block_that_computes_its_inputs_again():
    f = lambda w, x: jnp.tanh(x @ w)  # noqa: E731

    def forward(p: Any, a: jax.Array, b: jax.Array) -> Any:
        a = a + f(p["f"], b)
        return a, b + f(p["g"], a)

    @jax.custom_vjp
    def block(p: Any, a: jax.Array, b: jax.Array) -> Any:
        return forward(p, a, b)

    def backward(residuals: Any, g: Any) -> Any:
        p, (a, b) = residuals
        b = b - f(p["g"], a)
        a = a - f(p["f"], b)
        return jax.vjp(forward, p, a, b)[1](g)

    def run(p: Any, a: jax.Array, b: jax.Array) -> Any:
        out = forward(p, a, b)
        return out, (p, out)

    block.defvjp(run, backward)

    def network(p: Any, x: jax.Array) -> jax.Array:
        a, b = x, 2 * x
        for layer in p:
            a, b = block(layer, a, b)
        return (a * b).mean()

    params = [{"f": normal(D, D, seed=i), "g": normal(D, D, seed=i + 5)} for i in range(2)]
    found = roles(jax.grad(network), params, normal(3, D))
    again = found.pop("recomputed fprop")
    assert found == {"fprop": 4, "wgrad": 4, "dgrad": 3} and again >= 4


# ------------------------------------------------------------ attention in blocks


def _blocks(a: jax.Array) -> jax.Array:
    return a.reshape(3, 2, *a.shape[1:])


def _block_forward(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
    def block(carry: Any, kv: Any) -> Any:
        out, top, total = carry
        s = q @ kv[0].T
        now = jnp.maximum(top, s.max(-1))
        a, shrunk = jnp.exp(s - now[:, None]), jnp.exp(top - now)
        return (out * shrunk[:, None] + a @ kv[1], now, total * shrunk + a.sum(-1)), None

    start = jnp.zeros_like(q), jnp.full(len(q), -1e9), jnp.zeros(len(q))
    (out, top, total), _ = lax.scan(block, start, (_blocks(k), _blocks(v)))
    out = out / total[:, None]
    return out, (q, k, v, out, top + jnp.log(total))


def _block_backward(residuals: Any, g: jax.Array) -> Any:
    """Weighs by other numbers than the forward pass did, which knew no sum yet."""
    q, k, v, out, size = residuals
    own = (g * out).sum(-1)

    def block(dq: jax.Array, kv: Any) -> Any:
        a = jnp.exp(q @ kv[0].T - size[:, None])
        dv = a.T @ g
        ds = a * (g @ kv[1].T - own[:, None])
        return dq + ds @ kv[0], (ds.T @ q, dv)

    dq, (dk, dv) = lax.scan(block, jnp.zeros_like(q), (_blocks(k), _blocks(v)))
    return dq, dk.reshape(k.shape), dv.reshape(v.shape)


_in_blocks = jax.custom_vjp(lambda *qkv: _block_forward(*qkv)[0])
_in_blocks.defvjp(_block_forward, _block_backward)


def _attention_in_blocks(p: Any, x: jax.Array) -> jax.Array:
    return ((_in_blocks(*(x @ p[n] for n in "qkv")) @ p["o"]) ** 2).mean()


def test_attention_in_blocks_has_all_roles_though_it_weighs_again():
    named, nameless = both(jax.grad(_attention_in_blocks), ATTENTION, ROWS)
    found = collections.Counter(c.role for c in named)
    assert found == {"fprop": 7, "wgrad": 4, "dgrad": 5}  # q @ k is computed again
    again = [told(c) for c in named if c.phase == "backward" and c.site.out_shape == (2, D)]
    assert again == [("dgrad", "activation", "gradient"), ("dgrad", "gradient", "activation")]
    assert [told(c) for c in nameless] == [told(c) for c in named]


def test_a_backward_pass_in_other_blocks_than_the_forward_one_is_no_forward_pass():
    named, nameless = both(jax.grad(_flash_attention), ATTENTION, ROWS)
    for a, b in zip(named, nameless, strict=True):
        assert b.role == "unknown" or told(b) == told(a)


# ------------------------------------------------------------ second derivatives

SECOND = "unknown"


def _adapted(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """One inner step of MAML."""
    return loss(sgd(p, jax.grad(loss)(p, x, y)), 2 * x, y)


def _leaves_product(a: Any, b: Any) -> jax.Array:
    return sum(jnp.sum(x * y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def _hessian_vector(p: Any, v: Any, x: jax.Array, y: jax.Array) -> Any:
    return jax.grad(lambda p: _leaves_product(jax.grad(loss)(p, x, y), v))(p)


def _forward_over_reverse(p: Any, v: Any, x: jax.Array, y: jax.Array) -> Any:
    return jax.jvp(lambda p: jax.grad(loss)(p, x, y), (p,), (v,))


def _energy(p: Any, x: jax.Array) -> jax.Array:
    return mlp(p, x).sum()


def _forces(p: Any, x: jax.Array, target: jax.Array) -> jax.Array:
    return ((jax.grad(_energy, 1)(p, x) - target) ** 2).mean()


def _penalized(p: Any, x: jax.Array) -> jax.Array:
    """A critic with the gradient penalty of WGAN-GP."""
    norms = jnp.sqrt((jax.grad(_energy, 1)(p, x) ** 2).sum(-1))
    return _energy(p, 2 * x) + ((norms - 1) ** 2).mean()


def _tangent_kernel(p: Any, x: jax.Array) -> jax.Array:
    one = lambda row: jax.tree.leaves(jax.grad(lambda p: mlp(p, row[None]).sum())(p))  # noqa: E731
    rows = jnp.concatenate([g.reshape(len(x), -1) for g in jax.vmap(one)(x)], axis=1)
    return rows @ rows.T


INNER = {"fprop": 2, "wgrad": 2, "dgrad": 1}
FORCES = PARAMS, X, X


@pytest.mark.parametrize(
    ("fun", "args", "expected"),
    [
        # Two forward passes and the inner gradient; of the outer one, both passes' gradients.
        (jax.grad(_adapted), STEP, {"fprop": 4, "wgrad": 6, "dgrad": 3, SECOND: 5}),
        (_hessian_vector, (PARAMS, PARAMS, X, Y), {"fprop": 2, "wgrad": 2, "dgrad": 2, SECOND: 5}),
        (_forward_over_reverse, (PARAMS, PARAMS, X, Y), INNER | {SECOND: 8}),
        # Energies themselves, and the last products that make them, are dead code.
        (jax.grad(_forces), FORCES, {"fprop": 1, "wgrad": 1, "dgrad": 2, SECOND: 3}),
        (jax.grad(_penalized), FORCES[:2], {"fprop": 2, "wgrad": 3, "dgrad": 3, SECOND: 3}),
    ],
    ids=["MAML", "reverse over reverse", "forward over reverse", "forces", "gradient penalty"],
)
def test_first_derivatives_have_roles_and_second_ones_are_kept(fun: Any, args: Any, expected: Any):
    assert roles(fun, *args) == expected
    unknown = [s for s in explain(fun, *args).sites if s.role == "unknown"]
    assert unknown and all(s.status == "kept" for s in unknown)
    assert all("second derivative" in s.reason for s in unknown)
    with pytest.raises(srjit.UnsupportedSiteError, match="second derivative"):
        srjit.srjit(fun, recipe="int8", strict=True).lower(*args)


def test_the_gradients_of_a_tangent_kernel_are_first_derivatives():
    found = roles(_tangent_kernel, PARAMS, X)
    kernel = {"fprop.act": found.get("fprop.act", 0), "unknown": found.get("unknown", 0)}
    assert {k: v for k, v in found.items() if k in MLP} == MLP | {"fprop": 1}  # one is dead code
    assert sum(kernel.values()) <= 1


# ------------------------------------------------------------ constant cotangents

TARGETS = 0.3 * jnp.ones((3, 6))


@pytest.mark.parametrize("captured", ["nothing", "the cotangent", "the activation"])
@pytest.mark.parametrize("wanted", [False, True], ids=["grad", "value and grad"])
def test_a_constant_cotangent_is_never_taken_for_the_activation(captured: str, wanted: bool):
    x = normal(3, D)
    fun = lambda w, x, t: jnp.sum((x @ w) * t)  # noqa: E731
    w, given = normal(D, 6), {"x": x, "t": TARGETS}
    if captured != "nothing":
        given.pop("t" if captured == "the cotangent" else "x")
    inner = lambda w, given: fun(w, given.get("x", x), given.get("t", TARGETS))  # noqa: E731
    step = jax.value_and_grad(inner) if wanted else jax.grad(inner)
    *_, site = explain(step, w, given).sites
    if wanted:  # the forward product tells
        assert site.role == "wgrad"
    if site.status == "kept":
        assert "unknown role" in site.reason or "captures" in site.reason
        return
    assert site.role == "wgrad"
    specs = {
        site.lhs_kind: (site.lhs_shape, site.lhs),
        site.rhs_kind: (site.rhs_shape, site.rhs),
    }
    shape, spec = specs["gradient"]
    assert (shape, spec.rounding) == (TARGETS.shape, "stochastic")


def test_the_gradient_of_a_sum_is_a_constant_and_known():
    step = jax.grad(lambda w, x: jnp.sum(x @ w))
    (site,) = explain(step, normal(D, 6), normal(3, D)).sites
    assert (site.role, site.status) == ("wgrad", "emulated")


@pytest.mark.parametrize("ways", ["alone", "on shards"])
def test_the_gradient_of_dead_code_is_told_from_a_captured_activation(ways: str):
    eye = jnp.eye(D)

    def alone(w: jax.Array, t: jax.Array) -> jax.Array:
        return jax.grad(lambda w: jnp.sum((eye @ w) * t))(w)

    gradient, args = alone, (SQUARE, normal(D, D))
    if ways == "on shards":
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((2,), ("d",), axis_types=auto)
        spec = jax.sharding.PartitionSpec("d")
        whole = lambda w, t: alone(w[0], t[0])[None]  # noqa: E731
        gradient = jax.shard_map(whole, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        args = tuple(jnp.stack([a, a]) for a in args)
    [site] = explain(gradient, *args).sites
    assert site.role == "wgrad"
    assert {site.lhs_kind, site.rhs_kind} == {"gradient", "activation"}
    stochastic = site.lhs if site.lhs_kind == "gradient" else site.rhs
    assert stochastic is not None and stochastic.rounding == "stochastic"
