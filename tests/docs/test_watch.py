"""The page about watching explains every figure and every verdict."""

from __future__ import annotations

import re
from pathlib import Path

from srjit.diagnostics.watch.diagnosis import _finding

PAGE = (Path(__file__).parents[2] / "docs" / "watch.md").read_text(encoding="utf-8")


def test_every_figure_of_a_record_is_on_the_page():
    figures = re.findall(r"'(\w+)': [\d.]", PAGE)
    assert len(figures) == 5
    assert all(f"`{name}`" in PAGE for name in figures)


def test_every_verdict_is_in_the_table():
    source = Path(_finding.__code__.co_filename).read_text(encoding="utf-8")
    verdicts = set(re.findall(r'advice\["(\w+)"\]', source))
    assert verdicts == set(re.findall(r"^\| (\w+) \| (?!when)", PAGE, re.MULTILINE))
