"""The page about writing a pass is one program, which runs and does what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "write_a_pass.md"


def test_the_page_runs_from_top_to_bottom(tmp_path: Path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks), encoding="utf-8")
    # A process of its own: the page registers a pass.
    run = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    losses = [float(m[1]) for m in re.finditer(r"^\d+ ([\d.]+)$", run.stdout, re.MULTILINE)]
    assert len(losses) == 20 and losses[-1] < losses[0]
    assert "kept: fewer than 1000 elements" in run.stdout
    assert "int8~" in run.stdout  # and the others are quantized, gradients stochastically
    for name in ("my-keep-small", "srjit-insert-quantize", "Canonicalizer", "CSE"):
        assert re.search(rf"IR Dump After .*{name}", run.stderr), name


def test_the_pass_of_the_page_is_short():
    (block,) = re.findall(r"```python\n(import dataclasses.*?)```", PAGE.read_text(), re.DOTALL)
    body = block[block.index("@register") :]
    assert len([line for line in body.split("\n") if line.strip()]) <= 20
