"""Quantized operands as programs hold them, and their products: scales where they factor out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from srjit.choices import Rng
from srjit.numerics.arrays import QuantizedArray
from srjit.numerics.blocks import aligned, spread_blocks
from srjit.numerics.encode import encoded, prepared, viewed
from srjit.numerics.formats import get_format
from srjit.numerics.groups import Groups
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key
from srjit.numerics.scale_layouts import NO_SCALES
from srjit.numerics.scaling import UNSEEN, split
from srjit.products.dot import DotProduct
from srjit.products.product import Product


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledValues:
    """A quantized operand as programs hold it: what is multiplied, and the factor of the result.

    Attributes:
      values: codes. Block scales, which do not factor out of a product, are multiplied in unless
        they are beside them; such values are exact in bfloat16 for MX and NVFP4.
      scale: the factor that is left (per tensor, or per channel with size-1 dimensions), or None.
        Of rows in groups, one for each group along the dimension of the rows.
      spec: the Quantization it came from.
      turned: the values with their last dimension first, where that came with them, or None.
      blocks: the scales of blocks, as of ``QuantizedArray.scale``, for targets that multiply codes
        with such scales; or None.
      seen: the operand's own amax, a scalar, for the history of a delayed scale, or for where the
        operand is computed again; for a history, one for each group that has its own; or None.
    """

    values: jax.Array
    scale: jax.Array | None
    spec: Quantization = dataclasses.field(metadata={"static": True})
    turned: jax.Array | None = None
    blocks: jax.Array | None = None
    seen: jax.Array | None = None

    @property
    def merged(self) -> jax.Array:
        """The values with block scales multiplied in; bfloat16 if they are beside them."""
        if self.blocks is None:
            return self.values
        scale = _spread(self.blocks, self.spec, self.values.shape, jnp.dtype(jnp.float32))
        return (self.values.astype(jnp.float32) * scale).astype(jnp.bfloat16)

    @property
    def alone(self) -> ScaledValues:
        """Without the turned copy, and without what only a history wants."""
        return dataclasses.replace(self, turned=None, seen=None)

    @property
    def is_integer(self) -> bool:
        """True if the values are integers to 127, for integer units."""
        spec = self.spec
        is_grid = get_format(spec.format).element.is_integer and not spec.is_blocked
        return is_grid and spec.rounding != "none"


def emulated(
    x: jax.Array,
    spec: Quantization,
    key: Key | None,
    *,
    before: jax.Array | None = None,
    rng: Rng = "hash",
    shows: bool = False,
    groups: Groups | None = None,
) -> ScaledValues:
    """``encode`` with block scales multiplied in; arguments as there.

    With ``shows``, the amax of a dynamic scale is ``seen``, as that of a delayed one is.

    Scales are normal numbers, so codes of tensors near 2^-126 are smaller than they could be: see
    ``scaling.nvfp4_scales`` and ``scaling.e8m0_scales``.
    """
    if spec.rounding == "none":
        values = prepared(x, spec)
        if spec.scaling != "delayed":
            return ScaledValues(values, None, spec)
        amax = viewed(values, spec, groups).amax(values.astype(jnp.float32))
        return ScaledValues(values, None, spec, seen=_seen(amax, spec, groups))
    codes, scales, view = encoded(
        x, spec, key, before=before, rng=rng, subnormal=False, groups=groups
    )
    layout = get_format(spec.format).scales
    if not spec.is_blocked:
        left = None if layout is NO_SCALES else scales.scale
        wanted = scales.amax if shows or spec.scaling == "delayed" else None
        seen = None if wanted is None else _seen(wanted, spec, groups)
        return ScaledValues(view.merge(codes), left, spec, seen=seen)
    values = codes * view.spread(layout.as_float(scales.scale, codes.dtype))
    return ScaledValues(view.merge(values), scales.tensor_scale, spec)


def _seen(amax: jax.Array, spec: Quantization, groups: Groups | None) -> jax.Array:
    """The amax that a history gets to see: nothing of groups without rows."""
    if spec.group_dim is None:
        return jnp.max(amax) if spec.apart else amax
    if groups is not None:
        present = groups.sizes() > 0
        axes = tuple(d for d in range(present.ndim) if d != groups.axis)
        amax = jnp.where(jnp.any(present, axis=axes, keepdims=True), amax, UNSEEN)
    return amax.reshape(-1)


def as_held(q: QuantizedArray, like: ScaledValues) -> ScaledValues:
    """An operand as a program quantizes it, made of codes and scales that are there already.

    Args:
      q: what ``encode(..., subnormal=False)`` gives of the operand, codes in its working dtype.
      like: the same operand, as the program that is to hold it quantizes it; shapes and dtypes.

    Returns:
      ``like``'s values, bit for bit, without a turned copy.
    """
    values, scale, blocks = q.codes, q.scale, None
    if like.blocks is not None:
        scale, blocks = q.tensor_scale, q.scale
    elif q.spec.is_blocked:
        values = values * _spread(q.scale, q.spec, values.shape, values.dtype)
        scale = q.tensor_scale
    elif get_format(q.spec.format).scales is NO_SCALES:
        scale = None
    return ScaledValues(values.astype(like.values.dtype), scale, q.spec, blocks=blocks)


def _spread(
    scale: jax.Array, spec: Quantization, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
    """Scales of blocks as floats, one for every element."""
    scale = get_format(spec.format).scales.as_float(scale, dtype)
    return spread_blocks(scale, spec.block_size, shape, spec.blocked_dims(shape))


# ----------------------------------------------------------------------------------------- products

Operand = jax.Array | ScaledValues


class Multiply(Protocol):
    """A target's product of two operands."""

    def __call__(
        self, product: Product, lhs: Operand, rhs: Operand, *extras: jax.Array
    ) -> jax.Array:
        """``product(lhs, rhs)``, but for the operands' ``scale``; of integers, exactly.

        Args:
          product: what is multiplied how.
          lhs, rhs: codes, or a float array.
          *extras: group sizes of a ragged product.
        """
        ...


