"""The page about watching runs from top to bottom, and says what is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from srjit.diagnostics.watch.diagnosis import _finding

PAGE = (Path(__file__).parents[2] / "docs" / "watch.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    assert {f.verdict for f in names["diagnosis"].findings} == {"vanishing"}
    assert names["evidence"].recipe is not None
    assert names["drawn"].noise.shape
    for field in ("norm", "noise", "zeros", "saturated", "amax"):
        assert f"`{field}`" in PAGE and hasattr(names["record"], field)


def test_every_verdict_is_in_the_table():
    source = Path(_finding.__code__.co_filename).read_text(encoding="utf-8")
    verdicts = set(re.findall(r'advice\["(\w+)"\]', source))
    assert verdicts == set(re.findall(r"^\| (\w+) \| (?!when)", PAGE, re.MULTILINE))
