"""``srjit-aot``: what ``.aot`` does, from a shell."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from srjit.tools import aot

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, TPUs' compiler, is not installed"
)
PROGRAM = """
import jax
import jax.numpy as jnp
from srjit import srjit

def layer(w, x):
    return jnp.tanh(x @ w)

@srjit(recipe="fp8", target="cpu")
def decorated(w, x):
    return x @ w

def arguments():
    return jnp.ones((256, 128), jnp.bfloat16), jax.ShapeDtypeStruct((64, 256), jnp.bfloat16)
"""
ARGS = "bf16[256,128] bf16[64,256]"


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_program.py").write_text(PROGRAM, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "their_program", raising=False)


def run(capfdbinary: Any, *argv: str) -> tuple[int, str, str]:
    status = aot.main(argv)
    out, err = capfdbinary.readouterr()
    return status, out.decode(), err.decode()


@pytest.mark.parametrize("given", [("--args", ARGS), ("--example", "their_program:arguments")])
def test_it_prints_a_report(capfdbinary: Any, given: tuple[str, str]):
    command = ("their_program:layer", *given, "--target", "cpu", "--recipe", "int8")
    status, out, err = run(capfdbinary, *command)
    assert status == 0, err
    assert out.startswith("srjit: recipe int8, compiled for cpu, mode train: 1 sites: 1 emulated\n")


def test_a_decorated_function_keeps_its_options(capfdbinary: Any):
    status, out, err = run(capfdbinary, "their_program:decorated", "--args", ARGS, "--json")
    told = json.loads(out)
    assert (status, told["recipe"], told["target"]) == (0, "fp8", "cpu"), err


def test_a_file_is_written_when_all_went_well(capfdbinary: Any, tmp_path: Path):
    command = ("their_program:layer", "--args", ARGS, "--target", "cpu", "-o", "report.html")
    status, out, _ = run(capfdbinary, *command, "--html")
    assert (status, out) == (0, "")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_mesh_and_what_is_sharded_over_it(capfdbinary: Any):
    command = ("their_program:layer", "--args", "bf16[256,128] bf16[64,256]@data,-", "--json")
    status, out, err = run(capfdbinary, *command, "--target", "cpu", "--mesh", "data=4")
    told = json.loads(out)
    assert (status, told["devices"]) == (0, 4), err
    assert told["sites"][0]["products"][0]["lhs"]["dims"] == [16, 256]


@needs_libtpu
def test_it_runs_as_a_program_of_its_own():
    """With no device of the TPU looked for, and nothing said that nobody asked for."""
    command = (sys.executable, "-m", "srjit.tools.aot", "their_program:layer", "--args", ARGS)
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        (*command, "--target", "v5e", "--recipe", "int8"),
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "s8 x s8 NN 2.0x  native" in done.stdout and "WARNING" not in done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["their_program"], "'their_program' is not of the form MODULE:FUNCTION"),
        (["their_programs:layer"], "cannot be imported: No module named 'their_programs'"),
        (["their_program:layr"], "unknown function 'layr': did you mean 'layer'?"),
        (["their_program:layer", "--target", "v6"], "did you mean 'v6e'"),
        (["their_program:layer", "--target", "portable"], "cannot compile for portable"),
        (["their_program:layer", "--recipe", "int9"], "did you mean 'int8'"),
        (["their_program:layer", "--mesh", "data"], "such as data=4,model=2: got 'data'"),
        (["their_program:layer", "-o", "no/where"], "cannot write 'no/where'"),
    ],
)
def test_what_cannot_be_had_is_said(capfdbinary: Any, argv: list[str], message: str):
    target = [] if "--target" in argv else ["--target", "cpu"]
    status, out, err = run(capfdbinary, *argv, *target, "--args", ARGS)
    assert (status, out) == (1, "")
    assert err.startswith("srjit-aot: ") and message in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("256x128", "is no array: write f32[8,16]"),
        ("bf15[8]", "unknown dtype 'bf15': did you mean 'bf16'"),
        ("f32[8]@data", "over which mesh? Give --mesh"),
    ],
)
def test_arguments_that_cannot_be_read_are_shown(capfdbinary: Any, args: str, message: str):
    command = ("their_program:layer", "--target", "cpu", "--args", args)
    status, _, err = run(capfdbinary, *command)
    assert status == 1 and message in err
