"""JAX functions that passes write into modules."""

import jax
import jax.numpy as jnp

from srjit._mlir import ir, new_context
from srjit.passes.emit.lowering import Library


def test_a_composite_of_jax_keeps_the_decomposition_that_was_lowered_with_it():
    taken = (
        "func.func private @a.double(%x: tensor<f32>) -> tensor<f32> { return %x : tensor<f32> }"
    )
    with new_context(), ir.Location.unknown():
        module = ir.Module.parse(taken).operation
        library = Library(module)
        for dtype in (jnp.float32, jnp.bfloat16):
            double = jax.lax.composite(lambda x: 2 * x, "a.double")
            library.lowered("srjit.f", 0, double, (((3,), jnp.dtype(dtype)),))
        assert module.verify()


def test_equal_functions_are_lowered_once_for_all_modules_and_again_where_jax_is_told_otherwise():
    lowered: list[int] = []

    def text(number: int, key: int) -> str:
        def add(x: jax.Array) -> jax.Array:
            lowered.append(number)
            return x + number

        with new_context(), ir.Location.unknown():
            module = ir.Module.create().operation
            Library(module).lowered("srjit.g", key, add, (((3,), jnp.dtype("float32")),))
            return str(module)

    assert text(1, key=1) == text(2, key=1)
    assert text(3, key=3) != text(1, key=1)
    with jax.default_matmul_precision("highest"):
        text(4, key=1)
    assert lowered == [1, 3, 4]
