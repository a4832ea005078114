"""What a watched program streams, that nothing changes by it, and what is said of it."""

import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srjit import Quantization, TensorBoard, recipes, srjit
from srjit.diagnostics.watch import sinks
from srjit.diagnostics.watch.diagnosis import PAYS, diagnosed
from srjit.diagnostics.watch.stream import Record, Watch
from srjit.jaxprs.figures import FIGURES, SAMPLE, Figure, measured
from srjit.numerics.formats import get_format
from srjit.tools import watch as command

LAYERS, WIDTH = 3, 48
W = jax.random.normal(jax.random.key(0), (LAYERS, WIDTH, WIDTH)) / 7
X = jax.random.normal(jax.random.key(1), (64, WIDTH))


def loss(w, x):
    y, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, w)
    return jnp.mean(y**2)


def step(w, x):
    value, grads = jax.value_and_grad(loss)(w, x)
    return w - 0.1 * grads, value


def record(**changed):
    fields = {
        "step": 0, "site": 1, "path": "a/b", "role": "wgrad", "operand": "lhs", "kind": "gradient",
        "where": (2,), "format": "int8", "rounding": "stochastic", **{f.name: 0.0 for f in FIGURES},
        "norm": 1.0, "noise": 0.1, "amax": 3.0,
    }  # fmt: skip
    return Record.from_dict(fields | changed)


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("recipe", ["int8", "nvfp4", "fp8-delayed", "nvfp4-eden"])
def test_watching_changes_no_bit_and_sees_every_gradient_of_every_step(recipe):
    seen = []
    plain, watched = srjit(step, recipe=recipe), srjit(step, recipe=recipe, watch=seen.append)
    state = plain.init_state(W, X)
    given = {"sr_state": state} if state else {}
    for key in range(3):
        outs = [f(W, X, sr_key=key, **given) for f in (plain, watched)]
        for a, b in zip(*map(jax.tree.leaves, outs), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    watched.watch.wait()
    quantized = {(r.site, r.operand) for r in seen}
    steps = {(r.site, r.operand, r.where, r.step) for r in seen}
    assert len(steps) == len(seen) == len(quantized) * LAYERS * 3
    assert {r.kind for r in seen} == {"gradient"}
    assert {r.where for r in seen} == {(i,) for i in range(LAYERS)}
    assert {r.step for r in seen} == {0, 1, 2}


def watched(fun, *args, recipe, **options):
    seen = []
    quantized = srjit(fun, recipe=recipe, watch=Watch(seen.append, **options))
    quantized(*args, sr_key=1)
    quantized.watch.wait()
    return seen


def test_figures_are_those_of_the_operand():
    """Of the squared distance from 0 to g, whose gradient is -g; g is looked at whole."""
    g = np.asarray(jax.random.normal(jax.random.key(3), (SAMPLE // 128, 128)), np.float32)

    def distance(w, x):
        return jnp.sum((x @ w - g) ** 2) / 2

    x = jax.random.normal(jax.random.key(4), (len(g), 16))
    seen = watched(jax.grad(distance), jnp.zeros((16, 128)), x, recipe="int8")
    (found,) = (r for r in seen if r.role == "wgrad")
    amax, unit = np.abs(g).max(), np.abs(g).max() / 127
    assert found.amax == amax and found.saturated == 0
    # Sums of 4096 float32 squares, in XLA's order and in NumPy's.
    np.testing.assert_allclose(found.norm, np.sqrt(np.mean(g**2)), rtol=1e-5)
    assert found.zeros == np.mean(np.abs(g) <= unit / 2)
    # The variance of rounding g is p(1 - p) squared steps; of its mean over n elements, the fourth
    # moment is at most 1, so that it is known to 1/sqrt(n) a standard deviation.
    p = np.abs(g) / unit % 1
    deviation = 5 / math.sqrt(g.size)
    assert abs((found.noise / unit) ** 2 - np.mean(p * (1 - p))) < deviation


def test_operands_of_other_kinds_can_be_watched_too():
    seen = watched(step, W, X, recipe="int8", kinds=("weight", "activation", "gradient"))
    assert {r.kind for r in seen} == {"weight", "activation", "gradient"}


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "fp8_e5m2", "nvfp4"])
def test_the_smallest_of_an_element_is_what_its_dtype_has(name):
    element = get_format(name).element
    if element.is_integer:
        assert element.smallest == 1
    else:
        assert element.smallest == float(jnp.finfo(element.name).smallest_subnormal)


def test_large_operands_are_sampled_by_whole_rows():
    big = jax.random.normal(jax.random.key(0), (4096, 64))
    seen = watched(
        jax.grad(lambda w, x: jnp.sum((x @ w) ** 2)), jnp.ones((64, 64)) / 64, big, recipe="nvfp4"
    )
    for r in seen:
        assert 3 < r.ratio < 20  # of 4-bit floats, at any amplitude
    assert {r.role for r in seen} == {"wgrad"}


def test_a_sample_is_quantized_with_the_scale_of_its_tensor():
    x = jax.random.normal(jax.random.key(0), (4096, 64)).at[1, 0].set(1000.0)
    spec = Quantization(format="int8", rounding="nearest")
    figures = measured(x, spec, None, None, False)
    found = record(**{f.name: float(value) for f, value in zip(FIGURES, figures, strict=True)})
    assert found.amax == 1000 and found.norm < 2  # that row is not in the sample
    # Of steps of 1000 / 127, all is lost.
    assert found.zeros > 0.999 and abs(found.noise / found.norm - 1) < 1e-3


def test_a_run_is_written_line_by_line_and_read_again(tmp_path):
    path = tmp_path / "runs" / "one.jsonl"
    fun = srjit(step, recipe="int8", watch=path)
    fun(W, X, sr_key=0)
    fun.watch.wait()
    lines = path.read_text().splitlines()
    found = list(sinks.read(path))
    assert len(found) == len(lines) > 0 and found[0].path == json.loads(lines[0])["path"]
    with path.open("a") as file:
        file.write('{"step": 0')  # it is being written
    assert list(sinks.read(path)) == found
    with path.open("a") as file:
        file.write("}\n")
    with pytest.raises(ValueError, match="not a record of srjit"):
        list(sinks.read(path))


def test_a_record_outside_of_named_scopes_has_no_path():
    assert {r.path for r in watched(step, W, X, recipe="int8")} == {""}


def test_a_record_has_no_figure_that_is_not_measured():
    with pytest.raises(AttributeError, match="'Record' object has no attribute 'items'"):
        record().items  # noqa: B018


def test_what_is_not_finite_is_null_in_the_file_and_read_as_nan(tmp_path):
    path, unknown = tmp_path / "run.jsonl", ("norm", "noise", "amax")
    sinks.JsonLines(path)(record(norm=math.nan, noise=math.inf, amax=-math.inf))

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    fields = json.loads(path.read_text(), parse_constant=refuse)
    assert [fields[name] for name in unknown] == [None] * 3
    (again,) = sinks.read(path)
    assert all(math.isnan(getattr(again, name)) for name in unknown)
    assert again.where == (2,) and diagnosed([again]).findings[0].verdict == "exploding"
    path.write_text("[]\n")
    with pytest.raises(ValueError, match="not a record of srjit"):
        list(sinks.read(path))


def test_tensorboard_gets_scalars(tmp_path):
    sink = TensorBoard(tmp_path)
    sink(record())
    sink.close()
    (events,) = tmp_path.iterdir()
    assert b"srjit/site_1_wgrad_lhs_trip_2/norm" in events.read_bytes()


@pytest.fixture
def mean():
    """A figure more, for one test."""
    figure = Figure(
        name="mean",
        about="mean magnitude of the operand",
        of=lambda sample: jnp.mean(jnp.abs(sample.part)),
        column="mean |x|",
    )
    FIGURES.append(figure)
    yield figure
    FIGURES.remove(figure)


def test_a_new_figure_is_in_records_files_tensorboard_and_tables(mean, tmp_path):
    seen, path = [], tmp_path / "run.jsonl"
    fun = srjit(step, recipe="int8", watch=seen.append)
    fun(W, X, sr_key=0)
    fun.watch.wait()
    assert all(0 < r.mean < r.norm for r in seen)
    sinks.JsonLines(path)(seen[0])
    assert list(sinks.read(path)) == seen[:1]
    board = TensorBoard(tmp_path / "board")
    board(seen[0])
    board.close()
    (events,) = (tmp_path / "board").iterdir()
    assert b"/mean" in events.read_bytes()
    found = diagnosed(seen)
    assert "mean |x|" in str(found) and "mean |x|" in found.to_html()
    assert json.loads(found.to_json())["findings"][0]["mean"] == found.findings[0].figures["mean"]


def test_inside_another_program_it_is_watched_too():
    seen = []
    fun = srjit(step, recipe="int8", watch=seen.append)
    jax.jit(lambda w, x: fun(w, x, sr_key=1))(W, X)
    jax.effects_barrier()
    assert len(seen) == LAYERS


def test_shardings_and_donation_stay_those_of_the_step():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, rows = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in ((), ("d",))
    )
    options = {"in_shardings": (whole, rows), "out_shardings": (whole, whole), "donate_argnums": 0}
    seen, w = [], jnp.copy(W)
    fun = srjit(step, recipe="int8", watch=seen.append, **options)
    new, _ = fun(w, X, sr_key=1)
    fun.watch.wait()
    assert len(seen) == LAYERS and new.sharding == whole
    plain, _ = srjit(step, recipe="int8", **options)(jnp.copy(W), X, sr_key=1)
    np.testing.assert_array_equal(np.asarray(new), np.asarray(plain))


def test_what_a_sink_raises_is_raised():
    def full(record):
        raise OSError("no space left")

    fun = srjit(step, recipe="int8", watch=full)
    fun(W, X, sr_key=0)
    with pytest.raises(OSError, match="no space left"):
        fun.watch.wait()


def test_what_cannot_be_watched_is_an_error():
    with pytest.raises(TypeError, match="path of a JSON-lines file"):
        srjit(step, recipe="int8", watch=3)
    with pytest.raises(ValueError, match="layer='jaxpr'"):
        srjit(step, recipe="int8", watch=print, layer="stablehlo")


# ----------------------------------------------------------------------------------- diagnosis


@pytest.mark.parametrize(
    ("changed", "verdict", "advice"),
    [
        ({}, "healthy", None),
        ({"noise": 1 / PAYS + 1e-3}, "noisy", "a higher precision here"),
        ({"noise": 1 / PAYS - 1e-3}, "healthy", None),
        ({"norm": math.inf}, "exploding", "rounding is not the reason"),
        ({"amax": math.nan}, "exploding", "rounding is not the reason"),
        ({"zeros": 0.2, "rounding": "nearest"}, "vanishing", "gradients='stochastic'"),
        ({"zeros": 0.2}, "healthy", None),
        ({"saturated": 0.02, "format": "int8"}, "saturated", "scales rounded up"),
        ({"saturated": 0.02, "format": "nvfp4"}, "clipping", "by design"),
        ({"saturated": 0.2, "format": "nvfp4"}, "saturated", "scales rounded up"),
        ({"saturated": 0.02, "format": "of a plugin"}, "saturated", "scales rounded up"),
        ({"saturated": 0.02, "rounding": "nearest"}, "healthy", None),
    ],
)
def test_a_diagnosis_says_what_to_do(changed, verdict, advice):
    found = diagnosed([record(**changed)])
    assert [f.verdict for f in found.findings] == [verdict]
    assert len(found.advice) == (advice is not None)
    assert advice is None or advice in next(iter(found.advice))
    assert ("healthy" in str(found)) is (advice is None)
    json.loads(found.to_json())


def test_a_norm_that_grows_is_exploding():
    grown = [record(step=i, norm=3.0**i) for i in range(10)]
    assert diagnosed(grown).findings[0].verdict == "exploding"
    assert diagnosed(grown[:3]).findings[0].verdict == "healthy"


def test_a_program_is_diagnosed_as_it_runs():
    nearest = recipes.get("mxfp4").with_rounding(gradients="nearest")
    found = srjit(step, recipe=nearest, donate_argnums=0).diagnose(W, X, steps=2)
    assert found.steps == 2 and {f.verdict for f in found.findings} == {"vanishing"}
    assert not W.is_deleted()
    nothing = srjit(loss, recipe="int8").diagnose(W, X)
    assert not nothing.findings and "differentiates" in str(nothing)
    with pytest.raises(ValueError, match="steps=0: it is a number of steps, 1 at least"):
        srjit(step, recipe="int8").diagnose(W, X, steps=0)


def test_the_command_draws_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    path, page = tmp_path / "run.jsonl", tmp_path / "run.html"
    sink = sinks.JsonLines(path)
    sink(record(noise=2.0))
    assert command.main(["watch", str(path), "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "site 1 wgrad lhs trip 2" in said and "noisy" in said
    assert "<polyline" in page.read_text() and "site 1 wgrad" in page.read_text()
    assert command.main(["watch", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl" in capsys.readouterr().err


def test_the_command_follows_until_it_is_stopped(tmp_path, monkeypatch):
    path, out = tmp_path / "run.jsonl", io.StringIO()
    path.write_text("")
    monkeypatch.setattr("sys.stdout", out)

    def stop(seconds):
        assert seconds == 2
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", stop)
    assert command.main(["watch", str(path), "--follow"]) == 0
    assert "no records yet" in out.getvalue()
