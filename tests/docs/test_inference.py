"""Frozen weights are packed as the page about inference says."""

from __future__ import annotations

import re
from pathlib import Path

import jax.numpy as jnp

from srjit import Quantization, quantize
from srjit.numerics.arrays import pack

PAGE = (Path(__file__).parents[2] / "docs" / "inference.md").read_text(encoding="utf-8")


def test_formats_are_packed_as_the_page_says():
    rows = re.findall(r"^\| (`.*?`) \| (\w+).*? \| (\w+)", PAGE, re.MULTILINE)
    assert rows
    for names, codes, scale in rows:
        for name in re.findall(r"`(\w+)`", names):
            packed = pack(quantize(jnp.ones((32, 32)), Quantization(format=name)))
            assert (packed["codes"].dtype, packed["scale"].dtype) == (codes, scale), name
