"""Products of codes on NVIDIA's GPUs, as XLA calls the libraries for them.

FP8 operands that enter a dot as they are become a call of cuBLASLt's FP8 product, the scale of the
result in it. Where an operand does not contract its last dimension, XLA transposes the codes. Codes
with scales of blocks become a call of cuDNN's block-scaled product, whose operands are (batch,
rows, contraction).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh

from srjit import _compat
from srjit.numerics.blocks import pad_to_multiple, spread_blocks
from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.products.dot import DotProduct
from srjit.products.product import Product
from srjit.products.quantized import Operand, ScaledValues, multiply_values, values_of
from srjit.targets.gpu.chips import Gpu
from srjit.targets.kernel_call import kernel_call
from srjit.targets.layouts import mesh_axes, pinned, placed
from srjit.targets.target import FASTER, Shapes, Specs

# Codes that come with scales of blocks, as cuDNN takes them: it has no product of E2M1 codes with
# E8M0 scales, but every such code is one of E4M3 too.
BLOCK_SCALED = {
    "nvfp4": jnp.dtype(jnp.float4_e2m1fn),
    "mxfp8": jnp.dtype(jnp.float8_e4m3fn),
    "mxfp4": jnp.dtype(jnp.float8_e4m3fn),
}
FP8 = {"float8_e4m3fn", "float8_e5m2"}


def multiply(product: Product, lhs: Operand, rhs: Operand, *extras: jax.Array) -> jax.Array:
    """See scaled_dot.Multiply."""
    if isinstance(product, DotProduct):
        if _is_block_scaled(product, lhs, rhs):
            return kernel_call(
                lhs,
                rhs,
                kernel=functools.partial(_block_scaled, product),
                formula=functools.partial(multiply_values, product),
                platform="cuda",
                partitions=True,
            )
        names = {values_of(operand).dtype.name for operand in (lhs, rhs)}
        # There is no product of two E5M2 operands.
        if names <= FP8 and names != {"float8_e5m2"}:
            return _fp8(product, lhs, rhs)
    return multiply_values(product, lhs, rhs, *extras)


def _fp8(product: DotProduct, lhs: Operand, rhs: Operand) -> jax.Array:
    native = functools.partial(dataclasses.replace(product, precision=None), dtype=jnp.float32)
    emulated = functools.partial(multiply_values, product)
    return kernel_call(
        values_of(lhs),
        values_of(rhs),
        # Pinned, or XLA would transpose what the codes are made from instead of the codes; but of
        # what is pinned, XLA gathers the shards.
        kernel=lambda lhs, rhs: native(pinned(lhs), pinned(rhs)),
        formula=functools.partial(lax.platform_dependent, cuda=native, default=emulated),
        platform="cuda",
    )


# ------------------------------------------------------------------------------ scales of blocks


def _is_block_scaled(product: DotProduct, lhs: Operand, rhs: Operand) -> bool:
    pair = [o.blocks for o in (lhs, rhs) if isinstance(o, ScaledValues) and o.blocks is not None]
    same = len(pair) == 2 and pair[0].dtype == pair[1].dtype
    # No type says how matrices are sharded that are made of dimensions whose types say it.
    typed = any(_compat.explicit_sharding(jax.typeof(blocks)) is not None for blocks in pair)
    return same and not typed and bool(product.contracting(0))


def _block_scaled(product: DotProduct, lhs: ScaledValues, rhs: ScaledValues) -> jax.Array:
    """``product(lhs, rhs)`` in float32, by XLA's block-scaled dot."""
    batch = [d for d in product.out if d in product.lhs and d in product.rhs]
    # In the order of rhs for both: blocks run along the last.
    summed = [d for d in product.rhs if d in product.lhs and d not in product.out]
    rows, columns = (list(product.groups(side)[1]) for side in (0, 1))
    sizes = dict(zip(product.lhs + product.rhs, lhs.values.shape + rhs.values.shape, strict=True))
    a, a_scales = _as_matrices(lhs, product.lhs, (batch, rows, summed))
    b, b_scales = _as_matrices(rhs, product.rhs, (batch, columns, summed))
    out = _matrix_product(a, b, a_scales, b_scales, product.sums)
    untransposed = product.untransposed()
    return product.transposed(out.reshape([sizes[d] for d in untransposed.out]))


@functools.partial(custom_partitioning, static_argnums=(4,))
def _matrix_product(
    lhs: jax.Array, rhs: jax.Array, lhs_scales: jax.Array, rhs_scales: jax.Array, sums: str
) -> jax.Array:
    """float32 (B, M, N) of codes (B, M, K) and (B, N, K) with scales (B, M, K/b), (B, N, K/b).

    Parts of it are added over devices as ``DotProduct.sums`` says.
    """
    return _by_library(jnp.float32, lhs, rhs, lhs_scales, rhs_scales)


def _by_library(dtype: Any, *operands: jax.Array) -> jax.Array:
    """Multiplies codes and scales of blocks on one device; in float32 or rounded to bfloat16."""
    config = {
        "lhs_batch_dimensions": [0],
        "rhs_batch_dimensions": [0],
        "dequantize_type": "BF16" if dtype == jnp.bfloat16 else "F32",
    }
    return jax.ffi.ffi_call(
        "__op$block_scaled_dot",
        jax.ShapeDtypeStruct((*operands[0].shape[:2], operands[1].shape[1]), dtype),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"scaled_dot_backend_config": config}),
    )(*operands)


