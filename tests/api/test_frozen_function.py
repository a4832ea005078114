"""A frozen function is called, differentiated, compiled and reported as others are."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import srjit

from .test_freeze import (
    KEY,
    LAYERS,
    MLP,
    D,
    X,
    assert_same_bits,
    frozen,
    inference,
    mlp,
    normal,
    scanned,
)

# ---------------------------------------------------------------------------- the frozen function


def test_other_shapes_static_arguments_keywords_and_another_position():
    def fun(x: jax.Array, params: Any, act: str, *, scale: jax.Array) -> jax.Array:
        return getattr(jax.nn, act)(mlp(params, x)) * scale

    options = {"params_argnums": 1, "static_argnums": 2}
    decorated = srjit.srjit(fun, recipe="int8", **options)
    packed, run = srjit.freeze(decorated, X, MLP, "relu", scale=jnp.float32(2))
    for x, act in ((X, "relu"), (normal(9, 7, D), "gelu")):
        scale = jnp.float32(3)
        want = srjit.srjit(fun, recipe="int8", mode="inference", **options)
        assert_same_bits(run(x, packed, act, scale=scale), want(x, MLP, act, scale=scale))


def test_another_process_needs_no_weights_in_floats(tmp_path: Any):
    """Shapes are enough for the function, and the function runs on what files hold."""
    from safetensors import numpy as files

    decorated = srjit.srjit(scanned, recipe="nvfp4")
    packed, run = srjit.freeze(decorated, LAYERS, X)
    structs, other = srjit.freeze(decorated, jax.eval_shape(lambda: LAYERS), X)
    assert {n: (s.shape, s.dtype) for n, s in structs.items()} == {
        n: (x.shape, x.dtype) for n, x in packed.items()
    }
    path = str(tmp_path / "model.safetensors")
    files.save_file(jax.tree.map(np.asarray, packed), path)
    assert_same_bits(other(files.load_file(path), X), run(packed, X))


def test_it_can_be_jitted_vmapped_and_differentiated_by_what_it_still_takes():
    packed, run = srjit.freeze(srjit.srjit(mlp, recipe="int8"), MLP, X)
    assert_same_bits(jax.jit(run)(packed, X), run(packed, X))
    batched = jax.vmap(lambda x: run(packed, x))(jnp.stack([X, X]))
    # Not to the bit: XLA fuses the floats between the products in another way under vmap.
    np.testing.assert_allclose(batched[1], run(packed, X), rtol=1e-5, atol=1e-5)
    ours = jax.grad(lambda x: jnp.sum(run(packed, x)))(X)
    exact = jax.grad(lambda x: jnp.sum(inference(mlp, "int8", MLP, x)))(X)
    assert 0 < jnp.linalg.norm(ours - exact) < 0.05 * jnp.linalg.norm(exact)


@pytest.mark.parametrize("rotated", [False, True])
def test_derivatives_take_the_values_of_the_codes_for_the_weights(rotated: bool):
    spec = srjit.Quantization(format="nvfp4", hadamard=rotated)
    rule = srjit.Rule(fprop=srjit.Operands(activation=spec, weight=spec))
    recipe = srjit.Recipe(name="plain", rules=(rule,))
    w = normal(0, 40, 24)
    packed, run = srjit.freeze(srjit.srjit(lambda p, x: x @ p, recipe=recipe), w, normal(1, 4, 40))
    jacobian = jax.jacobian(lambda x: run(packed, x[None])[0])(normal(2, 40))
    off = float(jnp.linalg.norm(jacobian.T - w) / jnp.linalg.norm(w))
    assert 0.02 < off < 0.15


def test_the_program_makes_no_codes_of_weights_and_takes_no_floats_for_them():
    packed, run = srjit.freeze(srjit.srjit(mlp, recipe="nvfp4", mode="inference"), MLP, X)
    text = run.lower(packed, X).as_text()
    assert "tensor<32x96xf32>" not in text.split("func.func public @main")[1].split("{\n")[0]
    assert "ui8" in text
    compiled = run.lower(packed, X).compile().as_text()
    assert "rng" not in compiled.replace("srjit", "") and "threefry" not in compiled


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("target", ["b200", "v5e", "portable"])
def test_every_target_takes_packed_weights(target: str):
    """Blackwell multiplies codes with their block scales beside them, where others merge them."""
    params = {"up": normal(0, 256, 128), "bias": normal(1, 128), "down": normal(2, 128, 256)}
    packed = frozen(mlp, "nvfp4", params, normal(3, 128, 256), target=target)
    assert "up.codes" in packed and "down.codes" in packed


def test_a_frozen_program_generates_nothing():
    packed, run = srjit.freeze(srjit.srjit(mlp, recipe="nvfp4"), MLP, X)
    checked = srjit.rejit(run.lower(packed, X), "srjit-verify-deterministic")
    assert_same_bits(checked(packed, X), run(packed, X))


def test_printing_does_not_stand_in_the_way(capfd: Any):
    def fun(p: Any, x: jax.Array) -> jax.Array:
        jax.debug.print("seen {}", x.shape[0])
        return x @ p

    packed, run = srjit.freeze(srjit.srjit(fun, recipe="int8"), normal(0, D, D), X)
    jax.effects_barrier()
    assert "seen" not in capfd.readouterr().out
    jax.block_until_ready(run(packed, X))
    jax.effects_barrier()
    assert capfd.readouterr().out == "seen 4\n"


def test_parameters_of_several_devices_stay_on_them():
    mesh = Mesh(np.array(jax.devices()[:4]), "model")
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    w, x = jax.device_put(normal(0, D, 128), sharding), normal(1, 4, D)
    decorated = srjit.srjit(lambda w, x: x @ w, recipe="nvfp4")
    packed, run = srjit.freeze(decorated, w, x)
    assert len(packed["params.codes"].sharding.device_set) == 4
    assert_same_bits(run(packed, x), inference(lambda w, x: x @ w, "nvfp4", w, x))


def test_modules_of_flax_and_equinox_are_parameters():
    network = nnx.Sequential(
        nnx.Linear(D, 48, rngs=nnx.Rngs(0)), nnx.Linear(48, 8, rngs=nnx.Rngs(1))
    )
    packed = frozen(lambda network, x: network(x), "int8", network, X)
    assert {str(x.dtype) for n, x in packed.items() if n.endswith(".codes")} == {"int8"}
    assert len(packed) == 7
    linear = eqx.nn.Linear(D, 16, key=KEY)
    packed = frozen(lambda linear, x: jax.vmap(linear)(x), "nvfp4", linear, X)
    assert sorted(n for n in packed if "[" not in n) == [
        "bias",
        "weight.codes",
        "weight.scale",
        "weight.tensor_scale",
    ]
