"""The page about verification runs as for a reader, and says what srjit says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fresh

PAGE = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_runs_and_tells_the_verdicts(compiler_flags: str):
    pytest.importorskip("qwix")
    program = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    printed = fresh.python(program, XLA_FLAGS=compiler_flags, JAX_PLATFORMS="cpu").decode()
    quoted = " ".join(re.findall(r"^> (.*)$", PAGE, re.MULTILINE))
    assert quoted and quoted in " ".join(printed.split())
    found = dict(line.split(": ", 1) for line in printed.splitlines() if ": " in line)
    assert "neighbouring elements share noise" in found["Qwix int8"]
    assert "beyond the largest value" in found["Qwix int8, noise per element"]
    assert f"| float8_e4m3fn | {found['Qwix float8_e4m3fn']} |" in PAGE
    assert found["srjit int8"].startswith("unbiased to ")
    for mode in ("mxfp8", "nvfp4"):
        assert f"| {mode} | {found[f'jax.nn {mode}']} |" in PAGE
