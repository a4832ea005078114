"""A type checker reports wrong uses of ``srjit``, and no right one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

USES = """
import jax
from srjit import Quantization, Recipe, Rule, freeze, keep_high_precision, quantize, recipes
from srjit import recommend, rejit, srjit, stochastic_round, targets, transform

def step(w: jax.Array, x: jax.Array) -> jax.Array:
    return x @ w

w = x = jax.numpy.ones((8, 8))

# Right
plain = srjit(step)
named = srjit(step, recipe="int8", target="v5e", mode="inference", layer="stablehlo")
srjit(step, recipe=recipes.get("nvfp4"), rng="threefry", strict=True)
srjit(step, recipe=Recipe(name="none", rules=()), target=targets.get("cpu"))
srjit(step, params_argnums=0, donate_argnums=(0,), static_argnames="x")
srjit(step, params_argnums="auto", params_argnames=["w"], key=jax.random.key(0))
srjit(step, key=3, keep_unused=True, in_shardings=None)
srjit(step, watch="run.jsonl", dump_to=None)
srjit(step, watch=lambda record: print(record.norm))
y = plain(w, x, sr_key=0)
report = plain.explain(w, x)
print(report.coverage(), report.text(full=True), report.sites[0].role)
certificate = plain.verify(w, x, draws=8)
print(certificate.passed, certificate.by_design)
transform(step, recipe="int8")(w, x, sr_key=jax.random.key(0))
jax.vmap(transform(step))
print(quantize(w, Quantization(format="nvfp4", rounding="stochastic"), 0).codes)
print(stochastic_round(w, jax.numpy.bfloat16, 0), recommend(step, w, x, budget=2).recipe)
rejit(jax.jit(step).lower(w, x), "srjit-insert-quantize{recipe=int8}")
packed, run = freeze(plain, w, x)

@srjit(recipe="int8")
def decorated(w: jax.Array, x: jax.Array) -> jax.Array:
    with keep_high_precision():
        return x @ w

decorated.lower(w, x, sr_key=0).compile()

# Wrong
srjit(step, recipe=3)  # wrong
srjit(step, mode="training")  # wrong
srjit(step, layer="mlir")  # wrong
srjit(step, rng="philox")  # wrong
srjit(step, strict="yes")  # wrong
srjit(step, target=5)  # wrong
srjit(step, recipee="int8")  # wrong
srjit(step, donate_argnums="w")  # wrong
srjit(3)  # wrong
srjit(step, "int8")  # wrong
srjit(step, watch=3)  # wrong
srjit(step, key="a")  # wrong
srjit(step, params_argnums="first")  # wrong
srjit(step, static_argnums=1.5)  # wrong
srjit(step, compiler_options=3)  # wrong
transform(step, donate_argnums=0)  # wrong
transform(step, key=3)  # wrong
plain.explane(w, x)  # wrong
srjit(recipe="int8", keep_unused="no")(step)  # wrong
plain.verify(w, x, draws="many")  # wrong
Rule(path=3)  # wrong
Quantization(format="int8", rounding="random")  # wrong
"""


@pytest.mark.nightly
def test_pyright_reports_wrong_uses_and_no_right_one(tmp_path: Path):
    file = tmp_path / "uses.py"
    file.write_text(USES, encoding="utf-8")
    root = Path(__file__).parents[2]
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps({"extraPaths": [str(root)], "reportAttributeAccessIssue": "error"})
    )
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run([*command, str(file)], cwd=tmp_path, capture_output=True, text=True)
    found = json.loads(run.stdout)["generalDiagnostics"]
    reported = {d["range"]["start"]["line"] for d in found if d["severity"] == "error"}
    wrong = {n for n, line in enumerate(USES.split("\n")) if line.endswith("# wrong")}
    assert len(wrong) >= 20
    assert reported == wrong, [d["message"] for d in found]
