"""Quantization: a tensor as codes of a small format, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics import hadamard, random_bits, scaling
from srjit.numerics.formats import (
    Element,
    Format,
    Granularity,
    get_element,
    get_format,
    unknown_name,
)
from srjit.numerics.random_bits import Key, Rng
from srjit.numerics.rounding import round_to_grid, working_dtype
from srjit.numerics.scaling import ScaleRounding

Rounding = Literal["nearest", "stochastic", "none"]
Scaling = Literal["dynamic", "delayed", "static"]

_CHOICES = {
    "rounding": ("nearest", "stochastic", "none"),
    "scaling": ("dynamic", "delayed", "static"),
    "granularity": ("tensor", "channel", "block", "square"),
    "scale_rounding": ("standard", "up", "four_over_six", "eden"),
}
_EDEN_ROTATION = 128  # elements that are rotated, and corrected, together

# What the scales of a format are, and what may share one of them.
_SCALE_LAYOUTS = {
    "none": "which has no scales",
    "float32": "which has float32 scales",
    "e8m0": "which has power-of-two scales per block",
    "e4m3": "which has a scale per block",
}
_GRANULARITIES: dict[str, tuple[Granularity, ...]] = {
    "none": ("tensor",),
    "float32": ("tensor", "channel", "block", "square"),
    "e8m0": ("block", "square"),
    "e4m3": ("block", "square"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """How one tensor becomes codes.

    Attributes:
      format: ``int8``, ``int4``, ``fp8_e4m3``, ``fp8_e5m2``, ``mxfp8``, ``mxfp4``, ``nvfp4`` or
        ``bf16``.
      rounding: ``nearest`` (ties to even) or ``stochastic``; ``none`` leaves an operand of a
        program as it is, but for a Hadamard transform: the reference that averages converge to.
      axis: the dimension(s) that the product contracts. Blocks run along the last of them,
        squares along it and the last dimension that is left (or along two given axes); a channel
        is what is left. A site sets it; a recipe leaves it alone.
      granularity: what shares one scale: the ``tensor``, a ``channel``, a ``block`` of 1 x B along
        the contraction, or a ``square`` of B x B. None: what the format says.
      block: B. None: what the format says (16 for nvfp4, 32 for the others).
      scaling: ``dynamic`` (from the tensor itself), ``delayed`` (from earlier steps: state) or
        ``static`` (from ``amax``).
      amax: the largest magnitude that a static scale provides for; beyond it codes saturate.
      scale_rounding: ``standard`` is the format's own rule, which may clip the largest elements of
        a block (nvfp4 rounds scales to nearest, MX rounds them down); ``up`` never clips;
        ``four_over_six``, of nvfp4 to nearest, takes the largest element of a block to 6 or to 4,
        whichever leaves the smaller squared error. ``eden``, of nvfp4 after a Hadamard transform,
        is MS-EDEN (arXiv 2601.22813): elements go to nearest, and what is stochastic are the
        scales, corrected for what that lost, and signs that a product gives both of its operands
        before the transform; ``quantize`` on its own flips no signs.
      hadamard: transform 16 elements at a time (128 for ``eden``) along the contraction first. Both
        operands of a product have to.
    """

    format: str
    rounding: Rounding = "nearest"
    axis: int | tuple[int, ...] = -1
    granularity: Granularity | None = None
    block: int | None = None
    scaling: Scaling = "dynamic"
    amax: float | None = None
    scale_rounding: ScaleRounding = "standard"
    hadamard: bool = False

    def __post_init__(self) -> None:
        fmt = get_format(self.format)
        for field, known in _CHOICES.items():
            value = getattr(self, field)
            if value not in known and not (field == "granularity" and value is None):
                raise unknown_name(field, value, known)
        if self.shared not in _GRANULARITIES[fmt.scale]:
            fitting = " or ".join(map(repr, _GRANULARITIES[fmt.scale]))
            raise ValueError(
                f"granularity {self.granularity!r} does not fit format {self.format!r}, "
                f"{_SCALE_LAYOUTS[fmt.scale]}; use {fitting}"
            )
        if self.block is not None and not self._has_blocks_of(self.block):
            raise ValueError(
                f"block={self.block!r} does not fit granularity {self.shared!r} of format "
                f"{self.format!r}: a block is a positive number of elements of a blocked format"
            )
        if self.scale_rounding == "four_over_six" and (
            fmt.scale != "e4m3" or self.rounding == "stochastic"
        ):
            raise ValueError(
                "scale_rounding='four_over_six' picks scales by the error of rounding to nearest, "
                f"for format 'nvfp4': it does not fit rounding {self.rounding!r} of {self.format!r}"
            )
        if self.scale_rounding == "eden" and not (
            fmt.scale == "e4m3"
            and self.shared == "block"
            and self.hadamard
            and _EDEN_ROTATION % self.block_size == 0
        ):
            raise ValueError(
                "scale_rounding='eden' is for format 'nvfp4' with hadamard=True and "
                f"granularity='block', whose blocks fit into {_EDEN_ROTATION} elements"
            )
        if (self.scaling == "static") != (self.amax is not None):
            raise ValueError("scaling='static' takes amax=..., and only it does")
        if self.amax is not None and not 0 < self.amax < math.inf:
            raise ValueError(f"amax={self.amax} is no largest magnitude: it is positive and finite")
        if self.scaling != "dynamic" and (fmt.scale != "float32" or self.shared != "tensor"):
            raise ValueError(
                f"scaling={self.scaling!r} needs one float32 scale per tensor; "
                f"{self.format!r} with granularity {self.shared!r} has another layout"
            )

    @property
    def shared(self) -> Granularity:
        """The granularity, with the format's own in place of None."""
        return self.granularity or get_format(self.format).granularity

    @property
    def block_size(self) -> int:
        """B, with the format's own in place of None."""
        return self.block or get_format(self.format).block

    @property
    def rotation(self) -> int:
        """How many elements a Hadamard transform takes at a time; 0 if there is none."""
        size = _EDEN_ROTATION if self.scale_rounding == "eden" else hadamard.SIZE
        return size if self.hadamard else 0

    @property
    def draws_signs(self) -> bool:
        """Whether a product has to flip signs of its operands at random first."""
        return self.scale_rounding == "eden" and self.rounding == "stochastic"

    @property
    def unrotated(self) -> Quantization:
        """As near as it gets without a Hadamard transform; as unbiased as with it."""
        is_eden = self.scale_rounding == "eden"
        rounding = "up" if is_eden else self.scale_rounding
        return dataclasses.replace(self, hadamard=False, scale_rounding=rounding)

    def _has_blocks_of(self, size: object) -> bool:
        return isinstance(size, int) and size > 0 and self.shared in ("block", "square")

    @property
    def is_oriented(self) -> bool:
        """Whether the codes depend on which dimensions a product contracts."""
        return self.shared in ("channel", "block") or self.hadamard

    @property
    def is_hoistable(self) -> bool:
        """Whether the codes of one tensor are the same whenever it is quantized."""
        return self.rounding == "nearest" and self.scaling != "delayed"

    @property
    def is_blocked(self) -> bool:
        """Whether scales vary along the contraction, and so do not factor out of a product."""
        return self.shared in ("block", "square")

    def axes(self, ndim: int) -> tuple[int, ...]:
        """``axis`` as non-negative dimensions of an array with ``ndim`` dimensions."""
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        if any(not -ndim <= a < ndim for a in axes) and ndim:
            raise ValueError(f"axis {self.axis} is out of range for {ndim} dimensions")
        if self.hadamard and not ndim:
            raise ValueError("hadamard=True needs a dimension to run along; got a scalar")
        if ndim and not axes and (self.hadamard or self.shared in ("block", "square")):
            raise ValueError(f"axis={self.axis} names no dimension for blocks to run along")
        return tuple(a % ndim for a in axes) if ndim else ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedArray:
    """Codes with their scales; a pytree.

    Attributes:
      codes: the element dtype, of the quantized array's shape.
      scale: float32 (a scalar, or one per channel or int4 block), float8_e8m0fnu (MX) or
        float8_e4m3fn (NVFP4); dimensions that share a scale have size 1, blocked ones ceil(n / B).
      tensor_scale: NVFP4's float32 second level, else None.
      spec: the Quantization it came from.
    """

    codes: jax.Array
    scale: jax.Array
    tensor_scale: jax.Array | None
    spec: Quantization = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes."""
        return self.codes.shape

    def dequantize(self, dtype: Any = jnp.float32) -> jax.Array:
        """codes * scale * tensor_scale, as ``dtype``."""
        return dequantize(self, dtype)


def stochastic_round(x: jax.Array, dtype: Any, key: Any, *, rng: Rng = "hash") -> jax.Array:
    """Rounds ``x`` to ``dtype`` up or down at random, so that the mean is exact.

    Args:
      x: any float array. Nothing scales it: magnitudes beyond the largest finite value saturate.
      dtype: ``jnp.bfloat16``, ``float16``, ``float8_e4m3fn``, ``float8_e5m2``, ``float4_e2m1fn``,
        ``int8``, ``int4``, or the name of a format.
      key: a typed PRNG key, or an integer step.
      rng: ``hash`` or ``threefry``.

    Returns:
      x's shape in ``dtype``. Values of the grid never move. NaN and Inf stay NaN and Inf, or NaN
      where the dtype has no Inf; integers and E2M1 have neither, so there they become 0 (NaN) or
      saturate: ``quantize`` keeps them visible through its scale.

    Raises:
      TypeError: x is not floating point, or key is not a key.
      ValueError: nothing can be rounded to ``dtype``.
    """
    x = _as_float(x, "stochastic_round")
    words = random_bits.of_typed_shards(random_bits.as_key(key), x)
    return round_with(words, x, get_element(dtype), rng)


def round_with(words: random_bits.Key, x: jax.Array, element: Element, rng: Rng) -> jax.Array:
    """``stochastic_round`` by two key words, which are the same on every shard or are not."""
    bits = random_bits.random_bits(words, x, rng)
    work = x.astype(working_dtype(x.dtype))
    rounded = round_to_grid(work, element, bits)
    if not element.is_integer and element.dtype != jnp.float4_e2m1fn:
        rounded = _keep_visible(work, rounded)
    return cast(rounded, element)


def quantize(
    x: jax.Array, spec: Quantization, key: Any = None, *, rng: Rng = "hash"
) -> QuantizedArray:
    """Quantizes ``x``.

    Args:
      x: float array of any shape.
      spec: the format, rounding and layout of scales.
      key: a typed PRNG key or an integer step, for stochastic rounding.
      rng: ``hash`` or ``threefry``.

    Raises:
      TypeError: x is not floating point, or stochastic rounding has no key.
      ValueError: the spec's axis is not one of x's, or its scale is delayed, which needs state.
    """
    x = _as_float(x, "quantize")
    if spec.rounding == "stochastic" and key is None:
        raise TypeError("stochastic rounding needs key=: a typed PRNG key or an integer step")
    if spec.rounding == "none":
        raise ValueError("rounding='none' makes no codes: it is for operands inside programs")
    if spec.scaling == "delayed":
        raise ValueError("delayed scales are state: use srjit(...).init_state, or scaling='static'")
    words = None
    if spec.rounding == "stochastic":
        words = random_bits.of_typed_shards(random_bits.as_key(key), x)
    q = encode(x, spec, words, rng=rng)
    return dataclasses.replace(q, codes=cast(q.codes, get_format(spec.format).element))


def dequantize(q: QuantizedArray, dtype: Any = jnp.float32) -> jax.Array:
    """codes * scale * tensor_scale, as ``dtype``, of the codes' shape."""
    layout = get_format(q.spec.format).scale
    if layout == "none":
        return q.codes.astype(dtype)
    work = working_dtype(dtype)
    codes = q.codes.astype(work)
    if layout == "e8m0":
        scale, lift = (_expanded(s, q) for s in scaling.lifted_e8m0(q.scale))
        return scaling.lowered(codes * scale.astype(work), lift).astype(dtype)
    values = codes * _expanded(q.scale.astype(work), q)
    if q.tensor_scale is not None:
        values = values * aligned(q.tensor_scale, values.ndim).astype(work)
    return values.astype(dtype)


