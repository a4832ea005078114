"""The README's program runs as it stands, and says what the README says it says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from srjit import recipes

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
WHOLE = [block for block in BLOCKS if "import jax.numpy" in block]


def test_the_whole_program_of_the_readme_runs_and_learns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (program,) = WHOLE
    path = tmp_path / "readme.py"
    path.write_text(program, encoding="utf-8")
    runpy.run_path(str(path))
    out = capsys.readouterr().out
    assert "100.0 % of FLOPs quantized" in out
    losses = [float(m[1]) for m in re.finditer(r"^\d+ ([\d.]+)$", out, re.MULTILINE)]
    assert len(losses) == 10 and losses[-1] < losses[0]


def test_every_python_block_of_the_readme_is_python():
    assert len(BLOCKS) >= 2
    for number, block in enumerate(BLOCKS):
        compile(block, f"README block {number}", "exec")


def test_the_readme_lists_the_builtin_recipes():
    table = README[README.index("| recipe |") :].split("\n\n")[0]
    named = set(re.findall(r"`([\w-]+)`", "".join(r.split("|")[1] for r in table.splitlines()[2:])))
    assert named == set(recipes.names())
