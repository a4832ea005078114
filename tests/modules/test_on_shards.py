"""Kernels of TPUs run on shards, wherever these are known, and give the bits of the whole."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import srjit
from small_programs import normal
from srjit.numerics.elements import ELEMENTS
from srjit.targets import kernel_call
from srjit.targets.target import Compiler
from srjit.targets.tpu import kernels, on_shards, products, target_of
from srjit.targets.tpu.chips import CHIPS
from targets import instructions

MESH = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
SIZES = {"data": 4, "model": 2}
KEY = (jnp.uint32(0xDEADBEEF), jnp.uint32(12345))
W, X = normal(128, 128, seed=1), normal(256, 128)  # bfloat16 XLA may leave unrounded between
SHARDINGS = {
    name: specs if name == "both" else pytest.param(specs, marks=pytest.mark.nightly)
    for name, specs in {
        "data": (P(), P("data")),
        "fsdp": (P("data"), P("data")),
        "tensor": (P(None, "model"), P()),
        "sequence": (P(None, "model"), P("model")),
        "both": (P("data", "model"), P("data")),
    }.items()
}


def step(w: jax.Array, x: jax.Array) -> jax.Array:
    def loss(w: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    return w - 0.1 * jax.grad(loss)(w)


def placed(specs: Any, *args: jax.Array, mesh: Any = MESH) -> list[jax.Array]:
    return [jax.device_put(x, NamedSharding(mesh, p)) for x, p in zip(args, specs, strict=True)]


def assert_same(got: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(
            np.asarray(a).view(f"u{a.dtype.itemsize}"), np.asarray(b).view(f"u{b.dtype.itemsize}")
        )


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A v5e of its own that a CPU is, which interprets kernels."""
    for module in (kernels, products):
        call = functools.partial(_on_a_cpu, kernel_call.kernel_call)
        monkeypatch.setattr(module, "kernel_call", call)
    with instructions.interpreted():
        target = target_of(dataclasses.replace(CHIPS["v5e"], name="v5e-interpreted"))
        yield dataclasses.replace(target, compiler=Compiler(platform="cpu"))


def _on_a_cpu(call: Any, *args: Any, platform: str, **options: Any) -> Any:
    return call(*args, platform="cpu", **options)


# ---------------------------------------------------------------------------------- the kernels


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((64, 256), (("data",), ())),
        ((64, 250), ((), ("model",))),
        ((64, 256), (("model", "data"), ())),
        ((64, 256), ((), ("data", "model"))),
        ((64, 256), (("data",), ("model",))),
        ((4, 64, 256), (("data",), (), ("model",))),
        ((4, 64, 256), (("data",), ("model",), ())),
        ((64, 256), ((), ())),
    ],
)
@pytest.mark.parametrize("name", ["int8", pytest.param("float8_e4m3fn", marks=pytest.mark.nightly)])
def test_shards_have_the_bits_of_the_whole(name: str, shape: Any, axes: Any):
    element, encode = ELEMENTS[name], jnp.float32(30)
    x = normal(*shape, dtype=jnp.bfloat16)
    if not element.is_integer:
        x = x.at[(-1,) * x.ndim].set(jnp.nan)
    rule = on_shards.Quantize(element, transposed=True, with_amax=True, converts=False)
    run, first, outs = rule([shape], [axes], SIZES)  # type: ignore[misc]
    specs = (*first, P(), P(), P())
    quantize = jax.shard_map(run, mesh=MESH, in_specs=specs, out_specs=outs, check_vma=False)
    with instructions.interpreted():
        got = jax.jit(quantize)(x, encode, *KEY)
    options = {"element": element, "transposed": True, "with_amax": True}
    whole = jax.jit(functools.partial(kernels.quantize_plainly, **options))(x, encode, *KEY)
    assert_same(got, whole)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 64, 256), ((), ("data",), ())),  # rows of a shard are not equally far apart
        ((4, 64, 256), ((), ("data",), ("model",))),
        ((2**21, 2048), (("data",), ())),  # more than 32 bits index
    ],
)
def test_where_rows_are_not_in_line_formulas_remain(shape: Any, axes: Any):
    rule = on_shards.Quantize(ELEMENTS["int8"], False, False, False)
    assert rule([shape], [axes], SIZES) is None


@pytest.mark.parametrize("where", [0, 40, 63])
def test_the_amax_of_shards_is_that_of_the_whole(where: int):
    x = normal(64, 256).at[where, 7].set(-jnp.nan)
    placed = on_shards.Amax()([x.shape], [(("data",), ("model",))], SIZES)
    run, specs, outs = placed  # type: ignore[misc]
    amax = jax.shard_map(run, mesh=MESH, in_specs=(*specs,), out_specs=outs, check_vma=False)
    with instructions.interpreted():
        assert np.isnan(jax.jit(amax)(x))
        assert jax.jit(amax)(normal(64, 256)) == jnp.max(jnp.abs(normal(64, 256)))


