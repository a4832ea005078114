"""The program of the page about experts runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "experts.md").read_text(encoding="utf-8")


def test_the_page_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")  # no cell of two lines
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    assert "weight 4x64x32 int8 E" in capsys.readouterr().out
    assert not names["dw"][1].any() and names["dw"][3].any()
