"""Legalized products compute what their decompositions do, and say when they cannot."""

import jax
import numpy as np
import pytest

from small_programs import normal
from srjit import passes, rejit

W, X = normal(32, 32, seed=1), normal(16, 32)
LOWERED = jax.jit(lambda w, x: jax.numpy.tanh(x @ w) @ w).lower(W, X)
INSERT = "srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8 mode=inference}"


def test_each_target_gives_the_bits_of_the_neutral_form():
    neutral = rejit(LOWERED, INSERT)(W, X)
    for target in ("cpu", "portable"):
        legal = rejit(LOWERED, f"{INSERT},srjit-legalize{{target={target}}}")
        np.testing.assert_array_equal(legal(W, X), neutral)


@pytest.mark.parametrize("target", ["cpu", "portable", "h100"])
def test_legalizing_twice_is_legalizing_once(target: str):
    pipeline = f"{INSERT},srjit-legalize{{target={target}}}"
    text = str(LOWERED.compiler_ir())
    once = str(passes.parse(pipeline).run(text))
    assert str(passes.parse(f"{pipeline},srjit-legalize{{target={target}}}").run(text)) == once


@pytest.mark.parametrize(("name", "said"), [("srjit.newer", True), ("their.sin", False)])
def test_composites_that_no_target_knows_stay_and_ours_are_noted(name: str, said: bool):
    composed = jax.jit(lambda w, x: jax.lax.composite(jax.numpy.sin, name)(x @ w))
    text = str(composed.lower(W, X).compiler_ir())
    module = str(passes.parse(f"{INSERT},srjit-legalize{{target=cpu}}").run(text))
    assert f'stablehlo.composite "{name}"' in module
    assert (f"composite {name} stays" in module) == said