def _shards_of_matrices(sums: str, mesh: Mesh, args: Any, result: Any) -> Any:
    """Every device multiplies what it has; sums over parts of the contraction are left."""
    (batch, rows, left), (_, columns, right) = (mesh_axes(a.sharding.spec, 3) for a in args[:2])
    summed = left if left == right else ()
    count = math.prod(mesh.shape[axis] for axis in summed)
    if args[2].shape[2] % count:  # blocks stay whole
        summed = ()
    wanted = mesh_axes(result.sharding.spec, 3)
    # An axis shards one dimension of the result: what it is wanted for, or codes are gathered less
    # than float32 results are sent around.
    of_columns = {axis for axis in columns if axis in wanted[2] or axis not in rows}
    columns = tuple(axis for axis in columns if axis in of_columns - {*batch, *summed})
    rows = tuple(axis for axis in rows if axis not in {*batch, *columns, *summed})
    place, out = functools.partial(placed, mesh), [batch, rows, columns]
    free = (d for d in (1, 2) if not out[d] and wanted[d] == summed and not result.shape[d] % count)
    scattered = next(free, None) if summed else None
    if scattered is not None:
        out[scattered] = summed

    def multiply_shards(*operands: jax.Array) -> jax.Array:
        dtype = jnp.bfloat16 if summed and sums == "bf16" else jnp.float32
        part = _by_library(dtype, *operands)
        if scattered is not None:
            part = lax.psum_scatter(part, summed, scatter_dimension=scattered, tiled=True)
        elif summed:
            part = lax.psum(part, summed)
        return part.astype(jnp.float32)

    lhs, rhs = place((batch, rows, summed)), place((batch, columns, summed))
    return mesh, multiply_shards, place(out), (lhs, rhs, lhs, rhs)


_matrix_product.def_partition(
    partition=_shards_of_matrices,
    sharding_rule="b m k, b n k, b m q, b n q -> b m n",
    reduction_factors=("k", "q"),
)


def _as_matrices(
    operand: ScaledValues, labels: tuple[int, ...], groups: tuple[list[int], list[int], list[int]]
) -> tuple[jax.Array, jax.Array]:
    """Codes as (batch, rows, contraction), and a scale for every row and block of it."""
    assert operand.blocks is not None
    order = [labels.index(d) for group in groups for d in group]
    last = order[-1]
    shape, spec = operand.values.shape, operand.spec
    along_rows = [d for d in spec.blocked_dims(shape) if d != last]
    scales = spread_blocks(operand.blocks, spec.block_size, shape, along_rows)
    codes = operand.values
    if operand.turned is not None and order == [len(shape) - 1, *range(len(shape) - 1)]:
        codes = jnp.moveaxis(operand.turned, 0, -1)  # and back, below: no copy of a copy
    codes = pad_to_multiple(codes, last, spec.block_size)

    def matrices(x: jax.Array) -> jax.Array:
        sizes = iter(x.shape[d] for d in order)
        merged = [math.prod(next(sizes) for _ in group) for group in groups]
        return lax.transpose(x, order).reshape(merged)

    return matrices(codes), matrices(scales)


# ----------------------------------------------------------------------------------- what is native


def is_native(gpu: Gpu, product: Product, shapes: Shapes, specs: Specs) -> bool:
    """See targets.Target."""
    if not isinstance(product, DotProduct):
        return False
    if any(q is None or q.rounding == "none" for q in specs):
        return False
    lhs, rhs = (_carrier(gpu, q) for q in specs if q)
    is_blocked = [q.is_blocked for q in specs if q]
    if any(is_blocked):
        scales = {get_format(q.format).scales for q in specs if q}
        same = all(is_blocked) and len(scales) == 1 and bool(product.contracting(0))
        return same and (gpu.rate(lhs, rhs) or 0) > FASTER
    # A product with a vector is none of a matrix unit's.
    sizes = dict(zip(product.lhs + product.rhs, shapes[0] + shapes[1], strict=True))
    if any(max((sizes[d] for d in product.groups(side)[1]), default=1) == 1 for side in (0, 1)):
        return False
    return (gpu.rate(lhs, rhs) or 0) > FASTER


def turns(gpu: Gpu, product: Product, shapes: Shapes, specs: Specs) -> tuple[bool, bool]:
    """See targets.Target: of squares, whose codes are the same for both ways to contract."""
    if not isinstance(product, DotProduct):
        return False, False
    first, second = (
        spec is not None
        and spec.shared == "square"
        and takes_blocks(gpu, spec)
        and len(shape) == 2
        and labels[-1] in product.out
        for spec, shape, labels in zip(specs, shapes, (product.lhs, product.rhs), strict=True)
    )
    return first, second


def _carrier(gpu: Gpu, spec: Quantization) -> str:
    """HLO's name of the dtype of an operand's codes, as a product reads them."""
    if not spec.is_blocked:
        name = get_format(spec.format).storage.dtype.name
    else:
        name = BLOCK_SCALED[spec.format].name if takes_blocks(gpu, spec) else "bfloat16"
    return {"int8": "s8"}.get(name, name.replace("float", "f").replace("_", ""))


def takes_blocks(gpu: Gpu, spec: Quantization) -> bool:
    """True if cuDNN multiplies such codes with the scales of their blocks there."""
    is_standard = spec.is_blocked and spec.block_size == get_format(spec.format).block
    is_known = spec.format in BLOCK_SCALED and not spec.apart
    return is_standard and is_known and gpu.has_block_scales
