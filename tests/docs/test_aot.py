"""The page about compiling for hardware that is not there runs, and says what srjit says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from srjit import targets
from srjit.aot.report import Verdict

PAGE = (Path(__file__).parents[2] / "docs" / "aot.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, TPUs' compiler, is not installed"
)
def test_the_page_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]):
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block.replace("8192", "2048"), names)  # fewer rows: the compiler takes a tenth
    out = capsys.readouterr().out
    assert out.startswith("srjit: recipe int8, compiled for v5e, mode train: 5 sites: ")


def test_the_page_lists_every_verdict_and_every_target():
    for name in (*get_args(Verdict), *(n for n in targets.names() if targets.get(n).compiler)):
        assert f"| `{name}`" in PAGE or f", `{name}`" in PAGE, name
