"""``rejit``: what a lowered program takes, returns and does stays what it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fresh
import srjit
from appending import Appending
from srjit import passes
from steps import KEY, W, X, same, step

QUANTIZE = (
    "srjit-eliminate-dead-code,srjit-annotate-matmuls,srjit-insert-quantize{recipe=RECIPE},"
    "srjit-share-quantized,srjit-legalize{target=cpu}"
)
NOTHING = passes.Pipeline()


def pipeline(recipe: str = "int8") -> str:
    return QUANTIZE.replace("RECIPE", recipe)


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("recipe", ["int8", "fp8", "nvfp4"])
def test_the_result_is_the_decorators_bit_for_bit(recipe: str):
    again = srjit.rejit(jax.jit(step).lower(W, X), pipeline(recipe))
    decorated = srjit.srjit(step, recipe=recipe)
    for key in (KEY, 3, -1, 2**40, np.int64(5)):
        assert same(again(W, X, sr_key=key), decorated(W, X, sr_key=key))
    assert repr(again) == "<srjit.rejit of step: takes sr_key>"


def test_a_pipeline_may_be_text_or_a_value():
    lowered = jax.jit(step).lower(W, X)
    text, value = (srjit.rejit(lowered, p) for p in (pipeline(), passes.parse(pipeline())))
    assert same(text(W, X, sr_key=0), value(W, X, sr_key=0))
    with pytest.raises(TypeError, match="expected a pipeline"):
        srjit.rejit(lowered, None)  # type: ignore[arg-type]


@dataclasses.dataclass
class Batch:
    x: jax.Array
    scale: jax.Array


jax.tree_util.register_dataclass(Batch, data_fields=["x", "scale"], meta_fields=[])


def fancy(
    params: dict[str, jax.Array], batch: Batch, *, power: int, extra: Any = None, unused: Any = None
) -> Any:
    out = (batch.x @ params["w"]) ** power * batch.scale
    return Batch(out, batch.scale), {"b": params["b"], "extra": extra}


def test_pytrees_keywords_and_static_arguments_are_the_originals():
    params = {"w": W, "b": X[0]}
    batch = Batch(X, jnp.float32(2))
    given = {"extra": [X[0], None], "unused": (X, X)}
    lowered = jax.jit(fancy, static_argnames="power").lower(params, batch, power=2, **given)
    again = srjit.rejit(lowered, pipeline("int8-qat"))
    decorated = srjit.srjit(fancy, recipe="int8-qat", static_argnames="power")
    result = again(params, batch, **given)
    assert jax.tree.structure(result) == jax.tree.structure(fancy(params, batch, power=1, **given))
    assert same(result, decorated(params, batch, power=2, **given))
    with pytest.raises(TypeError, match=r"another structure:\n  args\[0\] was .*'w'.*, is .*'v'"):
        again({"v": W, "b": X[0]}, batch, **given)
    with pytest.raises(TypeError, match=r"params\['w'\]' compiled with float32\[16,16\]"):
        again({"w": X, "b": X[0]}, batch, **given)


def test_donated_arguments_are_donated():
    donating = jax.jit(step, donate_argnums=0)
    again = srjit.rejit(donating.lower(W, X), pipeline("int8-qat"))
    w, x = W + 0, X + 0
    again(w, x)
    assert w.is_deleted() and not x.is_deleted()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_shardings_are_the_originals_on_eight_devices(kind: AxisType):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*s)) for s in (("d",), ()))
    x = jnp.concatenate([X] * 2)
    jitted = jax.jit(step, in_shardings=(whole, rows), out_shardings=whole)
    again = srjit.rejit(jitted.lower(W, x), pipeline())
    for given in (x, jax.device_put(x, rows)):
        result = again(W, given, sr_key=3)
        assert result.sharding == whole
        # Sums of int8 codes are integers: exact in any order.
        expected = srjit.srjit(step, recipe="int8", in_shardings=(whole, rows))(W, x, sr_key=3)
        np.testing.assert_array_equal(result, expected)
    replicated = jax.device_put(jax.random.key(3), whole)
    assert same(again(W, x, sr_key=replicated), again(W, x, sr_key=jax.random.key(3)))
    with pytest.raises(ValueError, match="Argument sr_key"):
        again(W, x, sr_key=jax.device_put(jax.random.key(3), jax.devices()[2]))


def test_callbacks_and_effects_happen_and_ordered_ones_in_order(
    capfd: pytest.CaptureFixture[str],
):
    def noisy(w: jax.Array, x: jax.Array) -> jax.Array:
        jax.debug.print("first {}", x.shape[0], ordered=True)
        w = step(w, x)
        w = io_callback(lambda w: np.asarray(w) + 1, w, w, ordered=True)
        jax.debug.print("unordered")
        x = jax.pure_callback(lambda w: np.asarray(w) * 2, w, w)
        jax.debug.print("last {}", w.shape[0], ordered=True)
        return x

    lowered = jax.jit(noisy).lower(W, X)
    again = srjit.rejit(lowered, pipeline())
    result = again(W, X, sr_key=1)
    jax.effects_barrier()
    assert same(result, 2 * (srjit.srjit(step, recipe="int8")(W, X, sr_key=1) + 1))
    printed = capfd.readouterr().out.split("\n")
    assert "unordered" in printed
    assert [line for line in printed if line != "unordered"] == ["first 4", "last 16", ""]


def test_programs_that_mutate_their_arguments_run():
    def mutating(w: jax.Array, x: jax.Array, ref: Any) -> jax.Array:
        ref[...] += 1.0
        return step(w, x)

    ref = jax.new_ref(jnp.zeros(3))
    again = srjit.rejit(jax.jit(mutating).lower(W, X, ref), pipeline())
    assert same(again(W, X, ref, sr_key=1), srjit.srjit(step, recipe="int8")(W, X, sr_key=1))
    np.testing.assert_array_equal(ref[...], np.ones(3))


# --------------------------------------------------------------------------- JAX's own caches


@pytest.mark.parametrize("original_first", [True, False])
def test_the_original_stays_what_it_was(original_first: bool):
    def f(w: jax.Array, x: jax.Array) -> jax.Array:
        return step(w, x) + 1

    expected = step(W, X) + 1
    jitted = jax.jit(f)
    if original_first:
        jitted(W, X)
    lowered = jitted.lower(W, X)
    before = lowered.as_text()
    again = srjit.rejit(lowered, pipeline())
    rewritten = again(W, X, sr_key=0)
    for original in (jitted(W, X), jax.jit(f)(W, X), lowered.compile()(W, X)):
        np.testing.assert_allclose(original, expected, rtol=1e-5, atol=1e-6)
        assert not same(original, rewritten)
    assert lowered.as_text() == jitted.lower(W, X).as_text() == before != again.as_text()
    assert same(again(W, X, sr_key=0), rewritten)


def test_one_lowered_program_may_be_rewritten_in_several_ways():
    lowered = jax.jit(step).lower(W, X)
    results = [srjit.rejit(lowered, pipeline(r))(W, X, sr_key=0) for r in ("int8", "fp8", "int8")]
    assert same(results[0], results[2]) and not same(results[0], results[1])


def test_the_persistent_compilation_cache_keeps_programs_apart(tmp_path: Path):
    """A process that finds the original's executable there does not take it for the rewritten."""
    script = (
        "import jax, srjit, sys; sys.path.insert(0, sys.argv[2])\n"
        "from steps import W, X, step\n"
        "jax.config.update('jax_compilation_cache_dir', sys.argv[1])\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)\n"
        "jitted = jax.jit(step)\n"
        "again = srjit.rejit(jitted.lower(W, X), sys.argv[3])\n"
        "print(jitted(W, X).sum(), again(W, X, sr_key=1).sum())\n"
    )
    given = str(tmp_path), str(Path(__file__).parents[1]), pipeline()
    first, second = (fresh.python(script, *given) for _ in range(2))
    assert first == second and len(set(first.split())) == 2
    assert any("jit_step" in p.name for p in tmp_path.iterdir())


