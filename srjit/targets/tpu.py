"""TPUs: what their compiler makes of products, as benchmarks/tpu_rates.py measured it.

int8 has twice the rate of bfloat16 on v5e and v5p and half as much again on v6e; FP8 has twice the
rate on Ironwood (tpu7x). What is lost again on the way is what this file is about: a product whose
operands stand in the wrong order runs at the rate of bfloat16, so the codes are transposed first
where that is cheaper.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from srjit import _compat
from srjit.numerics.formats import get_format
from srjit.numerics.products import DotProduct, Product
from srjit.numerics.quantization import (
    Quantization,
    ScaledValues,
    emulated,
    tensor_amax,
    tensor_scales,
)
from srjit.numerics.random_bits import Key, Rng
from srjit.numerics.scaled_dot import multiply_values
from srjit.numerics.scaling import float_scales
from srjit.targets.base import Compiler, Target
from srjit.targets.layouts import Order, order_of, pinned, transposed, turned
from srjit.targets.tpu_chips import CHIPS, FP8, Chip

_SLICES = 16  # of a tensor in memory whose amax is found
_LANES = 128


def multiply(
    chip: Chip,
    product: Product,
    lhs: jax.Array,
    rhs: jax.Array,
    *extras: jax.Array,
    integer: bool,
) -> jax.Array:
    """See scaled_dot.Multiply."""
    dtypes = {lhs.dtype.name, rhs.dtype.name}
    if not isinstance(product, DotProduct):
        return multiply_values(product, lhs, rhs, *extras, integer=integer)
    product = dataclasses.replace(product, precision=None)
    if dtypes <= chip.native and integer == (dtypes == {"int8"}):
        # Pinned, or XLA would give codes that are also used transposed the layout of that use.
        lhs, rhs = pinned(lhs), pinned(rhs)
        lhs, rhs, product = _in_best_order(chip, product, lhs, rhs)
        return product(lhs, rhs, dtype=jnp.int32 if integer else jnp.float32)
    if dtypes <= FP8 | {"bfloat16"}:  # exact in bfloat16
        return product(lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16), dtype=jnp.float32)
    return multiply_values(product, lhs, rhs, integer=integer)


def _in_best_order(
    chip: Chip, product: DotProduct, lhs: jax.Array, rhs: jax.Array
) -> tuple[jax.Array, jax.Array, DotProduct]:
    """The operands as the chip multiplies them in the fewest cycles, copies included."""
    columns = math.prod(
        n for d, n in zip(product.rhs, rhs.shape, strict=True) if d not in product.lhs
    )
    cycles = 2 * lhs.size * columns / chip.rate
    if product.is_turned:  # the left operand is the one that the result's rows come from
        lhs, rhs = rhs, lhs
        product = dataclasses.replace(product, lhs=product.rhs, rhs=product.lhs)
    order = order_of(product)
    if order is None:
        return lhs, rhs, product

    def cost(wanted: Order) -> float:
        pairs = zip((lhs, rhs), order, wanted, strict=True)
        copied = sum(x.size for x, a, b in pairs if a != b)
        return cycles * chip.orders[wanted] + copied * chip.turning

    wanted = min(chip.orders, key=cost)
    if wanted[0] != order[0]:
        lhs, product = turned(product, 0, lhs, last=wanted[0] == "N", transpose=_transposed)
    if wanted[1] != order[1]:
        rhs, product = turned(product, 1, rhs, last=wanted[1] == "T", transpose=_transposed)
    return lhs, rhs, product


def _transposed(codes: jax.Array, permutation: Sequence[int]) -> jax.Array:
    """A transposed copy of codes, by a kernel where it is the last dimension that comes first."""
    from srjit.targets import tpu_kernels  # Pallas takes a tenth of a second to import

    plain = functools.partial(transposed, permutation=permutation)
    last = codes.ndim - 1
    if permutation != (last, *range(last)) or not tpu_kernels.can_transpose(codes):
        return plain(codes)
    return tpu_kernels.transpose(codes, plain)


def quantize(
    chip: Chip,
    x: jax.Array,
    spec: Quantization,
    key: Key | None,
    amax: jax.Array | None,
    rng: Rng,
    in_memory: bool,
) -> ScaledValues:
    """See targets.Quantize.

    What another operation makes is best quantized by that operation: its amax costs next to
    nothing, and its codes, if the scale is known. What is in memory, or has to wait there for its
    amax, is read by kernels. Both know one float32 scale a tensor; anything else is plain.
    """
    from srjit.targets import tpu_kernels

    element = get_format(spec.format).element
    is_plain = spec.shared != "tensor" or spec.hadamard or spec.rounding == "none"
    if is_plain or rng != "hash" or not tpu_kernels.fits(x.shape, x.dtype, element):
        return emulated(x, spec, key, amax=amax, rng=rng)
    converts = element.name in chip.converts
    if spec.scaling == "static":
        known = jnp.asarray(spec.amax, jnp.float32)
        encode = float_scales(known, element).encode
        if in_memory or "given" not in chip.fuses:
            made = tpu_kernels.quantize(x, element, encode, key, with_amax=True, converts=converts)
        else:
            made = tpu_kernels.quantize_plainly(
                x, encode, *(key or ()), element=element, with_amax=True
            )
        return ScaledValues(made[0], tensor_scales(made[1], known, element).scale, spec)
    waits = amax is None and spec.rounding not in chip.fuses
    if not in_memory and not waits:
        return emulated(x, spec, key, amax=amax, rng=rng)
    seen = tpu_kernels.amax(x, _amax_of_memory) if in_memory else tensor_amax(x)
    scales = tensor_scales(seen, amax, element)
    codes = tpu_kernels.quantize(x, element, scales.encode, key, converts=converts)
    return ScaledValues(codes, scales.scale, spec)


_WORDS = {jnp.dtype(jnp.bfloat16): jnp.int16, jnp.dtype(jnp.float32): jnp.int32}


def _amax_of_memory(x: jax.Array) -> jax.Array:
    """``tensor_amax`` of what is in memory, by XLA: it reads it faster in slices."""
    if x.shape[-1] % (_SLICES * _LANES) or _compat.explicit_sharding(jax.typeof(x)) is not None:
        return tensor_amax(x)
    word = _WORDS[x.dtype]
    parts = [
        lax.bitcast_convert_type(part, word) & jnp.iinfo(word).max
        for part in jnp.split(x, _SLICES, axis=-1)
    ]
    while len(parts) > 1:
        parts = [jnp.maximum(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return lax.bitcast_convert_type(jnp.max(parts[0]), x.dtype).astype(jnp.float32)


def _slices(name: str, one: str, four: str, eight: str) -> Compiler:
    sizes = {1: one, 4: four, 8: eight}
    return Compiler(platform="tpu", topologies={n: f"{name}:{size}" for n, size in sizes.items()})


TARGETS = tuple(
    Target(
        name=name,
        kinds=kinds,
        recipe=recipe,
        multiply=functools.partial(multiply, CHIPS[name]),
        quantize=functools.partial(quantize, CHIPS[name]),
        compiler=_slices(name, *slices),
        estimates=CHIPS[name],
    )
    for name, kinds, recipe, slices in (
        ("v5e", ("v5 lite", "v5e"), "int8", ("1x1", "2x2", "2x4")),
        ("v5p", ("tpu v5", "v5p"), "int8", ("1x1x1", "2x2x1", "2x2x2")),
        ("v6e", ("v6 lite", "v6e"), "int8", ("1x1", "2x2", "2x4")),
        # A chip of it has two cores, each a device of its own.
        ("tpu7x", ("tpu7x", "tpu v7"), "fp8", ("1x1x1", "1x2x1", "2x2x1")),
    )
)