def encode(
    x: jax.Array,
    spec: Quantization,
    key: Key | None,
    *,
    before: jax.Array | None = None,
    rng: Rng = "hash",
    subnormal: bool = True,
) -> QuantizedArray:
    """``quantize`` with codes left in the working float dtype, and key words in place of a key.

    Args:
      x: float array; with a Hadamard transform, codes have its padded contraction.
      spec: the quantization.
      key: two uint32 scalars; None for nearest.
      before: float32 scalar for delayed scales, the largest amax of earlier steps; 0 if there was
        none.
      rng: ``hash`` or ``threefry``.
      subnormal: whether scales of subnormal numbers count: see ``scaling.nvfp4_scales`` and
        ``scaling.e8m0_scales``.
    """
    codes, scales, view = encoded(x, spec, key, before, rng, subnormal=subnormal)
    is_e4m3 = get_format(spec.format).scale == "e4m3"
    scale = scales.scale.astype(jnp.float8_e4m3fn) if is_e4m3 else scales.scale
    return QuantizedArray(view.merge(codes), scale, scales.tensor_scale, spec)


def prepared(x: jax.Array, spec: Quantization) -> jax.Array:
    """x in the working dtype, transformed if the spec says so."""
    x = x.astype(working_dtype(x.dtype))
    return hadamard.transform(x, spec.axes(x.ndim)[-1], spec.rotation) if spec.hadamard else x