class MultiplyGroups(Protocol):
    """A target's product of codes with groups, multiplied by factors on the way."""

    def __call__(
        self,
        product: Product,
        lhs: Operand,
        rhs: Operand,
        *extras: jax.Array,
        factors: Sequence[jax.Array],
        dtype: Any,
    ) -> jax.Array | None:
        """``factored`` of the product; None where ``Multiply`` is to multiply.

        Args:
          product, lhs, rhs, *extras: as of ``Multiply``.
          factors: one after the other, each a scalar or of the result's rank, with one number for
            each group.
          dtype: of the result.
        """
        ...


def multiply_values(product: Product, lhs: Operand, rhs: Operand, *extras: jax.Array) -> jax.Array:
    """The portable Multiply: integers accumulate in int32, the rest in float32."""
    a, b = values_of(lhs), values_of(rhs)
    dtype = jnp.float64 if jnp.float64 in (a.dtype, b.dtype) else jnp.float32
    if not isinstance(product, DotProduct):
        return product(a.astype(dtype), b.astype(dtype), *extras, dtype=dtype)
    if are_integers(lhs, rhs):
        plain = dataclasses.replace(product, precision=None)
        return plain(a.astype(jnp.int8), b.astype(jnp.int8), dtype=jnp.int32)
    if a.dtype == b.dtype == jnp.bfloat16:
        return dataclasses.replace(product, precision=None)(a, b, dtype=dtype)
    exact = dataclasses.replace(product, precision=lax.Precision.HIGHEST)
    return exact(a.astype(dtype), b.astype(dtype), dtype=dtype)


def values_of(operand: Operand) -> jax.Array:
    """The values that are multiplied, as one array."""
    return operand.merged if isinstance(operand, ScaledValues) else operand


def are_integers(lhs: Operand, rhs: Operand) -> bool:
    """True if both operands hold integers to 127."""
    return all(isinstance(o, ScaledValues) and o.is_integer for o in (lhs, rhs))


def scaled_dot(
    product: Product,
    lhs: Operand,
    rhs: Operand,
    *extras: jax.Array,
    dtype: Any,
    multiply: Multiply = multiply_values,
    multiply_groups: MultiplyGroups | None = None,
    reduce: str | None = None,
) -> jax.Array:
    """The product of two operands, each quantized or in high precision.

    Args:
      product: what is multiplied how.
      lhs, rhs: a quantized operand or a float array.
      *extras: group sizes of a ragged product.
      dtype: of the result.
      multiply: the target's way to multiply values.
      multiply_groups: its way to multiply codes with groups, if it has one.
      reduce: as of ``Recipe.reduce``.
    """
    (a, a_scale), (b, b_scale) = (
        _factored(product, side, operand, extras) for side, operand in enumerate((lhs, rhs))
    )
    scales = [split(scale) for scale in (a_scale, b_scale) if scale is not None]
    if len(scales) == 1:  # beside codes are numbers: of codes alone sums may be too large or small
        pair = (a, b), (b, a)
        side = int(a_scale is None)
        raised = _raised(product, side, *pair[side], extras)
        a, b = (raised, b) if side == 0 else (a, raised)
    if isinstance(product, DotProduct) and reduce is None:
        product = dataclasses.replace(product, sums=_SUMS.get(jnp.dtype(dtype).name, ""))
    factors: list[jax.Array] = []
    if len(scales) == 1:
        factors = [scales[0][0]]
    elif scales:  # one after the other, or their product would be 0 before the result is
        (rest, power), (other_rest, other_power) = scales
        factors = [(rest * power) * (other_rest * other_power), power * other_power]
    if multiply_groups is not None and extras:
        out = multiply_groups(product, a, b, *extras, factors=factors, dtype=dtype)
        if out is not None:
            return out
    return factored(product, multiply(product, a, b, *extras), factors, extras, dtype)


