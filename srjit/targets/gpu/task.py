"""Tasks of kernels: codes and scales of a matrix."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from srjit.numerics import hadamard, scaling
from srjit.numerics.elements import ELEMENTS
from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.numerics.scale_layouts import E8M0, FLOAT32, NVFP4, ScaleLayout
from srjit.targets.gpu import ptx

_FLT_MAX = np.float32(np.finfo(np.float32).max)
_E4M3 = ELEMENTS["float8_e4m3fn"]
# The dtypes in which kernels write the scales of blocks.
_WRITTEN: dict[ScaleLayout, Any] = {E8M0: jnp.uint8, NVFP4: jnp.float8_e4m3fn}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A quantization that a kernel makes of a matrix (R, C).

    Attributes:
      spec: the quantization; its axis does not matter.
      carrier: the name of the dtype that holds the codes.
      down: whether blocks run along columns. Then the result is transposed: where blocks run is
        always the last dimension of the codes in memory.
      lead: of blocks along columns, how many matrices stand below each other, (lead, R / lead, C):
        each is transposed by itself.
      by_instruction: whether the chip's own conversions round stochastically, and to E2M1 at all;
        or the formula does.
    """

    spec: Quantization
    carrier: str
    down: bool
    lead: int = 1
    by_instruction: bool = False

    @property
    def block(self) -> int:
        """The number of elements that are worked on together."""
        return self.spec.block_size if self.spec.is_blocked else hadamard.SIZE

    @property
    def conversion(self) -> ptx.Conversion:
        """The grid, and how its codes are held."""
        return ptx.Conversion(get_format(self.spec.format).element, ELEMENTS[self.carrier])

    @property
    def scales(self) -> ScaleLayout:
        """The layout of the scales."""
        return get_format(self.spec.format).scales

    @property
    def has_tensor_scale(self) -> bool:
        """True if a float32 scale of the tensor is written."""
        return self.scales.has_tensor_scale or not self.spec.is_blocked

    @property
    def name(self) -> str:
        """A part of the kernel's name, for profiles."""
        return f"{self.spec.format}_{self.spec.rounding}"

    def sizes(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the codes in memory, those padded to whole blocks."""
        rows, columns = shape[::-1] if self.down else shape
        rows, columns = (rows * self.lead, columns // self.lead) if self.down else (rows, columns)
        return rows, -(-columns // self.block) * self.block

    def results(self, shape: tuple[int, int]) -> list[jax.ShapeDtypeStruct]:
        """Types of codes as words, of scales of blocks if there are any, and of the tensor's."""
        rows, columns = self.sizes(shape)
        blocks = rows, columns // self.block
        found = [((rows * columns // self.conversion.per_word,), jnp.int32)]
        if self.spec.shared == "square":
            blocks = tuple(-(-n // self.block) for n in shape)
        if self.spec.is_blocked:
            found.append(((math.prod(blocks),), _WRITTEN[self.scales]))
        if self.has_tensor_scale:
            found.append(((1,), jnp.float32))
        return [jax.ShapeDtypeStruct(s, d) for s, d in found]


# ------------------------------------------------------------------------------------------- scales


@dataclasses.dataclass(frozen=True)
class KernelScales:
    """Scales as kernels have them: see ``scaling.Scales``."""

    encode: jax.Array
    block: jax.Array | None = None
    tensor: jax.Array | None = None


def shared(task: Task, largest: jax.Array) -> jax.Array:
    """amax of what shares a scale: of blocks, or of squares of them."""
    if task.spec.shared != "square":
        return largest
    rows, columns = largest.shape
    if task.down:
        return jnp.max(largest.reshape(rows, columns // task.block, task.block), axis=2)
    return jnp.max(largest.reshape(rows // task.block, task.block, columns), axis=1)


def spread(task: Task, encode: jax.Array) -> jax.Array:
    """One factor for every block."""
    if task.spec.shared != "square":
        return encode
    rows, columns = encode.shape
    if task.down:
        wide = jnp.broadcast_to(encode[:, :, None], (rows, columns, task.block))
        return wide.reshape(rows, columns * task.block)
    wide = jnp.broadcast_to(encode[:, None, :], (rows, task.block, columns))
    return wide.reshape(rows * task.block, columns)


def scales_of(task: Task, largest: jax.Array | None, amax: jax.Array | None) -> KernelScales:
    """The formulas of ``numerics.scaling``, by operations that keep NaN and all compilers have."""
    block = None if largest is None else lax.bitcast_convert_type(largest, jnp.float32)
    tensor = None if amax is None else lax.bitcast_convert_type(jnp.full((1, 1), amax), jnp.float32)
    return _SCALES[task.scales](task, block, tensor)


def _e8m0_scales(task: Task, block: Any, a: Any) -> KernelScales:
    element, rounding = task.conversion.element, task.spec.scale_rounding
    exponent, code = scaling.e8m0_codes(block, element, rounding, subnormal=False)
    encode = lax.bitcast_convert_type(254 - exponent << 23, jnp.float32)
    return KernelScales(encode, code.astype(jnp.uint8))


def _float_scales(task: Task, block: Any, a: Any) -> KernelScales:
    most = jnp.full_like(a, task.conversion.element.max)
    quotient, inverse = ptx.divide(a, most), ptx.divide(most, a)
    encode = jnp.where(inverse > 2.0**126, jnp.float32(2.0**126), inverse)
    scale = jnp.where(quotient < 2.0**-126, jnp.float32(2.0**-126), quotient)
    one = jnp.ones_like(a)
    return KernelScales(jnp.where(a == 0, one, encode), None, jnp.where(a == 0, one, scale))


def _nvfp4_scales(task: Task, block: Any, a: Any) -> KernelScales:
    """``scaling.nvfp4_scales``, which says what this is, without subnormal numbers."""
    top, one = jnp.full_like(a, 2688), jnp.ones_like(block)
    raised = jnp.where(a < scaling.LEAST_AMAX, jnp.float32(scaling.LEAST_AMAX), a)
    tensor = ptx.divide(jnp.where(a == 0, a, raised), top)
    a = jnp.where(raised == jnp.inf, top, raised)
    s = ptx.divide(top, a)
    s = jnp.where(s > _FLT_MAX, _FLT_MAX, s)
    target = block * (s * np.float32(1 / 6))
    target = jnp.where(target > _E4M3.max, jnp.float32(_E4M3.max), target)
    sf = ptx.narrow(target, _E4M3)
    if task.spec.scale_rounding == "up":
        sf = jnp.where(sf < target, scaling.next_up(sf), sf)
    least = scaling.least_block_scale(s)
    sf = jnp.where(sf < least, least, sf)  # which keeps NaN
    encode = ptx.divide(one, sf * ptx.divide(jnp.ones_like(a), s))
    encode = jnp.where(encode > _FLT_MAX, _FLT_MAX, encode)
    return KernelScales(encode, sf.astype(jnp.float8_e4m3fn), tensor)


_SCALES: dict[ScaleLayout, Callable[..., KernelScales]] = {
    E8M0: _e8m0_scales,
    FLOAT32: _float_scales,
    NVFP4: _nvfp4_scales,
}
