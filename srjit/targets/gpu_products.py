"""Products of codes on NVIDIA's GPUs, as XLA calls the libraries' for them.

FP8 operands that enter a dot as they are become a call of cuBLASLt's FP8 product, the scale of the
result in it. Where an operand does not contract its last dimension, XLA transposes the codes.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics.formats import get_format
from srjit.numerics.products import DotProduct, Product
from srjit.numerics.scaled_dot import Turned, multiply_values
from srjit.targets.base import Shapes, Specs, Target
from srjit.targets.gpu_chips import GPUS, Gpu
from srjit.targets.kernel_call import kernel_call
from srjit.targets.layouts import pinned

_HLO = {"float8_e4m3fn": "f8e4m3fn", "float8_e5m2": "f8e5m2", "int8": "s8"}
_FASTER = 1.1  # than bfloat16, at least, is a rate of its own


def multiply(
    product: Product,
    lhs: jax.Array,
    rhs: jax.Array,
    *extras: jax.Array,
    integer: bool,
    turned: Turned = (None, None),
) -> jax.Array:
    """See scaled_dot.Multiply."""
    emulated = functools.partial(multiply_values, product, integer=integer)
    names = {lhs.dtype.name, rhs.dtype.name}
    # There is no product of two E5M2 operands.
    is_fp8 = names <= _HLO.keys() - {"int8"} and names != {"float8_e5m2"}
    if not isinstance(product, DotProduct) or not is_fp8:
        return emulated(lhs, rhs, *extras)
    native = functools.partial(dataclasses.replace(product, precision=None), dtype=jnp.float32)
    return kernel_call(
        lhs,
        rhs,
        # Pinned, or XLA would transpose what the codes are made from instead of the codes; but of
        # what is pinned, XLA gathers the shards.
        kernel=lambda lhs, rhs: native(pinned(lhs), pinned(rhs)),
        formula=functools.partial(lax.platform_dependent, cuda=native, default=emulated),
        platform="cuda",
    )


def is_native(gpu: Gpu, product: Product, shapes: Shapes, specs: Specs) -> bool:
    """See targets.Target."""
    if not isinstance(product, DotProduct) or None in specs:
        return False
    if any(q is None or q.is_blocked or q.rounding == "none" for q in specs):
        return False
    lhs, rhs = (_HLO.get(get_format(q.format).element.name, "") for q in specs if q)
    # A product with a vector is none of a matrix unit's.
    sizes = [
        [n for d, n in zip(labels, shape, strict=True) if d in product.out and d not in other]
        for labels, other, shape in (
            (product.lhs, product.rhs, shapes[0]),
            (product.rhs, product.lhs, shapes[1]),
        )
    ]
    if any(max(free, default=1) == 1 for free in sizes):
        return False
    return (gpu.rate(lhs, rhs) or 0) > _FASTER


def target_of(name: str, recipe: str) -> Target:
    """A GPU of the table as a target; its name is also what its driver calls it."""
    gpu = GPUS[name]
    return Target(
        name=name,
        kinds=(name,),
        recipe=recipe,
        native=functools.partial(is_native, gpu),
        multiply=multiply,
        compiler=gpu.compiler,
        peak=gpu.rate,
    )
