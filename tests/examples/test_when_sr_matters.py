"""The example that the README tells of does what it says."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest

_PATH = pathlib.Path(__file__).parents[2] / "examples" / "when_sr_matters.py"


@pytest.mark.slow
def test_nearest_gradients_learn_nothing_where_stochastic_ones_learn() -> None:
    spec = importlib.util.spec_from_file_location("when_sr_matters", _PATH)
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    errors = example.errors(1000)
    assert errors["float32"] < 1e-3
    assert errors["int8, nearest gradients"] > 0.9
    assert errors["int8, stochastic gradients"] < 0.1
