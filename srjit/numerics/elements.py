"""Elements: grids of numbers that a tensor's values are rounded to (E4M3, E2M1, integers)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import ml_dtypes
import numpy as np


@dataclasses.dataclass(frozen=True)
class Element:
    """A grid of numbers; how arrays keep them is a ``Storage``.

    Attributes:
      name: the grid's name; a dtype's, where one has these numbers.
      mantissa_bits: explicit mantissa bits ``m``; None for integers, whose step is 1.
      min_exponent: exponent of the smallest normal number (``e_min``); 0 for integers.
      max: the largest finite magnitude ``M``; integers are symmetric, -128 and -8 are unused.
    """

    name: str
    mantissa_bits: int | None
    min_exponent: int
    max: float

    @property
    def is_integer(self) -> bool:
        """True if the grid is the integers up to ``max``."""
        return self.mantissa_bits is None

    @property
    def smallest(self) -> float:
        """The smallest positive number; subnormal, for floats."""
        return 2.0 ** (self.min_exponent - (self.mantissa_bits or 0))

    @property
    def max_exponent(self) -> int:
        """floor(log2(max)): ``emax`` of the OCP specification."""
        return int(np.floor(np.log2(self.max)))

    @property
    def significant_bits(self) -> int:
        """Bits from the first that is set to the last, at most."""
        return self.max_exponent + 1 if self.mantissa_bits is None else self.mantissa_bits + 1


def _float(name: str) -> Element:
    info = ml_dtypes.finfo(jnp.dtype(name))
    return Element(name, info.nmant, info.minexp, float(info.max))


# The elements that are dtypes of JAX, by the dtypes' names.
ELEMENTS: dict[str, Element] = {
    e.name: e
    for e in (
        Element("int8", None, 0, 127.0),
        Element("int4", None, 0, 7.0),
        _float("float4_e2m1fn"),
        _float("float8_e4m3fn"),
        _float("float8_e5m2"),
        _float("bfloat16"),
        _float("float16"),
    )
}