# ----------------------------------------------------------------------------- keys and states


def test_missing_and_needless_keys_and_states_are_errors():
    lowered = jax.jit(step).lower(W, X)
    again = srjit.rejit(lowered, pipeline())
    with pytest.raises(TypeError, match="step rounds stochastically and needs a key"):
        again(W, X)
    with pytest.raises(TypeError, match="expected a typed PRNG key"):
        again(W, X, sr_key=1.5)
    with pytest.raises(TypeError, match="step has no delayed scales and takes no sr_state"):
        again(W, X, sr_key=1, sr_state={})
    inference = srjit.rejit(lowered, pipeline().replace("int8", "int8 mode=inference"))
    inference(W, X)
    with pytest.raises(TypeError, match=r"step draws no noise .* and takes no sr_key"):
        inference(W, X, sr_key=1)


def test_delayed_scales_are_state():
    again = srjit.rejit(jax.jit(step).lower(W, X), passes.Pipeline(Appending()))
    state = {"h1": jnp.zeros(3), "h0": jnp.zeros(3)}
    assert same(again.init_state(), state)
    first, state = again(W, X, sr_key=0, sr_state={"h0": jnp.ones(3), "h1": 5 * jnp.ones(3)})
    assert first.shape == W.shape
    assert same(state, {"h0": 2 * jnp.ones(3), "h1": 10 * jnp.ones(3)})
    nested = jax.jit(lambda w, state: again(w, X, sr_key=0, sr_state=state))
    assert same(nested(W, state), again(W, X, sr_key=0, sr_state=state))
    with pytest.raises(TypeError, match=r"has delayed scales.*\.init_state\(\)"):
        again(W, X, sr_key=0)
    with pytest.raises(ValueError, match="sr_state does not fit step"):
        again(W, X, sr_key=0, sr_state={"other": jnp.zeros(3)})


