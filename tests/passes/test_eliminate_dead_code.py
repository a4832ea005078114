"""Dead code goes from modules that JAX did not write."""

from srjit import passes

from . import corpus
from .modules_left_alone import LEFT_ALONE


def test_dead_code_goes_without_what_lives_in_other_blocks() -> None:
    text = LEFT_ALONE["@main of several blocks"].text
    module = corpus.parsed(text)
    before = corpus.generic(module)
    passes.parse("srjit-eliminate-dead-code").run(module)
    assert corpus.generic(module) == before