# --------------------------------------------------------------------------------- whole programs


def manual(lowered: Any) -> list[str]:
    """How the arguments of a program's manual computations are sharded."""
    return re.findall(r"in_shardings=\[<@[\w.]+, (\[.*?\])>", lowered.as_text())


RECIPE = dataclasses.replace(srjit.recipes.get("int8"), reduce="exact")
LAYERS = ("jaxpr", "stablehlo")


@pytest.mark.bits
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("specs", SHARDINGS.values(), ids=SHARDINGS)
def test_a_program_has_the_bits_of_one_device(specs: Any, layer: Any, chip: Any):
    """Integers are added exactly, so that nothing depends on the mesh."""
    args, alone = placed(specs, W, X), srjit.srjit(step, recipe=RECIPE)
    fun = srjit.srjit(step, recipe=RECIPE, target=chip, layer=layer)
    lowered = fun.lower(*args, sr_key=0)
    assert manual(lowered) and "srjit_kernel" not in lowered.as_text()
    assert_same(fun(*args, sr_key=0), alone(W, X, sr_key=0))


def looped(ws: jax.Array, x: jax.Array) -> jax.Array:
    """The gradients of a loop whose layers, of one shape, are sharded in two ways."""

    def loss(ws: jax.Array) -> jax.Array:
        @jax.checkpoint
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            up = lax.with_sharding_constraint(w, NamedSharding(MESH, P(None, "model")))
            down = lax.with_sharding_constraint(w.T, NamedSharding(MESH, P("model")))
            return jnp.tanh(jnp.tanh(x @ up) @ down), None

        return jnp.sum(lax.scan(layer, x, ws)[0] ** 2)

    return jax.grad(loss)(ws)


@pytest.mark.bits
@pytest.mark.parametrize("layer", ["jaxpr", pytest.param("stablehlo", marks=pytest.mark.nightly)])
def test_so_it_is_in_loops(layer: Any, chip: Any):
    ws = jnp.stack([W, W + 1])
    alone = srjit.srjit(looped, recipe=RECIPE)(ws, X, sr_key=0)
    fun = srjit.srjit(looped, recipe=RECIPE, target=chip, layer=layer)
    args = placed((P(), P("data")), ws, X)
    found = set(manual(fun.lower(*args, sr_key=0)))
    assert {'[{}, {"model"}]', '[{"model"}, {}]', '[{"data"}, {}]'} <= found
    assert_same(fun(*args, sr_key=0), alone)


def test_types_tell_of_explicit_axes(chip: Any):
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Explicit,) * 2)
    fun = srjit.srjit(lambda w, x: x @ w, recipe=RECIPE, target=chip)
    with jax.set_mesh(mesh):
        args = placed((P(None, "model"), P("data")), W, X, mesh=mesh)
        assert '[{}, {"model"}]' in manual(fun.lower(*args))
        got = fun(*args)
    assert_same(got, srjit.srjit(lambda w, x: x @ w, recipe=RECIPE)(W, X))


def test_shards_of_the_users_own_are_multiplied_as_on_one_device(chip: Any):
    fun = srjit.srjit(lambda w, x: x @ w, recipe=RECIPE, target=chip, mode="inference")
    specs = {"in_specs": (P(), P("data")), "out_specs": P("data"), "check_vma": False}
    everywhere = jax.jit(jax.shard_map(fun, mesh=MESH, **specs))
    partly = jax.jit(jax.shard_map(fun, mesh=MESH, axis_names={"data"}, **specs))
    assert_same(partly(W, X), everywhere(W, X))


def test_what_is_not_evenly_cut_stays_a_formula(chip: Any):
    def product(w: jax.Array, x: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(x, NamedSharding(MESH, P("data"))) @ w

    fun = srjit.srjit(product, recipe=RECIPE, target=chip)
    args = placed((P(None, "model"), P()), W, X[:250])
    assert set(manual(fun.lower(*args))) == {'[{}, {"model"}]'}
    assert_same(fun(*args), srjit.srjit(product, recipe=RECIPE)(W, X[:250]))


@pytest.mark.bits
def test_parts_of_a_program_are_settled_one_after_the_other(chip: Any):
    """JAX still lowers, and names functions, after the first."""

    def whole(target: Any) -> Any:
        part = srjit.transform(lambda w, x: x @ w, recipe=RECIPE, target=target)
        return jax.jit(lambda w, x: part(w, jnp.tanh(part(w, x, sr_key=0)), sr_key=1))

    args = placed((P(None, "model"), P("data")), W, X)
    assert manual(whole(chip).lower(*args)).count('[{}, {"model"}]') == 4  # amax and codes, twice
    assert_same(whole(chip)(*args), whole("cpu")(W, X))
