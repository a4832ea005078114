"""Element grids and formats, as tables.

An *element* is a grid of numbers (E4M3, E2M1, the integers to 127, ...). A *format* is an element
with the layout of its scales, as the OCP Microscaling specification and NVIDIA's NVFP4 define them.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, Literal

import jax.numpy as jnp
import ml_dtypes
import numpy as np


@dataclasses.dataclass(frozen=True)
class Element:
    """A grid of numbers.

    Attributes:
      name: the dtype's name.
      dtype: the NumPy dtype whose values these are.
      mantissa_bits: explicit mantissa bits ``m``; None for integers, whose step is 1.
      min_exponent: exponent of the smallest normal number (``e_min``); 0 for integers.
      max: the largest finite magnitude ``M``; integers are symmetric, -128 and -8 are unused.
    """

    name: str
    dtype: Any
    mantissa_bits: int | None
    min_exponent: int
    max: float

    @property
    def is_integer(self) -> bool:
        """Whether the grid is the integers up to ``max``."""
        return self.mantissa_bits is None

    @property
    def smallest(self) -> float:
        """The smallest positive number; subnormal, for floats."""
        return 2.0 ** (self.min_exponent - (self.mantissa_bits or 0))

    @property
    def max_exponent(self) -> int:
        """floor(log2(max)): ``emax`` of the OCP specification."""
        return int(np.floor(np.log2(self.max)))


def _float(dtype: Any) -> Element:
    info = ml_dtypes.finfo(dtype)
    name = jnp.dtype(dtype).name
    return Element(name, jnp.dtype(dtype), info.nmant, info.minexp, float(info.max))


ELEMENTS: dict[str, Element] = {
    e.name: e
    for e in (
        Element("int8", jnp.dtype(jnp.int8), None, 0, 127.0),
        Element("int4", jnp.dtype(jnp.int4), None, 0, 7.0),
        _float(jnp.float4_e2m1fn),
        _float(jnp.float8_e4m3fn),
        _float(jnp.float8_e5m2),
        _float(jnp.bfloat16),
        _float(jnp.float16),
    )
}

Scale = Literal["none", "float32", "e8m0", "e4m3"]
Granularity = Literal["tensor", "channel", "block", "square"]


@dataclasses.dataclass(frozen=True)
class Format:
    """An element with its scale layout.

    Attributes:
      name: what users type.
      element: the grid of the codes.
      scale: what a scale is: a float32, a power of two (E8M0), E4M3 under a float32 scale of the
        whole tensor (NVFP4), or none.
      granularity: what shares one scale unless a Quantization says otherwise.
      block: elements along the contraction that share a scale where the granularity is a block.
    """

    name: str
    element: Element
    scale: Scale
    granularity: Granularity
    block: int


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("int8", ELEMENTS["int8"], "float32", "tensor", 32),
        Format("int4", ELEMENTS["int4"], "float32", "block", 32),
        Format("fp8_e4m3", ELEMENTS["float8_e4m3fn"], "float32", "tensor", 32),
        Format("fp8_e5m2", ELEMENTS["float8_e5m2"], "float32", "tensor", 32),
        Format("mxfp8", ELEMENTS["float8_e4m3fn"], "e8m0", "block", 32),
        Format("mxfp4", ELEMENTS["float4_e2m1fn"], "e8m0", "block", 32),
        Format("nvfp4", ELEMENTS["float4_e2m1fn"], "e4m3", "block", 16),
        Format("bf16", ELEMENTS["bfloat16"], "none", "tensor", 1),
    )
}


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that a table lacks, with the nearest names that it has."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return ValueError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}")


def get_format(name: str) -> Format:
    """The format called ``name``; ValueError lists the nearest names."""
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    return FORMATS[name]


def get_element(dtype: Any) -> Element:
    """The element of a dtype (``jnp.int8``, ``"float8_e4m3fn"``) or of a format's name.

    Raises:
      ValueError: nothing can be rounded to that dtype; the nearest names are listed.
    """
    if isinstance(dtype, str) and dtype in FORMATS:
        return FORMATS[dtype].element
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        raise unknown_name("dtype", dtype, {*ELEMENTS, *FORMATS}) from None
    if name not in ELEMENTS:
        raise unknown_name("dtype", name, ELEMENTS)
    return ELEMENTS[name]
