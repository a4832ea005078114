"""Programs that ``rejit`` is given from elsewhere: artifacts, exports, entries, meshes inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fresh
import srjit
from srjit import passes
from srjit.tools import opt
from steps import same

INT8 = "srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8},srjit-legalize{target=cpu}"
W = jax.random.normal(jax.random.key(0), (16, 16))
X = jax.random.normal(jax.random.key(1), (8, 16))


def train(params: dict[str, jax.Array], x: jax.Array, unused: Any) -> dict[str, jax.Array]:
    def loss(p: dict[str, jax.Array]) -> jax.Array:
        return (jnp.tanh(x @ p["w"]) + p["b"]).sum()

    return jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params))


PARAMS = {"b": X[0], "w": W}


# ---------------------------------------------------------------------------------- artifacts


@pytest.fixture(scope="module", name="expected")
def _expected() -> Any:
    return srjit.rejit(jax.jit(train).lower(PARAMS, X, 1.0), INT8)(PARAMS, X, 1.0, sr_key=3)


@pytest.mark.parametrize("platforms", [None, ("tpu", "cpu", "cuda")])
def test_exported_programs_are_called_as_their_function(
    platforms: Any, expected: Any, tmp_path: Path
):
    exported = export.export(jax.jit(train), platforms=platforms)(PARAMS, X, 1.0)
    blob = exported.serialize()
    path = tmp_path / "program.bin"
    path.write_bytes(blob)
    first, *others = [srjit.rejit(form, INT8) for form in (exported, blob, bytes(blob), path)]
    assert same(first(PARAMS, X, 1.0, sr_key=3), expected)
    for again in others:
        assert again.as_text() == first.as_text()
        assert jax.tree.structure(again.lowered.args_info) == jax.tree.structure(
            first.lowered.args_info
        )
    with pytest.raises(TypeError, match="another structure"):
        first(PARAMS, X, sr_key=3)


def test_artifacts_take_flat_arrays_and_need_no_name_of_a_kind(expected: Any, tmp_path: Path):
    artifact = export.export(jax.jit(train))(PARAMS, X, 1.0).mlir_module_serialized
    for name in ("a.mlirbc", "a.mlir", "forward.bytecode", "a"):
        (tmp_path / name).write_bytes(artifact)
    forms = [artifact, *tmp_path.iterdir(), *map(str, tmp_path.iterdir())]
    texts = {srjit.rejit(form, "canonicalize").as_text() for form in forms}
    assert len(texts) == 1
    out = srjit.rejit(artifact, INT8)(PARAMS["b"], W, X, sr_key=3)
    assert same(out, tuple(jax.tree.leaves(expected)))


def test_modules_in_vhlo_are_read():
    module = passes.Pipeline("stablehlo-legalize-to-vhlo").run(
        jax.jit(jnp.dot).lower(X, W).as_text()
    )
    expected = srjit.rejit(jax.jit(jnp.dot).lower(X, W), INT8)(X, W)
    code = passes.Pipeline().run(str(module)).operation
    for form in (str(module), module, str(code).encode()):
        assert same(srjit.rejit(form, INT8)(X, W), expected)
    with pytest.raises(passes.PipelineError, match="run vhlo-legalize-to-stablehlo before"):
        passes.Pipeline(INT8).run(str(module))


def test_sharded_exports_stay_sharded():
    mesh = jax.make_mesh((4, 2), ("d", "t"), axis_types=(AxisType.Auto,) * 2)
    columns = {"b": NamedSharding(mesh, PartitionSpec("t")),
               "w": NamedSharding(mesh, PartitionSpec(None, "t"))}  # fmt: skip
    rows = NamedSharding(mesh, PartitionSpec("d"))
    jitted = jax.jit(train, in_shardings=(columns, rows, None), out_shardings=columns)
    params, x = jax.device_put(PARAMS, columns), jax.device_put(X, rows)
    exported = export.export(jitted)(params, x, 1.0)
    out = srjit.rejit(exported, INT8)(params, x, 1.0, sr_key=3)
    assert out["w"].sharding.is_equivalent_to(columns["w"], 2)
    assert same(out, srjit.rejit(jitted.lower(params, x, 1.0), INT8)(params, x, 1.0, sr_key=3))
    flat = srjit.rejit(exported.mlir_module_serialized, INT8)(params["b"], params["w"], x, sr_key=3)
    assert same(flat, tuple(jax.tree.leaves(out)))


def test_what_cannot_be_read_or_run_says_so():
    only_tpu = export.export(jax.jit(jnp.dot), platforms=["tpu"])(X, W)
    with pytest.raises(ValueError, match=r"exported for tpu; this is cpu: .*platforms=\['cpu'\]"):
        srjit.rejit(only_tpu, INT8)(X, W)
    with pytest.raises(ValueError, match="no MLIR module"):
        srjit.rejit(b"\x10\0\0\0garbage" * 9, INT8)
    text = (
        jax.jit(jnp.dot).lower(X, W).as_text().replace("num_partitions = 1", "num_partitions = 99")
    )
    with pytest.raises(ValueError, match="for 99 devices"):
        srjit.rejit(text, INT8)(X, W)


def test_srjit_opt_reads_what_jax_export_serialized(tmp_path: Path):
    exported = export.export(jax.jit(train), platforms=("cpu", "tpu"))(PARAMS, X, 1.0)
    results = set[str]()
    for name, content in (("a", exported.serialize()), ("b", exported.mlir_module_serialized)):
        (tmp_path / name).write_bytes(content)
        out = tmp_path / "out.mlir"
        assert opt.main([str(tmp_path / name), "-p", INT8, "-o", str(out)]) == 0
        results.add(out.read_text())
    (text,) = results
    assert "srjit.key" in text
    assert 'lhs_kind = "activation"' in text and 'rhs_kind = "weight"' in text


# ------------------------------------------------------------------------------------ entries

BODY = """(%x: tensor<4x8xf32>, %w: tensor<8x8xf32>) -> tensor<4x8xf32> {
  %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
    : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
  return %0 : tensor<4x8xf32>
}"""
CALLING = """(%x: tensor<4x8xf32>, %w: tensor<8x8xf32>) -> tensor<4x8xf32> {
  %0 = call @CALLED(%x, %w) : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
  %1 = stablehlo.negate %0 : tensor<4x8xf32>
  return %1 : tensor<4x8xf32>
}"""
SEVERAL = f"""module attributes {{mhlo.num_partitions = 1 : i32}} {{
func.func private @forward{BODY}
func.func @outer{CALLING.replace("CALLED", "forward")}
func.func @main(%x: tensor<f32>) -> tensor<f32> {{ return %x : tensor<f32> }}
module @inner {{
  func.func @f{BODY}
  func.func @main{CALLING.replace("CALLED", "f")}
}}
module @other {{ func.func @g{BODY} }}
module @again {{ func.func @g{BODY} }}
}}"""
ENTRIES = {"forward": 1, "outer": -1, "f": 1, "inner::f": 1, "@inner::@main": -1, "again::g": 1}


@pytest.mark.parametrize("entry", ENTRIES)
def test_any_function_can_be_the_entry(entry: str):
    x, w = X[:4, :8], W[:8, :8]
    again = srjit.rejit(SEVERAL, INT8, entry=entry)
    assert again.report is not None
    assert [s.status for s in again.report.sites] == ["emulated"]
    out = again(x, w)
    assert 0 < float(jnp.abs(out - ENTRIES[entry] * (x @ w)).max()) < 0.2
    module = passes.Pipeline(INT8).run(SEVERAL, entry=entry)
    assert str(module).count("call @srjit.scaled_dot_int8_int8_cpu(") == 1
    assert "srjit.entry" not in str(module)
    assert all(f"@{name}" in str(module) for name in ("forward", "outer", "inner", "other"))


def test_the_flag_of_srjit_opt_is_the_same(tmp_path: Path):
    source, out = tmp_path / "a.mlir", tmp_path / "out.mlir"
    source.write_text(SEVERAL)
    for entry in ("outer", "inner::f"):
        assert opt.main([str(source), "-p", INT8, f"--entry={entry}", "-o", str(out)]) == 0
        assert passes.Pipeline(INT8).run(SEVERAL, entry=entry).operation.verify()
        assert out.read_text().count("call @srjit.scaled_dot_int8_int8_cpu(") == 1


def test_without_an_entry_the_functions_are_listed():
    text = SEVERAL.replace("@main(%x: tensor<f32>)", "@identity(%x: tensor<f32>)")
    listed = "it has @forward, @outer, @identity, @inner::f, @inner::main, @other::g, @again::g"
    for run in (lambda: srjit.rejit(text, INT8), lambda: passes.Pipeline(INT8).run(text)):
        with pytest.raises((ValueError, passes.PipelineError), match=f"@main; {listed}: say with"):
            run()
    with pytest.raises(ValueError, match=f"no function 'nope'; {listed}"):
        srjit.rejit(text, INT8, entry="nope")
    with pytest.raises(ValueError, match="more than one function 'g': other::g, again::g"):
        srjit.rejit(text, INT8, entry="g")
    with pytest.raises(ValueError, match="@declared is only declared"):
        srjit.rejit("func.func private @declared(tensor<f32>)", INT8, entry="declared")


def test_an_entry_draws_noise_and_stays_itself_for_those_that_call_it():
    recipe = (
        "name = 'own'\n[[rule]]\nfprop.activation = {format = 'int8', rounding = 'stochastic'}\n"
    )
    stochastic = INT8.replace("recipe=int8", f'recipe="{recipe}"')
    module = passes.Pipeline(stochastic).run(SEVERAL, entry="forward")
    assert "%arg2: tensor<2xui32> {srjit.key = true}" in str(module)
    assert "call @forward_srjit(" in str(module)  # by @outer, which has no key
    out = srjit.rejit(SEVERAL, stochastic, entry="forward")(X[:4, :8], W[:8, :8], sr_key=1)
    assert out.shape == (4, 8)


def test_programs_of_jax_have_one_entry():
    for program in (jax.jit(jnp.dot).lower(X, W), export.export(jax.jit(jnp.dot))(X, W)):
        with pytest.raises(TypeError, match="entry= is for modules"):
            srjit.rejit(program, INT8, entry="main")


# -------------------------------------------------------------------------------- meshes inside


def _sharded(inner: Any, *specs: Any, out: Any) -> Any:
    mesh = jax.make_mesh((4, 2), ("d", "t"), axis_types=(AxisType.Auto,) * 2)
    return jax.jit(jax.shard_map(inner, mesh=mesh, in_specs=specs, out_specs=out))


P = PartitionSpec
INSIDE = {
    "rows": _sharded(lambda w, x: jnp.tanh(x @ w), P(), P("d"), out=P("d")),
    "contraction": _sharded(lambda w, x: jax.lax.psum(x @ w, "t"), P("t"), P("d", "t"), out=P("d")),
    "mean": _sharded(
        lambda w, x: jax.lax.pmean(jnp.mean(x @ w), ("d", "t")), P(None, "t"), P("d"), out=P()
    ),
}


@pytest.mark.crossed(1, most=3)
@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("recipe", ["int8-qat", "int8"])
def test_programs_whose_mesh_is_only_inside_run(name: str, recipe: str):
    inside = INSIDE[name]

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return w - jax.grad(lambda w: (inside(w, x) ** 2).mean())(w)

    lowered = jax.jit(step).lower(W, X)
    plain = lowered.compile()(W, X)
    assert same(srjit.rejit(lowered, "")(W, X), plain)
    pipeline = INT8.replace("int8", recipe)
    again = srjit.rejit(lowered, pipeline)
    given = {"sr_key": 0} if again.takes_key else {}
    out = again(W, X, **given)
    assert 0 < float(jnp.abs(out - plain).max()) < 0.05
    text = srjit.rejit(lowered.as_text(debug_info=True), pipeline)
    assert same(text(W, X, **given), out)


# -------------------------------------------------------------------- dtypes of operands, result

FLOATS = ("f64", "f32", "bf16", "f16", "f8E4M3FN", "f8E5M2", "f4E2M1FN")
DTYPES = (*FLOATS, "i4", "i8", "ui8", "i32", "i1", "complex<f32>")


PRODUCTS = [
    (lhs, rhs, out)
    for lhs in DTYPES
    for rhs in (DTYPES if lhs in FLOATS[:3] else (lhs,))
    for out in DTYPES
]


def _products() -> str:
    """A module of all of them, of arguments of every dtype."""
    name = {dtype: str(i) for i, dtype in enumerate(DTYPES)}
    weights = [f"%w{name[d]}: tensor<32x16x{d}>" for d in DTYPES]
    inputs = [f"%x{name[d]}: tensor<4x32x{d}>" for d in DTYPES]
    lines = [
        f"%{i} = stablehlo.dot_general %x{name[lhs]}, %w{name[rhs]}, contracting_dims = [1] x [0] "
        f": (tensor<4x32x{lhs}>, tensor<32x16x{rhs}>) -> tensor<4x16x{out}>\n"
        for i, (lhs, rhs, out) in enumerate(PRODUCTS)
    ]
    kinds = ", ".join(f"tensor<4x16x{out}>" for _, _, out in PRODUCTS)
    results = ", ".join(f"%{i}" for i in range(len(PRODUCTS)))
    return f"""func.func @main({", ".join(weights + inputs)}) -> ({kinds}) {{
      {"".join(lines)} return {results} : {kinds}
    }}"""


@pytest.mark.crossed(1, most=1)
@pytest.mark.parametrize("recipe", ["int8", "nvfp4"])
def test_products_of_all_dtypes_are_quantized_with_their_result_or_kept(recipe: str):
    module = passes.parse(INT8.replace("int8", recipe)).run(_products())  # verifies
    assert module.operation.verify()
    sites = _sites(module)
    for product, site in zip(PRODUCTS, sites, strict=True):
        assert site.status in ("emulated", "kept")
        assert site.status == "emulated" or site.reason, product
    assert sum(site.status == "emulated" for site in sites) >= 9
    assert sum(site.status == "kept" for site in sites) >= 9


def _sites(module: Any) -> Any:
    from srjit.passes.report import report_of

    with module.context:
        return report_of(module.operation).sites


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_results_in_float64_are_those_of_the_decorator(dtype: str):
    kind = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}[dtype]
    with jax.enable_x64(True):
        w, x = (jnp.asarray(v, kind) for v in (np.asarray(W), np.asarray(X)))

        def wide(w: jax.Array, x: jax.Array) -> jax.Array:
            return jnp.dot(x, w, preferred_element_type=jnp.float64)

        expected = srjit.srjit(wide, recipe="int8")(w, x)
        assert expected.dtype == jnp.float64
        text = jax.jit(wide).lower(w, x).as_text()
        assert same(srjit.rejit(text, INT8)(w, x), expected)


# ------------------------------------------------------------------------------- accelerators

NO_DEVICES = """
import sys
from jax._src import xla_bridge
assert not xla_bridge._backends  # by importing JAX and srjit
def started(*_, **__):
    raise RuntimeError("a backend was started")
