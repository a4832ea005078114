"""Several processes, each with some of the devices, compute what one with all of them does."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fresh

from .several_processes import figures

CHILD = "import sys; from jaxprs.several_processes import main; main(*sys.argv[1:])"


def together(count: int, recipe: str, folder: Path) -> list[dict[str, np.ndarray]]:
    """What each of several processes that compute together found."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    variables = {"XLA_FLAGS": " ".join(flags), "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}

    def one(number: int) -> dict[str, np.ndarray]:
        path = folder / f"{number}.npz"
        fresh.python(CHILD, str(port), str(count), str(number), recipe, str(path), **variables)
        return dict(np.load(path))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize(
    ("count", "recipe"),
    [
        (2, "int8"),
        *(pytest.param(n, r, marks=pytest.mark.nightly) for n, r in ((4, "int8"), (2, "fp8"))),
    ],
)
def test_processes_that_train_together_draw_the_noise_of_one(
    count: int, recipe: str, tmp_path: Path
):
    alone = figures(recipe)
    assert alone["loss 0"] != alone["loss 1"] and len(np.unique(alone["codes"])) > 100
    for found in together(count, recipe, tmp_path):
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            np.testing.assert_array_equal(found[name], expected, err_msg=name)
