"""The page about verification runs, and says what srjit says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_runs_and_tells_the_verdicts():
    pytest.importorskip("qwix")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    text = " ".join(PAGE.replace("\n> ", " ").split())
    assert names["certificate"].operands[0].verdict in text
    found = {name: o.verdict for name, o in names["verdicts"].items()}
    assert "neighbouring elements share noise" in found["Qwix int8"]
    assert "beyond the largest value" in found["Qwix int8, noise per element"]
    assert found["Qwix float8_e4m3fn"] in text
    assert found["srjit int8"].startswith("unbiased to ")
