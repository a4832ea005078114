"""The page about inference runs, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from srjit import Quantization, quantize
from srjit.numerics.arrays import pack

PAGE = (Path(__file__).parents[2] / "docs" / "inference.md").read_text(encoding="utf-8")


def test_the_page_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]):
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    (printed,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert capsys.readouterr().out == printed


def test_formats_are_packed_as_the_page_says():
    rows = re.findall(r"^\| (`.*?`) \| (\w+).*? \| (\w+)", PAGE, re.MULTILINE)
    assert rows
    for names, codes, scale in rows:
        for name in re.findall(r"`(\w+)`", names):
            packed = pack(quantize(jnp.ones((32, 32)), Quantization(format=name)))
            assert (packed["codes"].dtype, packed["scale"].dtype) == (codes, scale), name
