"""The report of a module is the one that ``explain`` gives of the function."""

import json
from pathlib import Path

import jax
import pytest

from small_programs import normal
from srjit import passes, srjit
from srjit.passes.report import report_of

W, X = normal(8, 8, seed=1), normal(4, 8)


def step(w, x):
    return w - jax.grad(lambda w: jax.numpy.sum(jax.numpy.tanh(x @ w)))(w)


TEXT = jax.jit(step).lower(W, X).as_text(debug_info=True)
INSERT = (
    "srjit-eliminate-dead-code,srjit-annotate-matmuls{params=0},"
    "srjit-insert-quantize{recipe=int8},srjit-legalize{target=cpu}"
)


def written(path: Path, form: str) -> str:
    passes.parse(f"{INSERT},srjit-report{{output={path} format={form}}}").run(TEXT)
    return path.read_text()


def test_sites_are_those_that_explain_shows():
    module = passes.parse(INSERT).run(TEXT).operation
    of_module, of_function = report_of(module), srjit(step, recipe="int8").explain(W, X)
    for one, other in zip(of_module.sites, of_function.sites, strict=True):
        assert (one.role, one.lhs, one.rhs, one.status) == (
            (other.role, other.lhs, other.rhs, other.status)
        )


@pytest.mark.parametrize("form", ["text", "json", "html"])
def test_the_file_holds_what_the_report_gives_in_each_form(form: str, tmp_path: Path):
    report = report_of(passes.parse(INSERT).run(TEXT).operation)
    expected = {"text": str(report), "json": report.to_json(), "html": report.to_html()}[form]
    text = written(tmp_path / "report", form)
    assert text == f"{expected}\n"
    if form == "json":
        assert json.loads(text)["recipe"] == "int8"


def test_writing_it_changes_nothing(tmp_path: Path):
    plain = str(passes.parse(INSERT).run(TEXT))
    report = f"srjit-report{{output={tmp_path / 'report'}}}"
    assert str(passes.parse(f"{INSERT},{report}").run(TEXT)) == plain