def factored(
    product: Product,
    out: jax.Array,
    factors: Sequence[jax.Array],
    extras: tuple[jax.Array, ...],
    dtype: Any,
) -> jax.Array:
    """A product's result times factors, one after the other."""
    out = out.astype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)
    groups = product.groups_of(2, out.shape, *extras) if any(f.ndim for f in factors) else None
    for factor in factors:  # of groups, one for each row of the result
        factor = factor if groups is None else groups.take(factor)
        out = out * factor.astype(out.dtype)
    return out.astype(dtype)


# In which partial products are added, by the dtype of the program's own product. They are not
# scaled yet: beyond float16.
_SUMS = {"bfloat16": "bf16", "float16": "bf16", "float32": "f32"}


def _factored(
    product: Product, side: int, operand: Operand, extras: tuple[jax.Array, ...]
) -> tuple[Operand, jax.Array | None]:
    """The operand to multiply, and a factor of the result: a scalar, or of the result's rank.

    Where rows of the result stand in groups, it has one number for each group in place of the rows.
    """
    if not isinstance(operand, ScaledValues) or operand.scale is None:
        return operand, None
    scale = aligned(operand.scale, operand.values.ndim)
    of_result = _in_result(product, side, operand.spec, scale)
    if of_result is not None:
        return operand, of_result
    scale = _by_rows(product, side, operand, scale, extras)
    return operand.merged.astype(scale.dtype) * scale, None


def _by_rows(
    product: Product,
    side: int,
    operand: ScaledValues,
    scale: jax.Array,
    extras: tuple[jax.Array, ...],
) -> jax.Array:
    """A scale as it broadcasts against its operand's values."""
    if operand.spec.ragged is None:
        return scale
    groups = product.groups_of(side, operand.values.shape, *extras)
    assert groups is not None
    return groups.take(scale)


def _raised(
    product: Product, side: int, operand: Operand, other: Operand, extras: tuple[jax.Array, ...]
) -> jax.Array:
    """Codes times the power of two in their scale, within 4 of the numbers that they stand for."""
    assert isinstance(operand, ScaledValues) and operand.scale is not None
    values, (_, power) = operand.merged, split(aligned(operand.scale, operand.values.ndim))
    power = _by_rows(product, side, operand, power, extras)
    is_narrow = values.dtype.itemsize <= 2 and values_of(other).dtype == jnp.bfloat16
    dtype = jnp.dtype(jnp.bfloat16) if is_narrow else power.dtype  # both are exact
    return values.astype(dtype) * (power * power).astype(dtype)


def _in_result(
    product: Product, side: int, spec: Quantization, scale: jax.Array
) -> jax.Array | None:
    """A scale (of its operand's rank) as a factor of the result; None where it varies in a sum."""
    if spec.group_dim is not None:
        return product.by_group(side, 2, scale)
    if scale.size == 1:
        return lax.reshape(scale, ())
    if not isinstance(product, DotProduct):
        return None
    labels = product.lhs if side == 0 else product.rhs
    summed = [labels.index(label) for label in product.groups(side)[2]]
    if any(scale.shape[d] != 1 for d in summed):
        return None
    kept = [d for d in range(scale.ndim) if d not in summed]
    in_order = sorted(kept, key=lambda d: product.out.index(labels[d]))
    scale = lax.transpose(lax.squeeze(scale, summed), [kept.index(d) for d in in_order])
    sizes = {labels[d]: n for d, n in zip(in_order, scale.shape, strict=True)}
    return scale.reshape([sizes.get(label, 1) for label in product.out])
