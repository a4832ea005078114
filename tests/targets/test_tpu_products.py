"""Products of codes on TPUs: which operands are transposed, and that it changes no bit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srjit import srjit, targets
from srjit.numerics.quantization import Quantization
from srjit.products.dot import DotProduct
from srjit.targets.tpu import kernels as tpu_kernels

INT8, E4M3 = Quantization(format="int8"), Quantization(format="fp8_e4m3")
MATRICES = DotProduct((0, 1), (1, 2), (0, 2))
WGRAD = DotProduct((0, 1), (0, 2), (1, 2))
T, D, F = 4096, 64, 512


@pytest.mark.parametrize(
    ("chip", "product", "shapes", "wanted"),
    [
        ("v6e", MATRICES, ((T, D), (D, F)), (False, True)),  # its best order has both last
        ("v6e", MATRICES, ((64, D), (D, F)), (False, False)),  # too few rows to gain by it
        ("v5e", MATRICES, ((T, D), (D, F)), (False, False)),
        ("v5e", WGRAD, ((T, D), (T, F)), (True, False)),  # the smaller one
        ("v5e", WGRAD, ((T, F), (T, D)), (False, False)),  # only the larger one would do
        (
            "v5e",
            DotProduct((0, 1), (0, 2), (2, 1), is_turned=True),
            ((T, F), (T, D)),
            (False, True),
        ),
        ("tpu7x", WGRAD, ((T, D), (T, F)), (False, False)),  # all orders are as good
        (
            "v5e",
            DotProduct((0, 1, 2), (0, 1, 3), (2, 3)),
            ((8, 512, D), (8, 512, F)),
            (True, False),
        ),
        ("v6e", DotProduct((0, 1), (1, 2, 3), (0, 2, 3)), ((T, D), (D, 8, 64)), (False, False)),
    ],
)
def test_a_copy_is_wanted_where_it_pays(
    chip: str, product: DotProduct, shapes: Any, wanted: tuple[bool, bool]
):
    spec = E4M3 if chip == "tpu7x" else INT8
    assert targets.get(chip).turns(product, shapes, (spec, spec)) == wanted


@pytest.mark.parametrize("specs", [(INT8, None), (E4M3, E4M3), (Quantization(format="mxfp8"),) * 2])
def test_nothing_is_turned_or_native_that_is_multiplied_as_bfloat16(specs: Any):
    v5e = targets.get("v5e")
    assert v5e.turns(WGRAD, ((T, D), (T, F)), specs) == (False, False)
    assert not v5e.native(MATRICES, ((T, D), (D, F)), specs)


def test_an_order_without_the_rate_is_not_native():
    v5e = targets.get("v5e")
    for rows, native in (
        (64, False),
        (T, True),
    ):  # a copy of so little would cost more than it gains
        assert (
            v5e.native(WGRAD, ((rows, 64), (rows, 64 if rows < T else T)), (INT8, INT8)) == native
        )


def loss(params: Any, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.tanh(x @ params["up"]) @ params["down"])


def looped(params: Any, x: jax.Array) -> jax.Array:
    def layer(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
        return x + jnp.tanh(x @ w["up"]) @ w["down"], None

    stacked = jax.tree.map(lambda w: jnp.stack([w, -w]), params)
    return jnp.sum(jax.lax.scan(layer, x, stacked)[0])


def recomputed(params: Any, x: jax.Array) -> jax.Array:
    return jnp.sum(jax.checkpoint(loss)(params, x))


def of_gradients(fun: Any) -> Any:
    """All of a training step inside."""
    return lambda target: srjit(jax.value_and_grad(fun), recipe="int8", target=target)


def gradients_of(fun: Any) -> Any:
    """Differentiated from outside."""

    def make(target: str) -> Any:
        wrapped = srjit(fun, recipe="int8", target=target)
        return lambda *args, sr_key: jax.value_and_grad(lambda *a: wrapped(*a, sr_key=sr_key))(
            *args
        )

    return make


def vmapped(fun: Any) -> Any:
    def make(target: str) -> Any:
        each = gradients_of(fun)(target)

        def run(params: Any, x: jax.Array, *, sr_key: Any) -> Any:
            return jax.vmap(lambda x: each(params, x, sr_key=sr_key))(jnp.stack([x, 2 * x]))

        return run

    return make


@pytest.mark.crossed(1, most=1)
@pytest.mark.parametrize("chip", ["v5e", pytest.param("v6e", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    ("make", "fun"),
    [
        (of_gradients, loss),
        (of_gradients, looped),
        (gradients_of, loss),
        (gradients_of, recomputed),
        (vmapped, loss),
    ],
)
def test_turned_copies_change_no_bit(
    chip: str, make: Any, fun: Any, monkeypatch: pytest.MonkeyPatch
):
    asked: list[bool] = []
    quantize = tpu_kernels.quantize
    monkeypatch.setattr(
        tpu_kernels,
        "quantize",
        lambda *args, **options: asked.append(options["transposed"]) or quantize(*args, **options),
    )
    jax.clear_caches()
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "up": jax.random.normal(keys[0], (D, F), jnp.bfloat16),
        "down": jax.random.normal(keys[1], (F, D), jnp.bfloat16),
    }
    x = jax.random.normal(keys[2], (T, D), jnp.bfloat16)
    got, expected = (make(fun)(t)(params, x, sr_key=7) for t in (chip, "portable"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
    # A v5e turns what wgrad reads: made in another loop, it is turned by itself.
    assert any(asked) == (chip == "v6e" or fun is not looped)
