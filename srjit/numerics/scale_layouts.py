"""Layouts of scales: an object for each, which formats share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics import scaling
from srjit.numerics.blocks import BlockView, Granularity, aligned
from srjit.numerics.elements import ELEMENTS, Element
from srjit.numerics.rounding import round_to_grid
from srjit.numerics.scaling import ScaleRounding, Scales

Expand = Callable[[jax.Array], jax.Array]
EDEN_ROTATION = 128  # elements that are rotated, and corrected, together


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to encode a tensor.

    Attributes:
      view: what shares a scale.
      element: the grid that scales take the tensor to.
      rounding: of the scales.
      known: an amax to use in place of the tensor's own, if positive; see ``takes_amax``. A number
        is one that is given once and for all.
      has_nan: whether codes can be NaN.
      draw: noise for an array of that shape; None where rounding is to nearest.
      subnormal: whether scales of subnormal numbers count: see ``scaling.nvfp4_scales`` and
        ``scaling.e8m0_scales``.
      is_own: whether what is known is the tensor's own amax.
    """

    view: BlockView
    element: Element
    rounding: ScaleRounding
    known: jax.Array | float | None
    has_nan: bool
    draw: Callable[[jax.Array], jax.Array] | None
    subnormal: bool
    is_own: bool = False


class ScaleLayout:
    """A kind of scale: its dtype, how it is made, and what it does.

    Attributes:
      says: the layout in words, for messages.
      granularities: what may share a scale.
      dtype: of scales in arrays; None: the dtype that codes are computed in.
      significant_bits: how many more significant bits a code times its scale has than a code.
      has_tensor_scale: whether the scales of blocks have a float32 scale of the tensor above them.
      takes_amax: whether the scale of a tensor may be made of another amax than its own.
    """

    says: str
    granularities: tuple[Granularity, ...] = ("block", "square")
    dtype: Any = None
    significant_bits: int = 0
    has_tensor_scale: bool = False
    takes_amax: bool = False

    def roundings(self, element: Element) -> tuple[ScaleRounding, ...]:
        """The ways in which scales of an element may be rounded."""
        del element
        return "standard", "up"

    def scales(self, blocks: jax.Array, how: Request) -> Scales:
        """The scales of a tensor, given as its view splits it."""
        raise NotImplementedError

    def encode(self, x: jax.Array, how: Request) -> tuple[jax.Array, Scales]:
        """Codes of x, split as its view does, and the scales."""
        view = how.view
        noise = how.draw and view.split(how.draw(x))
        blocks = view.split(x)
        scales = self.scales(blocks, how)
        return round_to_grid(on_grid(blocks, view, scales), how.element, noise), scales

    def decode(
        self, codes: jax.Array, scale: jax.Array, tensor_scale: jax.Array | None, expand: Expand
    ) -> jax.Array:
        """codes * scale * tensor_scale.

        Args:
          codes: in the dtype to compute in.
          scale: of every block.
          tensor_scale: where there is one.
          expand: makes one number for each scale broadcast against the codes.
        """
        values = codes * expand(scale.astype(codes.dtype))
        if tensor_scale is not None:
            values = scaling.multiplied(values, aligned(tensor_scale, values.ndim))
        return values

    def as_float(self, scale: jax.Array, dtype: Any) -> jax.Array:
        """Scales as ``dtype``, if they are normal numbers."""
        return scale.astype(dtype)


class _NoScales(ScaleLayout):
    """Codes are the values themselves."""

    says = "which has no scales"
    granularities = ("tensor",)

    def encode(self, x: jax.Array, how: Request) -> tuple[jax.Array, Scales]:
        """See the base class; NaN and Inf stay."""
        one = jnp.ones((), x.dtype)
        rounded = round_to_grid(x, how.element, how.draw and how.draw(x))
        return keep_visible(x, rounded), Scales(one, one)

    def decode(
        self, codes: jax.Array, scale: jax.Array, tensor_scale: jax.Array | None, expand: Expand
    ) -> jax.Array:
        """See the base class."""
        return codes


