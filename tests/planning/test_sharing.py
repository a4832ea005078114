"""A tensor is quantized once where its codes can serve again, and what is saved is the codes."""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import srjit
from small_programs import X, Y, equations, loss, mlp_params, normal

PARAMS = mlp_params(3, 7, 2)
D, LAYERS = 8, 4
STACK, H = normal(LAYERS, D, D) / D**0.5, normal(6, D, seed=1)


def quantizations(fun: Any, *args: Any, recipe: str = "int8") -> dict[str, int]:
    """How often the rewritten program quantizes, by rounding; a loop's body counts once."""
    return _counted(srjit.srjit(fun, recipe=recipe).rewritten(*args))


def _counted(jaxpr: Any) -> dict[str, int]:
    calls = [
        e.params["name"]
        for e in equations(jaxpr, "srjit_quantize")
        if any(v.aval.ndim for v in e.invars)  # JAX moves constants out of loops, as calls too
    ]
    return dict(collections.Counter(name.rsplit("_", 1)[1] for name in calls))


def _scan_loss(body: Any) -> Any:
    def run(ws: jax.Array, h: jax.Array) -> jax.Array:
        return (lax.scan(lambda h, w: (body(h, w), None), h, ws)[0] ** 2).sum()

    return run


def layer(h: jax.Array, w: jax.Array) -> jax.Array:
    """One layer."""
    return jnp.tanh(h @ w)


def _outside(fun: Any, *args: Any) -> dict[str, int]:
    decorated = srjit.transform(fun, recipe="int8")
    return _counted(jax.make_jaxpr(jax.grad(lambda *a: decorated(*a, sr_key=0)))(*args))


# Two layers: x, w1, h, w2 forward; the gradients of both products backward.
# x, w2 and h, which are there, are quantized again rather than that their codes are kept, too; from
# jax 0.12 on the derivative of tanh does not read h.
H_IS_KEPT = not equations(jax.make_jaxpr(jax.grad(jnp.tanh))(1.0), "one_minus_square")
STEP = {"nearest": 4 + 2 + H_IS_KEPT, "stochastic": 2}
OUTSIDE = {"nearest": 4 + 2, "stochastic": 2}  # the derivative of tanh is not known yet
# One layer in a loop: h and w forward; its gradient backward.
# Codes are kept in place of h, which nothing else reads; those of w are made again.
SCANNED_STEP = {"nearest": 2 + 1, "stochastic": 1}


def test_each_pass_quantizes_a_tensor_of_an_mlp_once():
    assert quantizations(jax.value_and_grad(loss), PARAMS, X, Y) == STEP
    assert _outside(loss, PARAMS, X, Y) == OUTSIDE


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: jax.jit(jax.jit(f))])
def test_sharing_reaches_through_nested_jits(wrap: Any):
    assert quantizations(jax.value_and_grad(wrap(loss)), PARAMS, X, Y) == STEP
    assert quantizations(wrap(jax.value_and_grad(loss)), PARAMS, X, Y) == STEP


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
@pytest.mark.parametrize("body", [layer, jax.jit(layer)], ids=["plain body", "jitted body"])
def test_sharing_reaches_from_a_loop_into_its_transpose(wrap: Any, body: Any):
    assert quantizations(jax.value_and_grad(wrap(_scan_loss(body))), STACK, H) == SCANNED_STEP
    assert _outside(wrap(_scan_loss(body)), STACK, H) == SCANNED_STEP


def test_sharing_reaches_loops_inside_a_loop():
    def accumulated(ws: jax.Array, batches: jax.Array) -> jax.Array:
        def one(total: jax.Array, h: jax.Array) -> Any:
            return total + jax.grad(_scan_loss(layer))(ws, h), None

        return lax.scan(one, jnp.zeros_like(ws), batches)[0]

    assert quantizations(accumulated, STACK, jnp.stack([H, H])) == SCANNED_STEP


def test_a_tensor_that_several_products_read_is_quantized_once():
    def qkv(p: Any, x: jax.Array) -> jax.Array:
        return sum(jnp.tanh(x @ w) for w in p)

    assert quantizations(qkv, list(STACK), H, recipe="int8-qat") == {"nearest": 1 + LAYERS}


