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
