"""``SRJIT_DUMP_TO``: numbered files after every stage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from srjit import srjit, transform
from steps import KEY, W, X, step

STAGES = [
    "original.jaxpr",
    "dead-code-eliminated.jaxpr",
    "plan.txt",
    "plan.json",
    "rewritten.jaxpr",
    "stablehlo.mlir",
]


def stages(folder: Path) -> list[str]:
    """What was written, in order, without number and function."""
    return [path.name.split(".", 2)[2] for path in sorted(folder.iterdir())]


def test_every_stage_is_written_once_a_signature_in_order(tmp_path: Path):
    decorated = srjit(step, recipe="int8", dump_to=tmp_path / "made" / "here")
    for _ in range(2):
        decorated(W, X, sr_key=KEY)
    folder = tmp_path / "made" / "here"
    assert stages(folder) == STAGES
    decorated(W, X[:2], sr_key=KEY)
    assert stages(folder) == STAGES * 2
    assert {path.name.split(".")[1] for path in folder.iterdir()} == {"step"}


def test_the_files_hold_what_they_are_called(tmp_path: Path):
    decorated = srjit(step, recipe="int8", dump_to=tmp_path)
    result = decorated(W, X, sr_key=KEY)
    text = dict(zip(STAGES, [p.read_text() for p in sorted(tmp_path.iterdir())], strict=True))
    assert text["original.jaxpr"].count("dot_general[") == 2
    quantize = "srjit_quantize_int8_"
    assert quantize not in text["original.jaxpr"] and quantize in text["rewritten.jaxpr"]
    assert "srjit_site[" in text["rewritten.jaxpr"]
    assert "reduce_sum" in text["original.jaxpr"], "the loss, which nothing reads"
    assert "reduce_sum" not in text["dead-code-eliminated.jaxpr"]
    report = decorated.explain(W, X)
    assert text["plan.txt"].split() == str(report).split()
    assert json.loads(text["plan.json"]) == json.loads(report.to_json())
    assert text["stablehlo.mlir"].startswith("module @jit_step")
    assert bool((result == srjit(step, recipe="int8")(W, X, sr_key=KEY)).all())


def test_under_another_jit_and_through_transform(tmp_path: Path):
    inner = srjit(step, recipe="int8", dump_to=tmp_path / "a")
    jax.jit(lambda w, x: inner(w, x, sr_key=KEY))(W, X)
    assert stages(tmp_path / "a") == STAGES
    jax.jit(transform(step, recipe="int8", dump_to=tmp_path / "b"))(W, X, sr_key=KEY)
    assert stages(tmp_path / "b") == STAGES[:-1]


def test_the_environment_variable_is_read_when_a_function_is_decorated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SRJIT_DUMP_TO", str(tmp_path / "environment"))
    by_environment = srjit(step, recipe="int8")
    by_option = srjit(step, recipe="int8", dump_to=tmp_path / "option")
    monkeypatch.delenv("SRJIT_DUMP_TO")
    by_environment(W, X, sr_key=KEY)
    by_option(W, X, sr_key=KEY)
    assert stages(tmp_path / "environment") == stages(tmp_path / "option") == STAGES


def test_a_folder_that_cannot_be_written_to_is_an_error_that_names_it(tmp_path: Path):
    """What was asked for is not left out without a word; the function itself is none the worse."""
    blocker = tmp_path / "file"
    blocker.write_text("")
    decorated = srjit(step, recipe="int8", dump_to=blocker / "folder")
    with pytest.raises(OSError, match=r"cannot dump to .*folder \(dump_to or SRJIT_DUMP_TO\)"):
        decorated(W, X, sr_key=KEY)
    blocker.unlink()
    assert decorated(W, X, sr_key=KEY).shape == W.shape
    assert stages(tmp_path / "file" / "folder") == STAGES


def test_functions_with_strange_names_have_files_too(tmp_path: Path):
    srjit(lambda w: w @ w, recipe="int8", dump_to=tmp_path)(W)
    assert {p.name.split(".")[1] for p in tmp_path.iterdir()} == {"lambda"}


def test_two_processes_write_the_same_files(tmp_path: Path):
    """Nothing in a dump depends on the process, so that dumps can be compared."""
    script = (
        "import sys, jax.numpy as jnp; from srjit import srjit\n"
        "srjit(lambda w: w @ w, recipe='nvfp4', dump_to=sys.argv[1])(jnp.ones((16, 16)))"
    )
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        environment = {"PYTHONHASHSEED": str(seed), "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", script, str(folder)], env=environment, check=True)
    first, second = ({p.name: p.read_text() for p in f.iterdir()} for f in folders)
    assert first == second
