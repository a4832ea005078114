"""The page about inference runs, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from srjit.numerics.formats import FORMATS

PAGE = (Path(__file__).parents[2] / "docs" / "inference.md").read_text(encoding="utf-8")


def test_the_page_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]):
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    (printed,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert capsys.readouterr().out == printed


def test_the_page_has_every_format_of_weights():
    for name in FORMATS:
        assert f"`{name}`" in PAGE or name == "bf16"
