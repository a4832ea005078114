"""Figures of quantizations, which a watched program measures on the device.

It is of a sample of the operand: groups of whole rows along the contraction, at equal distances,
quantized again as they were in the program, with the scale of the whole tensor. What is rounded is
not what the program rounds on, so that no result changes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics import hadamard
from srjit.numerics.blocks import pad_to_multiple
from srjit.numerics.encode import encode, viewed
from srjit.numerics.formats import get_format
from srjit.numerics.groups import Groups
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key, mix
from srjit.numerics.rounding import working_dtype
from srjit.numerics.scaling import tensor_amax

SAMPLE = 2**12  # elements of an operand, about
_WATCHING = 0x77617463  # apart from the noise of the program


class Sample:
    """A sample of an operand, quantized again.

    Args:
      x: the operand.
      spec: how it is quantized.
      key: its noise's key; None if it draws none.
      before: the largest amax of earlier steps, for a delayed scale.
      flips: whether its signs are flipped at random first: then what rounding does is not known.
      groups: of the rows of a ``ragged`` operand.

    Attributes:
      amax: the largest magnitude of the operand.
      part: the sample.
      values: what is rounded: the sample, or its Hadamard transform; None if nothing is known of
        that, as of the attributes that follow.
      off: what rounding adds to it.
      scale: the scale of each element.
      element: the grid of the codes.
    """

    def __init__(
        self,
        x: jax.Array,
        spec: Quantization,
        key: Key | None,
        before: jax.Array | None,
        flips: bool,
        groups: Groups | None,
    ) -> None:
        x = lax.stop_gradient(x)
        dtype = working_dtype(x.dtype)
        self.amax = tensor_amax(x.astype(dtype))  # as quantizers have it: it is found once
        self.part = _sample(x, spec).astype(dtype)
        self.element = get_format(spec.format).element
        self.values: jax.Array | None = None
        if flips or spec.rounding == "none" or not x.size:
            return
        known = before
        if spec.scaling == "dynamic" and spec.shared == "tensor" and not spec.hadamard:
            known = self.amax  # of the tensor, not of the sample
            if spec.group_dim is not None:  # or of each group
                known = viewed(x.astype(dtype), spec, groups).amax(x.astype(dtype)).reshape(-1)
        if groups is not None:
            alike = (slice(0, 1 if n == 1 else None) for n in groups.ids.shape)
            ids = _sample(jnp.broadcast_to(groups.ids, x.shape), spec)[tuple(alike)]
            groups = dataclasses.replace(groups, ids=ids)
        again = None if key is None else mix(key, _WATCHING)
        self.values = _rotated(self.part, spec) if spec.hadamard else self.part
        rounded = encode(
            self.values, spec.unrotated, again, before=known, subnormal=False, groups=groups
        )
        steps = dataclasses.replace(rounded, codes=jnp.ones_like(rounded.codes))
        self.scale = steps.dequantize(dtype)
        self.off = rounded.dequantize(dtype) - self.values


def _zeros(sample: Sample) -> jax.Array:
    size = jnp.abs(sample.values)  # type: ignore[arg-type]
    lost = (size > 0) & (size <= sample.scale * (sample.element.smallest / 2))
    return jnp.sum(lost) / jnp.maximum(jnp.sum(size > 0), 1)


def _saturated(sample: Sample) -> jax.Array:
    size = jnp.abs(sample.values)  # type: ignore[arg-type]
    return jnp.mean(size > sample.scale * sample.element.max, dtype=jnp.float32)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(v**2 for v in values)) / math.sqrt(len(values))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of a watched quantization; everything that shows figures takes them from here.

    Attributes:
      name: what records call it.
      about: what it is.
      of: the figure of a sample, not negative.
      of_rounding: whether it is of what rounding does; it is 0 where that is not known.
      over_steps: the figure of several steps.
      column: its column in the table of a diagnosis; empty if it has none.
      shown: how the table shows it.
    """

    name: str
    about: str
    of: Callable[[Sample], jax.Array]
    of_rounding: bool = False
    over_steps: Callable[[Sequence[float]], float] = _mean
    column: str = ""
    shown: Callable[[float], str] = "{:.2g}".format


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %"


FIGURES = [
    Figure(
        name="norm",
        about="root mean square of the operand",
        of=lambda s: _root_mean_square(s.part, s.part.size),
        over_steps=_mean_square,
        column="norm",
    ),
    Figure(
        name="noise",
        about="root mean square of what rounding takes away or adds; 0 where signs are flipped",
        of=lambda s: _root_mean_square(s.off, s.part.size),
        of_rounding=True,
        over_steps=_mean_square,
    ),
    Figure(
        name="zeros",
        about="fraction of its nonzero elements that rounding to nearest would send to zero",
        of=_zeros,
        of_rounding=True,
        column="to zero",
        shown=_percent,
    ),
    Figure(
        name="saturated",
        about="fraction of its elements beyond the largest value of the format",
        of=_saturated,
        of_rounding=True,
        column="clip",
        shown=_percent,
    ),
    Figure(
        name="amax",
        about="the largest magnitude",
        of=lambda sample: sample.amax,
        over_steps=max,
    ),
]


def measured(
    x: jax.Array,
    spec: Quantization,
    key: Key | None,
    before: jax.Array | None,
    flips: bool,
    groups: Groups | None = None,
) -> jax.Array:
    """float32 (figures,): ``FIGURES`` of a quantization; arguments as of ``Sample``."""
    sample = Sample(x, spec, key, before, flips, groups)
    found = [0 if f.of_rounding and sample.values is None else f.of(sample) for f in FIGURES]
    return jnp.stack([jnp.asarray(value, jnp.float32) for value in found])


def _rotated(x: jax.Array, spec: Quantization) -> jax.Array:
    """The Hadamard transform as a product: of butterflies, XLA computes each anew for each sum."""
    axis, size = spec.axes(x.ndim)[-1], spec.rotation
    factor = jnp.asarray(hadamard.matrix(size), x.dtype)
    return hadamard.multiplied(pad_to_multiple(x, axis, size), axis, factor)


def _root_mean_square(x: jax.Array, size: int) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x)) / max(size, 1)).astype(jnp.float32)


def _sample(x: jax.Array, spec: Quantization) -> jax.Array:
    """About ``SAMPLE`` elements: whole blocks of rows along the contraction, at equal distances."""
    square = spec.shared == "square"
    free = [0] if square and x.ndim else [d for d in range(x.ndim) if d not in spec.axes(x.ndim)]
    if not free or x.size <= SAMPLE:
        return x
    dim = max(free, key=lambda d: x.shape[d])
    group = spec.block_size if square else 1
    groups = x.shape[dim] // group
    wanted = max(1, SAMPLE * x.shape[dim] // (x.size * group))
    if wanted >= groups:
        return x
    stride = groups // wanted
    whole = lax.slice_in_dim(x, 0, wanted * stride * group, axis=dim)
    split = whole.reshape(*x.shape[:dim], wanted, stride * group, *x.shape[dim + 1 :])
    part = lax.slice_in_dim(split, 0, group, axis=dim + 1)
    return part.reshape(*x.shape[:dim], wanted * group, *x.shape[dim + 1 :])