def test_delayed_scales_are_the_decorators():
    again = srjit.rejit(jax.jit(step).lower(W, X), pipeline("fp8-delayed"))
    decorated = srjit.srjit(step, recipe="fp8-delayed")
    ours, theirs = again.init_state(), decorated.init_state(W, X)
    assert same(ours, theirs) and ours.keys() == theirs.keys()
    for key in range(3):
        out, ours = again(W, X * 2**key, sr_key=key, sr_state=ours)
        expected, theirs = decorated(W, X * 2**key, sr_key=key, sr_state=theirs)
        assert same((out, ours), (expected, theirs))


def test_histories_are_replicated_on_eight_devices():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("d"))
    jitted = jax.jit(lambda w: w + 1, in_shardings=rows, out_shardings=rows)
    again = srjit.rejit(jitted.lower(W), passes.Pipeline(Appending()))
    state = again.init_state()
    for _ in range(2):
        out, state = again(W, sr_key=0, sr_state=state)
        assert out.sharding == rows
        assert state and all(h.sharding.is_fully_replicated for h in state.values())


def test_the_report_is_that_of_explain():
    report = srjit.rejit(jax.jit(step).lower(W, X), pipeline()).report
    assert report is not None
    explained = srjit.srjit(step, recipe="int8").explain(W, X)
    assert [(s.site.role, s.lhs, s.rhs) for s in report.sites] == [
        (s.site.role, s.lhs, s.rhs) for s in explained.sites
    ]
    assert srjit.rejit(jax.jit(step).lower(W, X), NOTHING).report is None


# ---------------------------------------------------------------------- other transformations


@pytest.mark.bits
@pytest.mark.usefixtures("fusion_emitters")
def test_inside_another_jit_it_computes_the_same():
    again = srjit.rejit(jax.jit(step).lower(W, X), pipeline())
    nested = jax.jit(lambda w, x, key: again(w, x, sr_key=key) + 1)
    for key in (3, jax.random.key(1)):
        assert same(nested(W, X, key), again(W, X, sr_key=key) + 1)


def test_what_cannot_be_differentiated_or_batched_says_so():
    again = srjit.rejit(jax.jit(step).lower(W, X), pipeline())
    for derivative in (jax.grad(lambda w: again(w, X, sr_key=0).sum()), jax.jit(
        lambda w: jax.jvp(lambda w: again(w, X, sr_key=0), (w,), (w,))
    )):  # fmt: skip
        with pytest.raises(NotImplementedError, match=r"cannot differentiate step.*layer='jaxpr'"):
            derivative(W)
    with pytest.raises(NotImplementedError, match="cannot batch step"):
        jax.vmap(lambda x: again(W, x, sr_key=0))(X[None])


def test_callbacks_inside_another_jit_are_an_error_that_names_a_way():
    def printing(w: jax.Array) -> jax.Array:
        jax.debug.print("{}", w[0, 0])
        return w @ w

    again = srjit.rejit(jax.jit(printing).lower(W), NOTHING)
    with pytest.raises(NotImplementedError, match=r"printing.*callbacks.*layer='stablehlo'"):
        jax.jit(again)(W)


# ------------------------------------------------------------------------------------- modules


