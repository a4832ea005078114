"""The page about memory does what it says."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")


def test_the_block_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, {})
    said = re.search(r"^prints `(.*?)` and `(.*?)`", PAGE, re.MULTILINE)
    assert said is not None
    assert capsys.readouterr().out.splitlines() == list(said.groups())
