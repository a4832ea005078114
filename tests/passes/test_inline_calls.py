"""Calls are inlined in programs of JAX's, and nothing is lost on the way."""

import jax
import numpy as np
import pytest

from small_programs import normal
from srjit import passes, rejit

X, W = normal(4, 8), normal(8, 8, seed=1)


def doubling(depth: int):
    """A chain of functions, each of which calls the next one twice."""
    if not depth:
        return jax.jit(lambda x: jax.numpy.sin(x) @ W)
    inner = doubling(depth - 1)
    return jax.jit(lambda x: inner(inner(x)))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_function_that_is_called_twice_becomes_two_copies_at_every_level(depth: int):
    lowered = jax.jit(doubling(depth)).lower(X)
    module = passes.parse("srjit-inline-calls").run(str(lowered.compiler_ir()))
    text = str(module)
    assert "call @" not in text and "func.func private" not in text
    assert text.count("stablehlo.dot_general") == 2**depth
    np.testing.assert_array_equal(rejit(lowered, "srjit-inline-calls")(X), lowered.compile()(X))


def test_sites_that_were_found_before_are_still_on_their_products_afterwards():
    text = str(jax.jit(doubling(1)).lower(X).compiler_ir())
    quantize = "srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8 mode=inference}"
    late = passes.parse(f"{quantize},srjit-legalize,srjit-inline-calls").run(text)
    assert "func.func private" not in str(late)
    numbers = [f"number = {n} : i64" for n in range(2)]
    assert all(number in str(late) for number in numbers)


MARKED = """
sdy.mesh @mesh = <["a"=2]>
func.func @main(%x: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) {
  %0 = call @plain(%x) : (tensor<4xf32>) -> tensor<4xf32>
  %1 = call @plain(%x) : (tensor<4xf32>) -> tensor<4xf32>
  %2 = sdy.func_data_flow_edge %1 {sdy.sharding = #sdy.sharding_per_value<[<@mesh, [{"a"}]>]>}
    : tensor<4xf32>
  %3 = call @entered(%x) : (tensor<4xf32>) -> tensor<4xf32>
  return %0, %2, %3 : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
}
func.func private @plain(%x: tensor<4xf32>) -> tensor<4xf32> {
  %0 = stablehlo.abs %x : tensor<4xf32>
  return %0 : tensor<4xf32>
}
func.func private @entered(%x: tensor<4xf32>) -> tensor<4xf32> {
  %0 = sdy.func_data_flow_edge %x {sdy.sharding = #sdy.sharding_per_value<[<@mesh, [{"a"}]>]>}
    : tensor<4xf32>
  return %0 : tensor<4xf32>
}
"""


def test_calls_whose_borders_shardy_has_marked_stay():
    module = passes.parse("srjit-inline-calls").run(MARKED)
    assert module.operation.verify()
    main, *_ = str(module).split("func.func private")
    assert main.count("call @plain") == main.count("call @entered") == main.count("abs") == 1