xla_bridge.backends = started
import srjit
from srjit.tools import opt
assert opt.main([sys.argv[1], "-p", sys.argv[2], "-o", sys.argv[1] + ".out"]) == 0
again = srjit.rejit(sys.argv[1], sys.argv[2])
again.as_text(), again.report, repr(again)
try:
    opt.main([sys.argv[1], "--srjit-annotate-matmuls", "--srjit-insert-quantize=recipe=auto"])
    srjit.rejit(sys.argv[1], "srjit-annotate-matmuls,srjit-insert-quantize")
except passes.PipelineError if (passes := srjit.passes) else () as error:
    assert "a backend was started" in str(error), error
else:
    raise AssertionError("auto needs the attached device")
print("none")
"""


def test_files_start_no_accelerator(tmp_path: Path):
    path = tmp_path / "step.mlir"
    path.write_text(jax.jit(train).lower(PARAMS, X, 1.0).as_text(debug_info=True))
    for recipe, target in (("int8", "cpu"), ("nvfp4", "b200")):
        quantize = f"srjit-insert-quantize{{recipe={recipe}}},srjit-legalize{{target={target}}}"
        out = fresh.python(NO_DEVICES, str(path), f"srjit-annotate-matmuls,{quantize}")
        assert out.strip().endswith(b"none")


def test_arguments_go_where_xla_expects_them_but_not_from_where_the_program_says():
    devices = np.array(jax.devices()).reshape(4, 2)
    mesh = jax.sharding.Mesh(devices, ("d", "t"))
    spec = jax.sharding.PartitionSpec
    places = {
        n: jax.sharding.NamedSharding(mesh, spec(*n)) for n in [(), ("d",), ("t",), ("t", "d")]
    }
    x, w = jnp.arange(128.0).reshape(16, 8) / 128, jnp.ones((8, 4))

    def inside(w: jax.Array, x: jax.Array) -> jax.Array:
        rows = lambda w, x: jax.lax.pmean((x @ w).sum(), "d")  # noqa: E731
        specs = {"in_specs": (spec(), spec("d")), "out_specs": spec()}
        return jax.shard_map(rows, mesh=mesh, **specs)(w, x)

    again = srjit.rejit(jax.jit(inside).lower(w, x), "")
    for place in places.values():
        moved = [jax.device_put(a, place) for a in (w, x)]
        np.testing.assert_allclose(again(*moved), inside(w, x), rtol=1e-6)
    rows = places["d",]
    placed = srjit.rejit(jax.jit(inside, in_shardings=(places[()], rows)).lower(w, x), "")
    with pytest.raises(ValueError, match="sharding"):
        placed(w, jax.device_put(x, places["t",]))
    placed(w, jax.device_put(x, rows))