class _Float32(ScaleLayout):
    """scale = amax / M, of anything; float64 of float64."""

    says = "which has float32 scales"
    granularities = ("tensor", "channel", "block", "square")
    significant_bits = 24
    takes_amax = True

    def scales(self, blocks: jax.Array, how: Request) -> Scales:
        """See the base class; no amax that is divided by M clips, however scales are rounded."""
        if how.known is not None and how.is_own:
            shape = jax.eval_shape(how.view.amax, blocks).shape
            return scaling.float_scales(jnp.broadcast_to(how.known, shape), how.element)
        amax = how.view.amax(blocks)
        return scaling.tensor_scales(amax, how.known, how.element, None if how.has_nan else amax)

    def encode(self, x: jax.Array, how: Request) -> tuple[jax.Array, Scales]:
        """See the base class; where scales do not show NaN and Inf, codes do if they can."""
        codes, scales = super().encode(x, how)
        if how.known is None or how.is_own or not how.has_nan:
            return codes, scales
        return keep_visible(how.view.split(x), codes), scales


class _E8M0(ScaleLayout):
    """Powers of two, of blocks: OCP Microscaling Formats v1.0."""

    says = "which has power-of-two scales per block"
    dtype = jnp.dtype(jnp.float8_e8m0fnu)

    def scales(self, blocks: jax.Array, how: Request) -> Scales:
        """See the base class."""
        return scaling.e8m0_scales(how.view.amax(blocks), how.element, how.rounding, how.subnormal)

    def decode(
        self, codes: jax.Array, scale: jax.Array, tensor_scale: jax.Array | None, expand: Expand
    ) -> jax.Array:
        """See the base class; scales may be subnormal."""
        power, lift = map(expand, scaling.lifted_e8m0(scale))
        return scaling.lowered(codes * power.astype(codes.dtype), lift)

    def as_float(self, scale: jax.Array, dtype: Any) -> jax.Array:
        """See the base class; casts of E8M0 are slow or missing."""
        word = lax.bitcast_convert_type(scale, jnp.uint8).astype(jnp.int32)
        power = lax.bitcast_convert_type(word << 23, jnp.float32)
        return jnp.where(word == 255, jnp.nan, power).astype(dtype)


class _NvFp4(ScaleLayout):
    """E4M3 of blocks under a float32 scale of the tensor (arXiv 2509.25149)."""

    says = "which has a scale per block"
    dtype = jnp.dtype(jnp.float8_e4m3fn)
    significant_bits = 4
    has_tensor_scale = True

    def roundings(self, element: Element) -> tuple[ScaleRounding, ...]:
        """See the base class; what papers have found for E2M1 is of its values alone."""
        of_e2m1 = element == ELEMENTS["float4_e2m1fn"]
        return ("standard", "up", *(("four_over_six", "eden") if of_e2m1 else ()))

    def scales(self, blocks: jax.Array, how: Request) -> Scales:
        """See the base class; only of ``standard`` and ``up``."""
        largest = how.element.max
        top = round(largest * ELEMENTS["float8_e4m3fn"].max)
        return _nvfp4_scales(_two_levels(blocks, how.view), how, how.rounding, top, largest)

    def encode(self, x: jax.Array, how: Request) -> tuple[jax.Array, Scales]:
        """See the base class."""
        if how.rounding == "four_over_six":
            return _four_over_six(how.view.split(x), how)
        if how.rounding == "eden":
            return _eden(how.view.split(x), how)
        return super().encode(x, how)


def _two_levels(blocks: jax.Array, view: BlockView) -> tuple[jax.Array, jax.Array]:
    """amax of every block, and of the tensor, or of each of its groups, in float32."""
    block = view.amax(blocks.astype(jnp.float32))
    return block, view.overall(block)


def _nvfp4_scales(
    levels: tuple[jax.Array, jax.Array],
    how: Request,
    rounding: ScaleRounding,
    top: int,
    largest: float,
) -> Scales:
    """``scaling.nvfp4_scales``, with one tensor scale for each of what the view takes overall."""
    block, tensor = levels
    beside = how.view.beside(tensor)
    scales = scaling.nvfp4_scales(block, beside, rounding, how.subnormal, top, largest)
    if beside is tensor:
        return scales
    own = scaling.nvfp4_scales(tensor, tensor, rounding, how.subnormal, top, largest)
    return scales._replace(tensor_scale=own.tensor_scale)