def encoded(
    x: jax.Array,
    spec: Quantization,
    key: Key | None,
    before: jax.Array | None,
    rng: Rng,
    *,
    subnormal: bool,
) -> tuple[jax.Array, scaling.Scales, BlockView]:
    """Codes in the view that has blocks as dimensions, with the scales."""
    fmt = get_format(spec.format)
    x = prepared(x, spec)
    view = BlockView.of(x.shape, spec, spec.axes(x.ndim))
    if spec.scale_rounding == "eden":
        return *_eden(view.split(x), view, fmt.element, key, rng, subnormal), view
    bits = None if key is None else random_bits.random_bits(key, x, rng)
    if fmt.scale == "none":
        rounded = _keep_visible(x, round_to_grid(x, fmt.element, bits))
        one = jnp.ones((), x.dtype)
        return rounded, scaling.Scales(one, one), view
    blocks = view.split(x)
    if spec.scale_rounding == "four_over_six":
        return *_four_over_six(blocks, view, fmt.element, subnormal), view
    scales = _scales(blocks, view, spec, fmt, before, subnormal)
    noise = None if bits is None else view.split(bits)
    return round_to_grid(_encoded(blocks, view, scales), fmt.element, noise), scales, view


def _encoded(blocks: jax.Array, view: BlockView, scales: scaling.Scales) -> jax.Array:
    """Where the elements are on the grid's scale, unrounded."""
    lift = scales.lift
    raised = blocks if lift is None else scaling.lifted(blocks, view.spread(lift))
    return raised * view.spread(scales.encode)


