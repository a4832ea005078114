"""The page about verification runs as for a reader, and says what srjit says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_runs_and_tells_the_verdicts(tmp_path: Path):
    pytest.importorskip("qwix")
    program = tmp_path / "page.py"
    program.write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    quoted = " ".join(re.findall(r"^> (.*)$", PAGE, re.MULTILINE))
    assert quoted and quoted in " ".join(ran.stdout.split())
    found = dict(line.split(": ", 1) for line in ran.stdout.splitlines() if ": " in line)
    assert "neighbouring elements share noise" in found["Qwix int8"]
    assert "beyond the largest value" in found["Qwix int8, noise per element"]
    assert f"| float8_e4m3fn | {found['Qwix float8_e4m3fn']} |" in PAGE
    assert found["srjit int8"].startswith("unbiased to ")
    for mode in ("mxfp8", "nvfp4"):
        assert f"| {mode} | {found[f'jax.nn {mode}']} |" in PAGE