def _four_over_six(blocks: jax.Array, how: Request) -> tuple[jax.Array, Scales]:
    """Codes to nearest, a block's largest to 6 or to 4, whichever has the smaller squared error.

    The tensor's scale leaves room for that: S = 1536/A, with 1536 = 6 * 256, so that E4M3 has
    b * S / 4 (arXiv 2512.02010).
    """
    view = how.view
    levels = _two_levels(blocks, view)

    def rounded(largest: int) -> tuple[Scales, jax.Array, jax.Array]:
        scales = _nvfp4_scales(levels, how, "standard", 1536, largest)
        y = on_grid(blocks, view, scales)
        codes = round_to_grid(y, how.element)
        off = (codes - y) * view.spread(scales.scale.astype(y.dtype))  # in one unit for both
        return scales, codes, jnp.sum(off * off, axis=view.shared)

    (six, codes_six, error_six), (four, codes_four, error_four) = rounded(6), rounded(4)
    better = error_four < error_six
    of_blocks = (scales._replace(tensor_scale=None) for scales in (four, six))
    scales = jax.tree.map(functools.partial(jnp.where, better), *of_blocks)
    scales = scales._replace(tensor_scale=six.tensor_scale)  # of both, and of no block
    return jnp.where(view.spread(better), codes_four, codes_six), scales


def _eden(blocks: jax.Array, how: Request) -> tuple[jax.Array, Scales]:
    """Codes to nearest, and scales that make up for what that lost, stochastically rounded."""
    view = how.view
    # A block's largest element goes to 6 / (0.93 * 17/16) = 6.07, with the least error after a
    # rotation, and the tensor's to 256 times that: so E4M3 has up to 1.75 times of every scale
    # (arXiv 2601.22813, and its authors' kernels).
    levels = _two_levels(blocks, view)
    scales = _nvfp4_scales(levels, how, "standard", 1554, 1554 / 256)
    y = on_grid(blocks, view, scales)
    codes = round_to_grid(y, how.element)
    sf = scales.scale.astype(jnp.float32)
    size = view.spread(sf).astype(y.dtype)
    exact = jnp.where(size == 0, 0, y * size)  # all of a group in one unit; y may be infinite

    def with_exact(values: jax.Array) -> jax.Array:
        per_block = jnp.sum(exact * values, axis=view.shared)
        return view.over_groups(per_block, EDEN_ROTATION // view.block)

    # With <x, x> / <x, q> of the groups that are rotated together, q has the length along x that x
    # has: on average over rotations of x there is no error (S. Vargaftik et al., "EDEN", 2022).
    of_squares, of_products = with_exact(exact), with_exact(codes * size)
    correction = of_squares / jnp.where(of_products == 0, of_squares, of_products)
    correction = jnp.where(of_products == 0, jnp.ones_like(correction), correction)
    corrected = sf * correction.astype(sf.dtype)
    rounded = round_to_grid(corrected, ELEMENTS["float8_e4m3fn"], how.draw and how.draw(sf))
    return codes, scales._replace(scale=rounded)


def on_grid(blocks: jax.Array, view: BlockView, scales: Scales) -> jax.Array:
    """The elements on the grid's scale, unrounded."""
    lift = scales.lift
    raised = blocks if lift is None else scaling.lifted(blocks, view.spread(lift))
    return raised * view.spread(scales.encode)


def keep_visible(x: jax.Array, rounded: jax.Array) -> jax.Array:
    """``rounded`` with x's NaN and Inf in place of what saturated."""
    return jnp.where(jnp.isfinite(x), rounded, x)


NO_SCALES: ScaleLayout = _NoScales()
FLOAT32: ScaleLayout = _Float32()
E8M0: ScaleLayout = _E8M0()
NVFP4: ScaleLayout = _NvFp4()
