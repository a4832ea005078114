"""What a kernel makes of a matrix."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from srjit.numerics import hadamard
from srjit.numerics.elements import ELEMENTS
from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.numerics.scale_layouts import E8M0, NVFP4, ScaleLayout
from srjit.targets.gpu.ptx import Conversion

# The dtypes in which kernels write the scales of blocks.
_WRITTEN: dict[ScaleLayout, Any] = {E8M0: jnp.uint8, NVFP4: jnp.float8_e4m3fn}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a kernel makes of a matrix (R, C).

    Attributes:
      spec: the quantization; its axis does not matter.
      carrier: the name of the dtype that holds the codes.
      down: whether blocks run along columns. Then the result is transposed: where blocks run is
        always the last dimension of the codes in memory.
      lead: of blocks along columns, how many matrices stand below each other, (lead, R / lead, C):
        each is transposed by itself.
      by_instruction: whether the chip's own conversion rounds stochastically, or the formula.
    """

    spec: Quantization
    carrier: str
    down: bool
    lead: int = 1
    by_instruction: bool = False

    @property
    def block(self) -> int:
        """How many elements are worked on together."""
        return self.spec.block_size if self.spec.is_blocked else hadamard.SIZE

    @property
    def conversion(self) -> Conversion:
        """What values become."""
        return Conversion(get_format(self.spec.format).element, ELEMENTS[self.carrier])

    @property
    def scales(self) -> ScaleLayout:
        """What scales are."""
        return get_format(self.spec.format).scales

    @property
    def has_tensor_scale(self) -> bool:
        """Whether a float32 scale of the tensor is written."""
        return self.scales.has_tensor_scale or not self.spec.is_blocked

    @property
    def name(self) -> str:
        """What tells its kernel from others that round otherwise."""
        return f"{self.spec.format}_{self.spec.rounding}"

    def sizes(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the codes in memory, those padded to whole blocks."""
        rows, columns = shape[::-1] if self.down else shape
        rows, columns = (rows * self.lead, columns // self.lead) if self.down else (rows, columns)
        return rows, -(-columns // self.block) * self.block

    def results(self, shape: tuple[int, int]) -> list[Any]:
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