def test_a_loop_does_not_quantize_again_what_it_does_not_change():
    def run(w: jax.Array, h: jax.Array) -> jax.Array:
        return lax.scan(lambda h, _: (layer(h, w), None), h, None, length=3)[0]

    jaxpr = srjit.srjit(run, recipe="int8-qat").rewritten(STACK[0], H)
    (loop,) = equations(jaxpr, "scan")
    inside = len(equations(loop.params["jaxpr"], "srjit_quantize"))
    assert inside == 1
    assert len(equations(jaxpr, "srjit_quantize")) == 2


def test_blocked_weights_in_squares_serve_both_orientations():
    # x and h have another orientation, and a Hadamard transform, in wgrad; so have gradients.
    assert quantizations(jax.value_and_grad(loss), PARAMS, X, Y, recipe="nvfp4") == {
        "nearest": 3 + 2 + 2,  # w1, w2, and w2 again; x, h forward; x, h for wgrad
        "stochastic": 1 + 2,  # dgrad of the second layer; wgrad of both
    }


def test_what_is_recomputed_is_quantized_again_and_not_saved():
    block = jax.checkpoint(layer)
    scan = _scan_loss(block)
    jaxpr = srjit.srjit(jax.value_and_grad(scan), recipe="int8").rewritten(STACK, H)
    _, forward, backward = equations(jaxpr, "scan")  # the first is over the key's words
    # Out of the forward loop come the carry, its trip count, and one stack: the inputs of blocks.
    stacks = [v.aval for v in forward.outvars if v.aval.ndim == 3]
    floats = [a for a in stacks if a.dtype == jnp.float32]
    assert [a.shape for a in floats] == [(LAYERS, *H.shape)]
    # The codes of what enters a block may come with it; those of what it makes may not.
    assert all(a.shape in ((LAYERS, *H.shape), STACK.shape) for a in stacks)
    assert len(equations(backward.params["jaxpr"], "srjit_fprop")) == 0
    assert len(equations(backward.params["jaxpr"], "srjit_site")) == 3


def _deep(ws: jax.Array, h: jax.Array) -> jax.Array:
    """Blocks of two products, computed again, of which the second reads what the first made."""
    block = jax.checkpoint(jax.jit(lambda h, w: layer(layer(h, w), w.T)))
    return _scan_loss(block)(ws, h)


def _accumulated(ws: jax.Array, batches: jax.Array) -> jax.Array:
    def one(total: jax.Array, h: jax.Array) -> Any:
        return total + jax.grad(_deep)(ws, h), None

    return lax.scan(one, jnp.zeros_like(ws), batches)[0]


@pytest.mark.parametrize(
    ("fun", "h"), [(jax.grad(_deep), H), (_accumulated, jnp.stack([H] * LAYERS))]
)
def test_the_amax_of_what_is_computed_again_is_kept(fun: Any, h: jax.Array):
    """Its codes are not, so that it is quantized again, without being read for its amax."""
    decorated = srjit.srjit(fun, recipe="int8")
    backward = equations(decorated.rewritten(STACK, h), "scan")[-1].params["jaxpr"]
    made = [
        (e.params["name"].rsplit("_", 1)[1], len(equations(e.params["jaxpr"], "reduce_max")))
        for e in equations(backward, "srjit_quantize")
    ]
    # What the first product made, w and w.T, again; then the gradients of both.
    assert sorted(made) == [("nearest", 0)] * 3 + [("stochastic", 1)] * 2
    other = srjit.srjit(fun, recipe="int8", layer="stablehlo")
    assert (decorated(STACK, h, sr_key=0) == other(STACK, h, sr_key=0)).all()


def _temporary(fun: Any, *args: Any) -> int:
    return jax.jit(fun).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("inside", [True, False], ids=["grad inside", "grad outside"])
def test_the_saved_residual_is_the_quantized_one(inside: bool):
    """Per layer one int8 tensor, one bit of relu, and nothing in float32."""
    batch, d, layers = 256, 64, 16

    def run(ws: jax.Array, h: jax.Array) -> jax.Array:
        return lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), h, ws)[0].mean()

    def grad(ws: jax.Array, h: jax.Array) -> Any:
        if inside:
            return srjit.transform(jax.grad(run), recipe="int8")(ws, h, sr_key=0)
        f = srjit.transform(run, recipe="int8")
        return jax.grad(lambda ws: f(ws, h, sr_key=0))(ws)

    args = normal(layers, d, d), normal(batch, d)
    stack = batch * d * layers  # elements of one activation a layer
    plain, quantized = _temporary(jax.grad(run), *args), _temporary(grad, *args)
    assert plain >= 4 * stack  # the program without srjit saves it in float32
    assert quantized < plain - 1.5 * stack