def test_modules_of_every_form_run_and_take_flat_arrays(tmp_path: Path):
    lowered = jax.jit(lambda p, x: (step(p["w"], x), x)).lower({"w": W}, X)
    path = tmp_path / "module.mlir"
    text = lowered.as_text(debug_info=True)  # roles are told from locations
    path.write_text(text)
    module = lowered.compiler_ir()
    forms: list[Any] = [text, text.encode(), path, str(path), module]
    expected = srjit.srjit(step, recipe="int8")(W, X, sr_key=3)
    for form in forms:
        again = srjit.rejit(form, pipeline())
        out = again(W, X, sr_key=3)
        assert isinstance(out, tuple)
        assert same(out, (expected, X))
        assert same(jax.jit(lambda w: again(w, X, sr_key=3))(W), (expected, X))  # noqa: B023
    assert lowered.as_text(debug_info=True) == text


def test_a_rewritten_modules_text_runs_again():
    again = srjit.rejit(jax.jit(step).lower(W, X), passes.Pipeline(Appending()))
    from_text = srjit.rejit(again.as_text(), NOTHING)
    given = {"sr_key": 5, "sr_state": again.init_state()}
    assert same(from_text(W, X, **given), again(W, X, **given))


def test_shardings_and_donation_of_a_module_are_its_attributes():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("d"))
    whole = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(step, in_shardings=(rows, whole), out_shardings=rows, donate_argnums=0)
    again = srjit.rejit(jitted.lower(W, X).as_text(debug_info=True), pipeline())
    w = jax.device_put(W + 0, rows)
    result = again(w, X, sr_key=1)
    assert w.is_deleted()
    assert result.sharding.is_equivalent_to(rows, 2)
    assert same(result, srjit.srjit(step, recipe="int8")(W, X, sr_key=1))


def _printing(w: jax.Array) -> jax.Array:
    jax.debug.print("{}", w)
    return w


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        ("modul @x {}", ValueError, "no MLIR module"),
        (b"garbage", ValueError, "no MLIR module"),
        ("module @x {}", ValueError, "no function @main"),
        ("/not/there.mlir", FileNotFoundError, "not/there"),
        (3, TypeError, "got int"),
        (jax.jit(step), TypeError, "lower it first"),
        (jax.jit(step).trace(W, X), TypeError, "lower it first"),
        (srjit.srjit(step).trace(W, X), TypeError, "lower it first"),
        (
            "module @m { func.func @main(%a: tensor<?xf32>) -> tensor<?xf32> "
            "{ return %a : tensor<?xf32> } }",
            ValueError,
            "argument 0 of m is a tensor<\\?xf32>.*static shape",
        ),
        (jax.jit(_printing).lower(W).as_text(), ValueError, "Python functions of the process"),
    ],
)
def test_what_cannot_run_says_why(program: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        srjit.rejit(program, NOTHING)


def test_a_pass_that_changes_the_signature_is_an_error():
    class Careless:
        def run(self, module: Any) -> None:
            body = module.body.operations[0].regions[0].blocks[0]
            text = module.body.operations[0].attributes["function_type"]
            kind = text.value.inputs[0]
            from jax.extend.mlir import ir  # type: ignore[attr-defined]

            body.add_argument(kind, ir.Location.unknown())
            inputs = [*text.value.inputs, kind]
            changed = ir.FunctionType.get(inputs, text.value.results)
            module.body.operations[0].attributes["function_type"] = ir.TypeAttr.get(changed)

    lowered = jax.jit(lambda w: w + 1).lower(W)
    with pytest.raises(ValueError, match="may append one argument"):
        srjit.rejit(lowered, Careless())


# ------------------------------------------------------------------------- srjit's own programs


def test_srjits_own_lowered_programs_keep_their_keys():
    for options in ({"sr_key": KEY}, {"sr_key": 3}, {}):
        decorated = srjit.srjit(step, recipe="int8")
        again = srjit.rejit(decorated.lower(W, X, **options), NOTHING)
        key = options.get("sr_key", KEY)
        assert same(again(W, X, sr_key=key), decorated(W, X, sr_key=key))
        with pytest.raises(TypeError, match="call it with sr_key="):
            again(W, X)
    counting = srjit.srjit(step, recipe="int8", key=KEY)
    expected = [counting(W, X) for _ in range(2)]
    counting.calls = 0
    again = srjit.rejit(counting.lower(W, X), NOTHING)
    assert same([again(W, X) for _ in range(2)], expected)