def _four_over_six(
    blocks: jax.Array, view: BlockView, element: Element, subnormal: bool
) -> tuple[jax.Array, scaling.Scales]:
    """Codes to nearest and scales, of both that there are those with the smaller squared error."""
    six, four = scaling.four_over_six_scales(*_nvfp4_amax(blocks, view), subnormal)

    def rounded(scales: scaling.Scales) -> tuple[jax.Array, jax.Array]:
        y = _encoded(blocks, view, scales)
        codes = round_to_grid(y, element)
        off = (codes - y) * view.spread(scales.scale.astype(y.dtype))  # in one unit for both
        return codes, jnp.sum(off * off, axis=view.shared)

    (codes_six, error_six), (codes_four, error_four) = rounded(six), rounded(four)
    better = error_four < error_six
    scales = jax.tree.map(lambda a, b: jnp.where(better, a, b) if a.ndim else a, four, six)
    return jnp.where(view.spread(better), codes_four, codes_six), scales


def _eden(
    blocks: jax.Array,
    view: BlockView,
    element: Element,
    key: Key | None,
    rng: Rng,
    subnormal: bool,
) -> tuple[jax.Array, scaling.Scales]:
    """Codes to nearest, and scales that make up for what that lost, stochastically rounded."""
    scales = scaling.eden_scales(*_nvfp4_amax(blocks, view), subnormal)
    y = _encoded(blocks, view, scales)
    codes = round_to_grid(y, element)
    sf = scales.scale.astype(jnp.float32)
    size = view.spread(sf).astype(y.dtype)
    exact = jnp.where(size == 0, 0, y * size)  # all of a group in one unit; y may be infinite

    def with_exact(values: jax.Array) -> jax.Array:
        per_block = jnp.sum(exact * values, axis=view.shared)
        return view.over_groups(per_block, _EDEN_ROTATION // view.block)

    bits = None if key is None else random_bits.random_bits(key, sf, rng)
    corrected = scaling.eden_scale(sf, with_exact(exact), with_exact(codes * size), bits)
    return codes, scales._replace(scale=corrected)


def _scales(
    blocks: jax.Array,
    view: BlockView,
    spec: Quantization,
    fmt: Format,
    known: jax.Array | None,
    subnormal: bool,
) -> scaling.Scales:
    if spec.scaling == "static":
        known = jnp.asarray(spec.amax, blocks.dtype)
    if fmt.scale == "e4m3":
        return scaling.nvfp4_scales(*_nvfp4_amax(blocks, view), spec.scale_rounding, subnormal)
    amax = scaling.amax(blocks, view.shared, keepdims=spec.shared == "channel")
    if fmt.scale == "e8m0":
        return scaling.e8m0_scales(amax, fmt.element, spec.scale_rounding, subnormal)
    return tensor_scales(amax, known, fmt.element)


def _nvfp4_amax(blocks: jax.Array, view: BlockView) -> tuple[jax.Array, jax.Array]:
    """Of every block, and of the tensor, in float32."""
    block = scaling.amax(blocks.astype(jnp.float32), view.shared)
    return block, scaling.amax(block)


def tensor_scales(amax: jax.Array, known: jax.Array | None, element: Element) -> scaling.Scales:
    """Scales of a tensor that has ``amax``, made of an amax that is ``known`` if it is positive.

    A scale from elsewhere must not hide NaN and Inf; the codes need not wait for that.
    """
    if known is None:
        return scaling.float_scales(amax, element)
    scales = scaling.float_scales(jnp.where(known > 0, known.astype(amax.dtype), amax), element)
    visible = jnp.where(jnp.isfinite(amax), scales.scale, jnp.nan)
    return scales._replace(scale=visible, amax=amax.astype(jnp.float32))


def tensor_amax(x: jax.Array) -> jax.Array:
    """max|x| in float32."""
    return scaling.amax(x.astype(jnp.float32))


def as_float_scale(scale: jax.Array, dtype: Any) -> jax.Array:
    """Scales as ``dtype``, if they are normal; for E8M0, whose casts are slow or missing, too."""
    if scale.dtype != jnp.float8_e8m0fnu:
        return scale.astype(dtype)
    word = lax.bitcast_convert_type(scale, jnp.uint8).astype(jnp.int32)
    power = lax.bitcast_convert_type(word << 23, jnp.float32)
    return jnp.where(word == 255, jnp.nan, power).astype(dtype)


def aligned(scale: jax.Array, ndim: int) -> jax.Array:
    """A scale whose dimensions, if any, are leading ones (of vmap), at the codes' rank."""
    return scale.reshape(scale.shape + (1,) * (ndim - scale.ndim))


def _expanded(scale: jax.Array, q: QuantizedArray) -> jax.Array:
    """A number for each of q's scales, in a shape that broadcasts against the codes."""
    ndim = q.codes.ndim
    dims = blocked_dims(q.spec, q.codes.shape) if ndim else ()
    return aligned(spread_blocks(scale, q.spec, q.codes.shape, dims), ndim)


def blocked_dims(spec: Quantization, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions of a tensor along which elements share scales in blocks, ascending."""
    return BlockView.of(shape, spec, spec.axes(len(shape))).dims if spec.is_blocked else ()


def spread_blocks(
    scale: jax.Array, spec: Quantization, shape: tuple[int, ...], dims: Iterable[int]
) -> jax.Array:
    """Scales of blocks, repeated for every element along some dimensions.

    Args:
      scale: of the rank of ``shape``.
      spec: how the tensor was quantized.
      shape: the tensor's.
      dims: some of its ``blocked_dims``.
    """
    for d in dims:
        repeated = jnp.repeat(scale, spec.block_size, axis=d, total_repeat_length=None)
        scale = lax.slice_in_dim(repeated, 0, shape[d], axis=d)
    return scale


@dataclasses.dataclass(frozen=True)
class BlockView:
    """A tensor seen with its blocked dimensions d split in two, (ceil(n_d / B), B)."""

    shape: tuple[int, ...]
    dims: tuple[int, ...]
    block: int
    shared: tuple[int, ...] | None  # dimensions of the view that share a scale; None: all

    @classmethod
    def of(cls, shape: tuple[int, ...], spec: Quantization, axes: tuple[int, ...]) -> BlockView:
        """The view of a tensor whose blocks run along ``axes``."""
        ndim, kind = len(shape), spec.shared
        if kind == "tensor" or not axes:
            return cls(shape, (), 1, None)
        if kind == "channel":
            return cls(shape, (), 1, axes)
        dims = {axes[-1]} if kind == "block" else set(axes[-2:])
        if kind == "square" and len(axes) == 1:
            dims |= {max((d for d in range(ndim) if d not in axes), default=axes[0])}
        ordered = tuple(sorted(dims))
        shared = tuple(d + i + 1 for i, d in enumerate(ordered))
        return cls(shape, ordered, spec.block_size, shared)

    def split(self, x: jax.Array) -> jax.Array:
        """x as the view, padded with zeros."""
        shape: list[int] = []
        for d, n in enumerate(self.shape):
            if d in self.dims:
                x = hadamard.pad_to_multiple(x, d, self.block)
                shape += [x.shape[d] // self.block, self.block]
            else:
                shape.append(n)
        return x.reshape(shape) if self.dims else x

    def merge(self, view: jax.Array) -> jax.Array:
        """The view as x's shape, without the padding."""
        if not self.dims:
            return view
        padded = [n + (-n % self.block) * (d in self.dims) for d, n in enumerate(self.shape)]
        return lax.slice(view.reshape(padded), [0] * len(padded), self.shape)

    def over_groups(self, per_block: jax.Array, count: int) -> jax.Array:
        """Numbers of blocks along one dimension, summed over each ``count`` of them."""
        (d,) = self.dims
        shape = per_block.shape
        groups = per_block.reshape(*shape[:d], shape[d] // count, count, *shape[d + 1 :])
        sums = jnp.sum(groups, axis=d + 1, keepdims=True)
        return jnp.broadcast_to(sums, groups.shape).reshape(shape)

    def spread(self, scale: jax.Array) -> jax.Array:
        """One scale a block, with dimensions of size 1 for the elements of the blocks."""
        return jnp.expand_dims(scale, self.shared) if self.dims and self.shared else scale


def _as_float(x: Any, what: str) -> jax.Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{what} takes a floating-point array; got {x.dtype}{list(x.shape)}")
    return x


def cast(rounded: jax.Array, element: Element) -> jax.Array:
    """Grid values as the element dtype, exactly; 0 for NaN where the dtype has none."""
    if element.is_integer or element.dtype == jnp.float4_e2m1fn:
        rounded = jnp.where(jnp.isnan(rounded), jnp.zeros_like(rounded), rounded)
    return rounded.astype(element.dtype)


def _keep_visible(x: jax.Array, rounded: jax.Array) -> jax.Array:
    """``rounded`` with x's NaN and Inf in place of what saturated."""
    return jnp.where(jnp.isfinite(x), rounded, x)
