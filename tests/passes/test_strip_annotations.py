"""srjit-strip-annotations removes the passes' own attributes, and no others."""

import jax
import pytest

from small_programs import normal
from srjit import passes

from . import corpus

W, X = normal(8, 8, seed=1), normal(4, 8)
TEXT = str(jax.jit(lambda w, x: jax.lax.scan(lambda c, _: (c @ w, ()), x, length=3)[0])
           .lower(W, X).compiler_ir())  # fmt: skip
STRIP = passes.parse("srjit-strip-annotations{interface=true}")


def test_a_module_that_was_annotated_is_again_what_it_was():
    module = corpus.parsed(TEXT)
    before = corpus.generic(module)
    passes.parse("srjit-annotate-matmuls").run(module)
    assert "srjit." in corpus.generic(module)
    STRIP.run(module)
    assert corpus.generic(module) == before


@pytest.mark.parametrize("recipe", ["int8", "fp8-delayed"])
def test_nothing_is_left_to_strip_the_second_time(recipe: str):
    insert = f"srjit-annotate-matmuls,srjit-insert-quantize{{recipe={recipe}}}"
    module = passes.parse(f"{insert},srjit-legalize{{target=cpu}}").run(TEXT)
    once = corpus.generic(STRIP.run(module))
    assert corpus.generic(STRIP.run(module)) == once
    assert not any(f"srjit.{name}" in once for name in ("key =", "state =", "sites", "report"))


def test_attributes_that_the_bindings_cannot_read_stay():
    argument = "%x: tensor<f32> {other.z = dense<(1.0,2.0)> : tensor<complex<f32>>}"
    text = f"func.func @main({argument}) -> tensor<f32> {{\n  return %x : tensor<f32>\n}}"
    assert "complex<f32>" in corpus.generic(STRIP.run(corpus.parsed(text)))
