"""``srjit``: one command, whose reports are those of the decorator."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from srjit import srjit
from srjit.tools import main as command

PROGRAM = """
import jax
import jax.numpy as jnp

def step(w, x):
    value, grad = jax.value_and_grad(lambda w: jnp.mean((x @ w) ** 2))(w)
    return w - 0.1 * grad, value

def arguments():
    return jnp.eye(16), jax.random.normal(jax.random.key(0), (8, 16))
"""
EXAMPLE = ("their_steps:step", "--example", "their_steps:arguments")


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_steps.py").write_text(PROGRAM, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "their_steps", raising=False)


def test_explain_says_what_the_decorator_says(capsysbinary: pytest.CaptureFixture[bytes]):
    given = ("their_steps:step", "--args", "f32[16,16] f32[8,16]", "--target", "H100")
    assert command.main(["explain", *given, "--recipe", "NVFP4"]) == 0
    import their_steps  # pyright: ignore[reportMissingImports]

    decorated = srjit(their_steps.step, recipe="nvfp4", target="h100")
    report = decorated.explain(*their_steps.arguments())
    assert capsysbinary.readouterr().out.decode() == f"{report}\n"
    assert command.main(["explain", *given, "--recipe", "nvfp4", "--json"]) == 0
    assert json.loads(capsysbinary.readouterr().out) == json.loads(report.to_json())


def test_verify_fails_where_a_defect_is_found_only(capsysbinary: pytest.CaptureFixture[bytes]):
    assert command.main(["verify", *EXAMPLE, "--recipe", "int8", "--draws", "8"]) == 0
    assert capsysbinary.readouterr().out.startswith(b"srjit: verified: unbiased to ")


def test_recommend_tries_the_recipes_that_are_named(capsysbinary: pytest.CaptureFixture[bytes]):
    given = ("--budget", "2", "--recipes", "int8", "--json")
    assert command.main(["recommend", *EXAMPLE, *given]) == 0
    trials = json.loads(capsysbinary.readouterr().out)["trials"]
    assert {t["recipe"] for t in trials} == {"int8", "high precision"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["explain", "their_steps:stop", "--args", "f32[2,2]"], "step"),
        (["explain", "their_steps:step", "--args", "f32[2,2]"], "takes other arguments"),
        (
            ["explain", "their_steps:step", "--args", "f32[2,2] f32[2,2]", "--recipe", "int9"],
            "int8",
        ),
        (["explane"], "no command 'explane'"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert command.main(argv) != 0
    assert said in capsys.readouterr().err


def test_help_names_every_command_and_version_the_version(capsys: pytest.CaptureFixture[str]):
    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("explain", "verify", "recommend", "watch", "aot", "opt"))
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"srjit {metadata.version('srjit')}\n"


@pytest.mark.parametrize("name", ["explain", "verify", "recommend"])
def test_help_of_a_command_has_an_example(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        command.main([name, "--help"])
    assert ended.value.code == 0
    assert f"example: srjit {name} " in " ".join(capsys.readouterr().out.split())
