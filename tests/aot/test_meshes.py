"""Programs over meshes of devices that are not there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from srjit import srjit, targets
from srjit.aot.compilers import devices_of

from .test_reports import COMPILED, Shape, W, X, loss, needs_cuda, needs_libtpu, step, verdicts

AUTO = AbstractMesh((4,), ("data",))
EXPLICIT = AbstractMesh((4,), ("data",), axis_types=(AxisType.Explicit,))
ATTACHED = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
X_SHARDED = {
    name: Shape(X.shape, X.dtype, sharding=NamedSharding(mesh, P("data")))
    for name, mesh in {"abstract": AUTO, "attached": ATTACHED, "explicit": EXPLICIT}.items()
}


def shardings(mesh: Any) -> dict[str, Any]:
    if mesh is None:
        return {"in_shardings": (P(), P("data"))}
    return {"in_shardings": tuple(NamedSharding(mesh, p) for p in (P(), P("data")))}


@pytest.mark.crossed(1, most=3)
@needs_libtpu
@pytest.mark.parametrize(
    ("options", "x", "mesh"),
    [
        ({}, X_SHARDED["abstract"], None),
        ({}, X_SHARDED["attached"], None),
        ({}, X_SHARDED["explicit"], None),
        (shardings(AUTO), X, None),
        (shardings(ATTACHED), X, None),
        (shardings(None), X, {"data": 4}),
        (shardings(None), X, AUTO),
        ({**shardings(AUTO), "out_shardings": NamedSharding(AUTO, P())}, X, None),
        (shardings(ATTACHED), X, {"data": 8}),
    ],
)
def test_a_step_is_sharded_as_its_user_said(options: dict[str, Any], x: Any, mesh: Any):
    report = srjit(loss, recipe="int8", **options).aot(W, x, target="v5e", mesh=mesh)
    assert report.devices == (8 if mesh == {"data": 8} else 4)
    (product,) = report.sites[0].cost.products
    assert product.lhs.dims == (512 // report.devices, 256)
    assert set(report.before.collectives) == set(report.after.collectives) == {"all-reduce"}


def test_a_static_argument_has_no_sharding():
    def scaled(n: int, w: jax.Array, x: jax.Array) -> jax.Array:
        return loss(w, x) * n

    fun = srjit(scaled, recipe="int8", static_argnums=0, **shardings(AUTO))
    (product,) = fun.aot(2, W, X, target="cpu").sites[0].cost.products
    assert product.lhs.dims == (128, 256)


@needs_libtpu
@pytest.mark.parametrize("mesh", [AUTO, None])
def test_a_shard_map_is_over_the_mesh_that_is_compiled_for(mesh: Any):
    rows = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    report = srjit(rows, recipe="int8").aot(X, W, target="v5e", mesh={"data": 4})
    (product,) = report.sites[0].cost.products
    assert product.lhs.dims == (128, 256) and verdicts(report) == ["native"]


@needs_libtpu
def test_the_mesh_in_use_is_the_mesh():
    with jax.set_mesh(ATTACHED):
        report = srjit(step, recipe="int8", **shardings(None)).aot(W, X, target="v5e")
    assert report.devices == 4 and "unseen" not in verdicts(report)


def _chips_and_meshes() -> list[Any]:
    """Two axes for each, since one axis is a part of that; both for one of each vendor.

    b200 is in the next test, which measures more.
    """
    return [
        pytest.param(chip, mesh, id=f"{mesh}-{chip}", marks=param.marks)
        for param in COMPILED
        for chip in param.values
        for mesh in ({"data": 4}, {"data": 4, "model": 2})
        if chip != "b200" and (len(mesh) == 2 or chip in ("v5e", "h200"))
    ]


@pytest.mark.crossed(1, most=2)
@pytest.mark.slow
@pytest.mark.parametrize(("chip", "mesh"), _chips_and_meshes())
def test_quantizing_gathers_nothing_that_the_program_did_not(chip: str, mesh: dict[str, int]):
    weight = P(None, "model" if "model" in mesh else None)
    fun = srjit(step, in_shardings=(weight, P("data")))
    report = fun.aot(W, X, target=chip, mesh=mesh)
    assert report.devices == len(jax.devices()[: 4 if len(mesh) == 1 and mesh["data"] == 4 else 8])
    before, after = (p.collectives.get("all-gather") for p in (report.before, report.after))
    assert after is None or (before is not None and after.count <= before.count)
    assert report.after.collectives["all-reduce"].count > 0


@pytest.mark.crossed(1, most=1)
@needs_cuda
@pytest.mark.parametrize(
    ("specs", "recipe"),
    [
        ((P(), P("data")), "nvfp4"),
        ((P("data"), P("data")), "nvfp4"),
        ((P("model"), P("data", "model")), "nvfp4"),
        pytest.param((P("model"), P("data", "model")), "mxfp8", marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_block_scaled_products_stay_the_librarys_on_meshes(recipe: str, specs: Any):
    fun = srjit(step, recipe=recipe, in_shardings=specs)
    report = fun.aot(W, X, target="b200", mesh={"data": 4, "model": 2})
    assert verdicts(report) == ["native"] * 2
    before, after = (p.collectives.get("all-gather") for p in (report.before, report.after))
    assert (before is None) is (after is None)
    if before:  # weights are gathered as codes
        assert after.count <= before.count and after.size < 0.6 * before.size
    assert 0 < _added(report.after) <= _added(report.before) + 64  # scales, too


@needs_cuda
def test_codes_are_gathered_where_a_result_is_wanted_by_columns():
    """Not its float32 numbers sent to where they are wanted: rows and columns are of one axis."""

    def columns(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x @ w, P(None, "model"))

    shardings = P(None, "model"), P("model")
    fun = srjit(columns, recipe="nvfp4", mode="inference", in_shardings=shardings)
    report = fun.aot(W, X, target="b200", mesh={"model": 4})
    assert verdicts(report) == ["native"]
    assert "all-to-all" not in report.after.collectives
    assert report.after.collectives["all-gather"].size < 0.6 * 2 * X.size


def _added(program: Any) -> int:
    """The bytes that devices have of what they have added."""
    kinds = ("all-reduce", "reduce-scatter")
    return sum(program.collectives[kind].size for kind in kinds if kind in program.collectives)


@pytest.mark.crossed(1, most=1)
@needs_libtpu
@pytest.mark.parametrize(("chip", "recipe"), [("v5e", "int8"), ("tpu7x", "fp8")])
def test_parts_of_products_take_the_bytes_of_the_programs_own(chip: str, recipe: str):
    fun = srjit(step, recipe=recipe, in_shardings=(P(), P("data")))
    report = fun.aot(W, X, target=chip, mesh={"data": 4})
    assert _added(report.before) <= _added(report.after) <= _added(report.before) + 64
    assert set(verdicts(report)) <= {"native", "narrow"}


@needs_libtpu
def test_nothing_waits_for_other_devices_where_codes_have_a_nan():
    fun = srjit(step, recipe="fp8-static", in_shardings=(P(), P("data")))
    report = fun.aot(W, X, target="tpu7x", mesh={"data": 4})
    assert report.after.kernels
    assert report.after.collectives["all-reduce"].small == 0


@pytest.mark.crossed(1, most=1)
@needs_cuda
@pytest.mark.parametrize(("gpu", "recipe"), [("b200", "nvfp4"), ("h200", "fp8")])
def test_shards_that_run_by_themselves_are_native_too(gpu: str, recipe: str):
    def inside(w: jax.Array, x: jax.Array) -> jax.Array:
        total = lambda w, x: jax.lax.psum(loss(w, x), "data")  # noqa: E731
        return jax.shard_map(total, in_specs=(P(), P("data")), out_specs=P())(w, x)

    report = srjit(jax.grad(inside), recipe=recipe).aot(W, X, target=gpu, mesh={"data": 4})
    assert verdicts(report) == ["native"] * 2 and "all-gather" not in report.after.collectives


@needs_libtpu
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e", "tpu7x"])
def test_slices_have_the_devices_that_they_are_for(chip: str):
    _, *counts = targets.get(chip).compiler.topologies
    assert counts == [4, 8, 16, 32, 64, 128, 256]
    assert [len(devices_of(targets.get(chip), count)) for count in counts] == counts


@needs_libtpu
def test_a_step_on_256_chips_sends_what_a_ring_does():
    axes = {"data": 64, "model": 4}
    fun = srjit(step, recipe="int8", in_shardings=(P(None, "model"), P("data")))
    report = fun.aot(W, X, target="v5e", mesh=axes)
    assert report.devices == 256 and set(verdicts(report)) <= {"native", "narrow"}
    # The weight's gradient, of which each has a fourth, over 64; the rest are scalars.
    ring = 2 * (2 * 256 * 64) * 63 // 64
    assert 0 <= report.before.sent - ring < 64


@needs_libtpu
def test_kernels_are_used_on_shards_of_users_and_of_compilers():
    def inside(w: jax.Array, x: jax.Array) -> jax.Array:
        total = lambda w, x: jax.lax.psum(loss(w, x), "data")  # noqa: E731
        return jax.shard_map(total, in_specs=(P(), P("data")), out_specs=P())(w, x)

    mesh = {"data": 4}
    assert srjit(inside, recipe="int8").aot(W, X, target="v5e", mesh=mesh).after.kernels
    on_shards = srjit(loss, recipe="int8", in_shardings=(P(), P("data")))
    assert on_shards.aot(W, X, target="v5e", mesh=mesh).after.kernels
    assert srjit(loss, recipe="int8").aot(W, X, target="v5e").after.kernels


@needs_libtpu
def test_collectives_inside_of_the_function_are_counted():
    def inside(w: jax.Array, x: jax.Array) -> jax.Array:
        y = jax.lax.with_sharding_constraint(x @ w, P("data"))
        total = lambda y: jax.lax.psum(y.sum(0), "data")  # noqa: E731
        return jax.shard_map(total, in_specs=P("data"), out_specs=P())(y)

    report = srjit(inside, recipe="int8").aot(W, X, target="v5e", mesh={"data": 4})
    assert verdicts(report) == ["native"]
    assert report.before.collectives["all-reduce"].count == 1


@needs_libtpu
def test_shardings_of_other_devices_inside_are_explained():
    def inside(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x @ w, NamedSharding(ATTACHED, P("data")))

    with pytest.raises(ValueError, match="incompatible devices") as caught:
        srjit(inside, recipe="int8").aot(W, X, target="v5e", mesh={"data": 4})
    assert "PartitionSpecs or of an AbstractMesh" in caught.value.__notes__[-1]


# ---------------------------------------------------------------------------- what is refused
