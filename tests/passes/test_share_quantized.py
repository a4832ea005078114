"""srjit-share-quantized shares equal codes, and no others."""

import jax
import jax.numpy as jnp
import pytest

from small_programs import normal
from srjit import passes
from srjit.passes.emit.composites import QUANTIZE

W, X = normal(8, 8, seed=1), normal(4, 8)


def quantizations(fun, *args, sharing: bool) -> int:
    pipeline = "srjit-annotate-matmuls{params=0},srjit-insert-quantize{recipe=int8 mode=inference}"
    text = str(jax.jit(fun).lower(*args).compiler_ir())
    share = ",srjit-share-quantized" if sharing else ""
    return str(passes.parse(pipeline + share).run(text)).count(f'composite "{QUANTIZE}"')


def of_branches(w, x, p):
    return jax.lax.cond(p, lambda: x @ w, lambda: -(x @ w))


def before_branches(w, x, p):
    return x @ w, jax.lax.cond(p, lambda: x @ w, lambda: -(x @ w))


def after_a_loop(w, x, p):
    looped = jax.lax.while_loop(lambda c: jnp.sum(c) < p, lambda c: c + x @ w, x)
    return looped, x @ w


@pytest.mark.parametrize(
    ("program", "before", "after"),
    [
        # What one branch quantizes is not there in the other one.
        (of_branches, 4, 4),
        (before_branches, 6, 2),
        # A loop may not run at all: what it quantizes is not there after it.
        (after_a_loop, 4, 4),
    ],
)
def test_codes_are_shared_only_where_they_are_sure_to_have_been_made(program, before, after):
    args = W, X, jnp.asarray(True) if program is not after_a_loop else 3.0
    assert quantizations(program, *args, sharing=False) == before
    assert quantizations(program, *args, sharing=True) == after


def test_tensors_that_are_not_the_same_are_not_shared():
    assert quantizations(lambda w, x: (x @ w, (x + 1) @ w), W, X, sharing=True) == 3
