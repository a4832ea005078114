"""An option is described once, and signatures, docs, errors and type checkers all have it."""

import dataclasses
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import jax
import pytest

import srjit
from srjit.api.options import JIT, Options, TransformOptions
from srjit.passes.insert_quantize import InsertQuantize
from srjit.passes.legalize import Legalize

TAKERS = {srjit.srjit: Options, srjit.transform: TransformOptions}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("taker", TAKERS)
def test_signatures_have_every_option_with_its_type_and_default(taker):
    first, *parameters = inspect.signature(taker).parameters.values()
    assert first.name == "fun"
    assert [(p.name, p.annotation, p.default, p.kind) for p in parameters] == [
        (f.name, f.type, f.default, inspect.Parameter.KEYWORD_ONLY)
        for f in dataclasses.fields(TAKERS[taker])
    ]


@pytest.mark.parametrize("taker", TAKERS)
def test_docs_describe_every_option(taker):
    args = inspect.getdoc(taker).partition("Args:")[2].partition("Returns:")[0]
    described = [word.rstrip(",:") for word in args.split()]
    assert not [f.name for f in dataclasses.fields(TAKERS[taker]) if f.name not in described]
    assert "OPTIONS" not in args


def test_options_of_jax_jit_are_options():
    assert set(inspect.signature(jax.jit).parameters) - {"fun"} <= JIT


def test_passes_take_the_same_values_and_defaults():
    ours = {f.name: f for f in dataclasses.fields(Options)}
    hints, shared = typing.get_type_hints(Options), set()
    for cls in (InsertQuantize, Legalize):
        theirs = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            shared.add(field.name)
            assert field.default == ours[field.name].default
            if typing.get_origin(hints[field.name]) is typing.Literal:
                assert theirs[field.name] == hints[field.name]
    assert shared == {"recipe", "target", "mode", "rng", "strict"}


@pytest.mark.parametrize("taker", TAKERS)
def test_unknown_options_are_errors_that_name_the_nearest(taker):
    for given in ({"recipee": "int8"}, {"fun": abs, "recipee": "int8"}):
        with pytest.raises(TypeError, match=r"option 'recipee'.*recipe"):
            taker(**given)


@pytest.mark.parametrize("taker", TAKERS)
def test_without_a_function_it_is_a_decorator(taker):
    made = taker(recipe="int8")(lambda x: 2 * x)
    assert made(3.0) == 6.0


USES = """
import srjit
def f(x: float) -> float: return x
made: srjit.SrjitFunction = srjit.srjit(f, recipe="int8", static_argnums=1)
@srjit.srjit(recipe="int8", mode="inference")
def g(x: float) -> float: return x
also: srjit.SrjitFunction = g
@srjit.srjit
def h(x: float) -> float: return x
srjit.transform(f, recipe="int8")
"""
MISTAKES = [
    'srjit.srjit(f, recipee="int8")',
    'srjit.srjit(f, mode="training")',
    "srjit.srjit(f, 1)",
    "srjit.transform(f, watch=print)",
]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_type_checkers_accept_options_and_flag_mistakes(tmp_path: Path):
    user = tmp_path / "user.py"
    user.write_text(USES + "\n".join(MISTAKES) + "\n")
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps({"typeCheckingMode": "strict", "extraPaths": [str(ROOT)]})
    )
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    ran = subprocess.run(
        [*command, "-p", str(tmp_path)], capture_output=True, text=True, env=os.environ, check=False
    )
    errors = [e for e in json.loads(ran.stdout)["generalDiagnostics"] if e["severity"] == "error"]
    lines = {e["range"]["start"]["line"] for e in errors}
    first = USES.count("\n")
    assert lines == set(range(first, first + len(MISTAKES))), errors
