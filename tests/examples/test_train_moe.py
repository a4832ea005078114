"""The example of experts: it learns, tokens are spread, and experts are quantized one by one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from flax import nnx

import lm_experts
import train_moe


def test_every_row_is_the_weighted_sum_of_its_experts():
    layer = lm_experts.Experts(8, 4, "float32", nnx.Rngs(0))
    draw = np.random.default_rng(0)
    layer.down[...] = draw.normal(size=(4, 16, 8)).astype(np.float32)
    x = draw.normal(size=(1, 6, 8)).astype(np.float32)

    graph, params = nnx.split(layer, nnx.Param)

    @jax.jit
    def run(params: Any, x: Any) -> Any:
        layer = nnx.merge(graph, params)
        each = jax.numpy.einsum("rw,ewh->erh", x[0], layer.up[...])
        outs = jax.numpy.einsum("erh,ehw->erw", nnx.gelu(each), layer.down[...])
        return layer(x), *layer.route(x[0]), outs

    got, weights, chosen, balance, outs = map(np.asarray, run(params, x))
    expected = [
        sum(w * outs[e, row] for w, e in zip(weights[row], chosen[row], strict=True))
        for row in range(6)
    ]
    # Sums of 8 and 16 float32 products, in another order.
    bound = (8 + 16) * np.finfo(np.float32).eps * np.abs(outs).max()
    np.testing.assert_allclose(got[0], expected, rtol=0, atol=bound)
    assert (chosen[:, 0] != chosen[:, 1]).all() and 1 <= balance < 4


@pytest.mark.nightly
@pytest.mark.parametrize("recipe", ["bf16", "int8"])
def test_a_quick_run_learns(recipe: str, tmp_path: Path, capsys: Any):
    given = ["--quick", "--recipe", recipe, "--out", str(tmp_path)]
    assert train_moe.main(given) == 0
    assert recipe in capsys.readouterr().out
