"""The way from one tensor to its codes: what a recipe says of an operand."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

from srjit.choices import unknown_name
from srjit.numerics import hadamard
from srjit.numerics.blocks import BlockView, Granularity
from srjit.numerics.formats import formats_with, get_format
from srjit.numerics.scale_layouts import EDEN_ROTATION
from srjit.numerics.scaling import ScaleRounding

Rounding = Literal["nearest", "stochastic", "none"]
Scaling = Literal["dynamic", "delayed", "static"]

_CHOICES = {
    "rounding": get_args(Rounding),
    "scaling": get_args(Scaling),
    "granularity": get_args(Granularity),
    "scale_rounding": get_args(ScaleRounding),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """The way from one tensor to its codes.

    Attributes:
      format: the name of one of ``numerics.formats.FORMATS``, such as ``int8`` or ``nvfp4``.
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
      apart: dimensions, counted from the end, whose entries have no scale in common, such as the
        examples of per-example gradients. A site sets it; a recipe leaves it alone.
      grouped: the dimension, counted from the end, of which every entry is of a group of rows, such
        as an expert's weight, and has scales of its own, with a history if they are delayed. A site
        sets it.
      ragged: the dimension, counted from the end, whose rows stand in groups that have scales of
        their own; the groups come with the operand. A site sets it.
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
    apart: tuple[int, ...] = ()
    grouped: int | None = None
    ragged: int | None = None

    def __post_init__(self) -> None:
        fmt = get_format(self.format)
        for field, known in _CHOICES.items():
            value = getattr(self, field)
            if value not in known and not (field == "granularity" and value is None):
                raise unknown_name(field, value, known)
        if self.shared not in fmt.scales.granularities:
            fitting = " or ".join(map(repr, fmt.scales.granularities))
            raise ValueError(
                f"granularity {self.granularity!r} does not fit format {self.format!r}, "
                f"{fmt.scales.says}; use {fitting}"
            )
        is_count = isinstance(self.block, int) and self.block > 0
        if self.block is not None and not (is_count and self.is_blocked):
            raise ValueError(
                f"block={self.block!r} does not fit granularity {self.shared!r} of format "
                f"{self.format!r}: a block is a positive number of elements of a blocked format"
            )
        self._check_scale_rounding()
        if (self.scaling == "static") != (self.amax is not None):
            raise ValueError("scaling='static' takes amax=..., and only it does")
        if self.amax is not None and not 0 < self.amax < math.inf:
            raise ValueError(f"amax={self.amax} is no largest magnitude: it is positive and finite")
        if self.scaling != "dynamic" and not (fmt.scales.takes_amax and self.shared == "tensor"):
            raise ValueError(
                f"scaling={self.scaling!r} needs one float32 scale per tensor; "
                f"{self.format!r} with granularity {self.shared!r} has another layout"
            )

    def _check_scale_rounding(self) -> None:
        fmt, chosen = get_format(self.format), self.scale_rounding
        is_offered = chosen in fmt.scales.roundings(fmt.element)
        if chosen == "four_over_six" and not (is_offered and self.rounding != "stochastic"):
            raise ValueError(
                "scale_rounding='four_over_six' picks scales by the error of rounding to nearest, "
                f"for format {formats_with(chosen)}: it does not fit rounding {self.rounding!r} "
                f"of {self.format!r}"
            )
        fits = self.shared == "block" and self.hadamard and EDEN_ROTATION % self.block_size == 0
        if chosen == "eden" and not (is_offered and fits):
            raise ValueError(
                f"scale_rounding='eden' is for format {formats_with(chosen)} with hadamard=True "
                f"and granularity='block', whose blocks fit into {EDEN_ROTATION} elements"
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
        """The number of elements that a Hadamard transform takes at a time; 0 if there is none."""
        size = EDEN_ROTATION if self.scale_rounding == "eden" else hadamard.SIZE
        return size if self.hadamard else 0

    @property
    def draws_signs(self) -> bool:
        """True if a product has to flip signs of its operands at random first."""
        return self.scale_rounding == "eden" and self.rounding == "stochastic"

    @property
    def unrotated(self) -> Quantization:
        """The nearest quantization without a Hadamard transform; as unbiased as with it."""
        is_eden = self.scale_rounding == "eden"
        rounding = "up" if is_eden else self.scale_rounding
        return dataclasses.replace(self, hadamard=False, scale_rounding=rounding)

    @property
    def is_hoistable(self) -> bool:
        """True if the codes of one tensor are the same whenever it is quantized."""
        return self.rounding == "nearest" and self.scaling != "delayed"

    @property
    def keeps_amax(self) -> bool:
        """True if nothing but a tensor's amax, a scalar, makes its scale."""
        takes_amax = get_format(self.format).scales.takes_amax and self.rounding != "none"
        is_whole = self.shared == "tensor" and not self.apart and self.group_dim is None
        return takes_amax and is_whole and self.scaling == "dynamic"

    @property
    def group_dim(self) -> int | None:
        """The dimension with groups that share no scale; None if there is none."""
        return self.grouped if self.ragged is None else self.ragged

    @property
    def is_blocked(self) -> bool:
        """True if scales vary along the contraction, and so do not factor out of a product."""
        return self.shared in ("block", "square")

    def axes(self, ndim: int) -> tuple[int, ...]:
        """``axis`` as non-negative dimensions of an array with ``ndim`` dimensions."""
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        if any(not -ndim <= a < ndim for a in axes) and ndim:
            raise ValueError(f"axis {self.axis} is out of range for {ndim} dimensions")
        if self.hadamard and not ndim:
            raise ValueError("hadamard=True needs a dimension to run along; got a scalar")
        if ndim and not axes and (self.hadamard or self.is_blocked):
            raise ValueError(f"axis={self.axis} names no dimension for blocks to run along")
        return tuple(a % ndim for a in axes) if ndim else ()

    def view(self, shape: tuple[int, ...]) -> BlockView:
        """A tensor of that shape seen as what shares a scale, whatever groups its rows are in."""
        dims = self.apart if self.grouped is None else (*self.apart, self.grouped)
        apart = tuple(sorted(d % len(shape) for d in dims))
        return BlockView.of(shape, self.shared, self.block_size, self.axes(len(shape)), apart)

    def blocked_dims(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The dimensions of a tensor along which elements share scales in blocks, ascending."""
        return self.view(shape).dims if self.is_blocked else ()
