"""The example that draws plots of stochastic rounding draws them, and what it draws repeats."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

_PATH = pathlib.Path(__file__).parents[2] / "examples" / "stochastic_rounding.py"


@pytest.mark.slow
def test_it_draws_the_same_for_the_same_seed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("stochastic_rounding_example", _PATH)
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(sys, "argv", [str(_PATH), "--out", str(tmp_path), "--steps", "20"])
    example.main()
    assert (tmp_path / "stochastic_rounding.png").read_bytes()[1:4] == b"PNG"
    (nearest, runs), (_, again), (_, other) = (example.pool(2, seed) for seed in (0, 0, 1))
    assert not nearest.any() and runs.any()
    np.testing.assert_array_equal(runs, again)
    assert not np.array_equal(runs, other)
