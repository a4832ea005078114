"""``export`` and ``load``: the same bits, in a process that has nothing but the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fresh
import srjit
from appending import Appending
from modules.test_rejit import pipeline
from srjit import passes
from steps import KEY, W, X, same, step

CALL = """
import sys, numpy as np, jax, srjit
step = srjit.load(sys.argv[1])
given = np.load(sys.argv[2])
out = step(given["w"], given["x"], sr_key=jax.random.key(3))
np.save(sys.argv[3], np.asarray(out))
"""


def decorated(layer: str) -> Any:
    return srjit.srjit(step, recipe="int8", layer=layer)  # type: ignore[arg-type]


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("way", ["jaxpr", "stablehlo", "rejit"])
def test_another_process_computes_the_same_bits(way: str, tmp_path: Path, compiler_flags: str):
    if way == "rejit":
        function = srjit.rejit(jax.jit(step).lower(W, X), pipeline())
        exported = srjit.export(function)
    else:
        function = decorated(way)
        exported = srjit.export(function, W, X)
    exported.save(tmp_path / "step.srjit")
    np.savez(tmp_path / "given.npz", w=W, x=X)
    names = [str(tmp_path / n) for n in ("step.srjit", "given.npz", "out.npy")]
    fresh.python(CALL, *names, cwd=tmp_path, XLA_FLAGS=compiler_flags)
    expected = function(W, X, sr_key=KEY)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_keys_are_whatever_the_function_takes():
    loaded = srjit.load(srjit.export(decorated("jaxpr"), W, X).serialize())
    for key in (KEY, 3, -1, 2**40, np.int64(5), jax.random.key(1, impl="rbg")):
        assert same(loaded(W, X, sr_key=key), decorated("jaxpr")(W, X, sr_key=key))
    with pytest.raises(TypeError, match="step rounds stochastically and needs a key"):
        loaded(W, X)
    with pytest.raises(TypeError, match="takes no sr_state"):
        loaded(W, X, sr_key=0, sr_state={})


def test_a_program_without_noise_needs_no_key():
    forward = srjit.srjit(lambda w, x: x @ w, recipe="int8")
    loaded = srjit.load(srjit.export(forward, W, X).serialize())
    assert same(loaded(W, X), forward(W, X))
    assert same(loaded(W, X, sr_key=1), forward(W, X))  # as the function itself takes it
    inference = srjit.srjit(step, recipe="int8", mode="inference")
    loaded = srjit.load(srjit.export(inference, W, X).serialize())
    assert same(loaded(W, X), inference(W, X))
    with pytest.raises(TypeError, match="draws no noise and takes no sr_key"):
        loaded(W, X, sr_key=1)


@pytest.mark.parametrize("way", ["jaxpr", "rejit"])
def test_delayed_scales_are_state(way: str):
    function: Any
    if way == "rejit":
        function = srjit.rejit(jax.jit(step).lower(W, X), passes.Pipeline(Appending()))
        exported, state = srjit.export(function), function.init_state()
    else:
        function = srjit.srjit(step, recipe="fp8-delayed")
        exported, state = srjit.export(function, W, X), function.init_state(W, X)
    loaded = srjit.load(exported.serialize())
    assert same(loaded.init_state(), state)
    assert loaded.init_state().keys() == state.keys()
    result = loaded(W, X, sr_key=1, sr_state=state)
    assert same(result, function(W, X, sr_key=1, sr_state=state))
    assert result[1].keys() == state.keys()
    with pytest.raises(TypeError, match="has delayed scales"):
        loaded(W, X, sr_key=1)
    with pytest.raises(ValueError, match="sr_state does not fit step"):
        loaded(W, X, sr_key=1, sr_state={"other": X})


@dataclasses.dataclass
class Pair:
    w: jax.Array
    x: jax.Array


jax.tree_util.register_dataclass(Pair, data_fields=["w", "x"], meta_fields=[])


class Unknown(Pair):
    """Not known to jax.export."""


jax.tree_util.register_dataclass(Unknown, data_fields=["w", "x"], meta_fields=[])
jax.export.register_pytree_node_serialization(
    Pair,
    serialized_name="srjit.tests.Pair",
    serialize_auxdata=lambda _: b"",
    deserialize_auxdata=lambda _: (),
)


def stepping(pair: Any, *, times: int, scale: Any = None) -> Any:
    return {"pair": type(pair)(step(pair.w, pair.x) * times, pair.x), "scale": scale}


def test_pytrees_static_arguments_and_donation_are_the_functions():
    function = srjit.srjit(
        stepping, recipe="int8", static_argnames="times", donate_argnums=0, donate_argnames="scale"
    )
    exported = srjit.export(function, Pair(W, X), times=2, scale=(X, None))
    loaded = srjit.load(exported.serialize())
    w, x, scale = W + 0, X + 0, X + 0
    result = loaded(Pair(w, x), scale=(scale, None), sr_key=1)
    expected = function(Pair(W + 0, X + 0), times=2, scale=(X + 0, None), sr_key=1)
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    assert same(result, expected)
    assert w.is_deleted() and scale.is_deleted()


def test_what_cannot_be_kept_says_why(tmp_path: Path):
    def printing(w: jax.Array, x: jax.Array) -> jax.Array:
        jax.debug.print("{}", w[0, 0])
        return step(w, x)

    for layer in ("jaxpr", "stablehlo"):
        function = srjit.srjit(printing, recipe="int8", layer=layer)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="cannot keep printing: it has host callbacks"):
            srjit.export(function, W, X)
    with pytest.raises(ValueError, match="printing has host callbacks"):
        srjit.export(srjit.rejit(jax.jit(printing).lower(W, X), pipeline()))
    function = srjit.srjit(stepping, recipe="int8", static_argnames="times")
    with pytest.raises(ValueError, match=r"cannot keep stepping.*Unknown"):
        srjit.export(function, Unknown(W, X), times=1).save(tmp_path / "unknown.srjit")
    with pytest.raises(TypeError, match="takes a function that srjit"):
        srjit.export(step, W, X)
    with pytest.raises(TypeError, match="lowered for its arguments before"):
        srjit.export(srjit.rejit(jax.jit(step).lower(W, X), pipeline()), W, X)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_such_file_says_so(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        srjit.load(tmp_path / "not-there.srjit")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match=r"text: not a program that srjit.export wrote"):
        srjit.load(tmp_path / "text")


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path):
    exported = srjit.export(decorated("jaxpr"), W, X)
    with pytest.raises(FileNotFoundError):
        exported.save(tmp_path / "no" / "folder")
    exported.save(tmp_path / "step.srjit")
    first = (tmp_path / "step.srjit").read_bytes()
    exported.save(tmp_path / "step.srjit")
    assert (tmp_path / "step.srjit").read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["step.srjit"]


def test_programs_for_eight_devices_run_on_eight():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("d"))
    whole = NamedSharding(mesh, PartitionSpec())
    function = srjit.srjit(
        step, recipe="int8", in_shardings=(rows, whole), out_shardings=rows, donate_argnums=0
    )
    loaded = srjit.load(srjit.export(function, W, X).serialize())
    expected = function(W + 0, X, sr_key=1)
    result = loaded(jax.device_put(W, rows), X, sr_key=1)
    assert result.sharding.is_equivalent_to(rows, 2)
    assert same(result, expected)
    assert loaded.exported.nr_devices == 8


@pytest.mark.bits
@pytest.mark.usefixtures("fusion_emitters")
def test_loaded_programs_run_inside_another_jit():
    loaded = srjit.load(srjit.export(decorated("jaxpr"), W, X).serialize())
    nested = jax.jit(lambda w, key: loaded(w, X, sr_key=key) + 1)
    assert same(nested(W, KEY), decorated("jaxpr")(W, X, sr_key=KEY) + 1)
    assert "stablehlo" in loaded.as_text()
    assert repr(loaded) == "<srjit.Exported step: for 1 device(s), cpu>"
    assert jnp.shape(loaded(W, X, sr_key=1)) == W.shape
