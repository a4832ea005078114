"""Formats, as a table: a storage of an element's numbers, and a layout of scales.

The table is all that there is to know of a format: what rounds, packs, carries, checks and lists
formats asks the objects in it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from srjit.choices import unknown_name
from srjit.numerics.blocks import Granularity
from srjit.numerics.elements import Element
from srjit.numerics.scale_layouts import E8M0, FLOAT32, NO_SCALES, NVFP4, ScaleLayout
from srjit.numerics.scaling import ScaleRounding
from srjit.numerics.storage import STORAGES, Storage


@dataclasses.dataclass(frozen=True)
class Format:
    """An element's numbers, how they are kept, and their scales.

    Attributes:
      name: what users type.
      storage: the element, and how arrays keep its numbers.
      scales: what a scale is, how it is made, and what it does.
      granularity: what shares one scale unless a Quantization says otherwise.
      block: elements along the contraction that share a scale where the granularity is a block.
    """

    name: str
    storage: Storage
    scales: ScaleLayout
    granularity: Granularity
    block: int

    @property
    def element(self) -> Element:
        """The grid of the codes."""
        return self.storage.element


# MX: OCP Microscaling Formats v1.0.
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("int8", STORAGES["int8"], FLOAT32, "tensor", 32),
        Format("int4", STORAGES["int4"], FLOAT32, "block", 32),
        Format("fp8_e4m3", STORAGES["float8_e4m3fn"], FLOAT32, "tensor", 32),
        Format("fp8_e5m2", STORAGES["float8_e5m2"], FLOAT32, "tensor", 32),
        Format("mxfp8", STORAGES["float8_e4m3fn"], E8M0, "block", 32),
        Format("mxfp4", STORAGES["float4_e2m1fn"], E8M0, "block", 32),
        Format("nvfp4", STORAGES["float4_e2m1fn"], NVFP4, "block", 16),
        Format("bf16", STORAGES["bfloat16"], NO_SCALES, "tensor", 1),
    )
}


def get_format(name: str) -> Format:
    """The format called ``name``; ValueError lists the nearest names."""
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    return FORMATS[name]


def formats_with(rounding: ScaleRounding) -> str:
    """The names of the formats whose scales can be rounded so, for messages."""
    return " or ".join(
        repr(f.name) for f in FORMATS.values() if rounding in f.scales.roundings(f.element)
    )


def get_storage(dtype: Any) -> Storage:
    """The storage of a dtype (``jnp.int8``, ``"float8_e4m3fn"``) or of a format's name.

    Raises:
      ValueError: nothing can be rounded to that dtype; the nearest names are listed.
    """
    if isinstance(dtype, str) and dtype in FORMATS:
        return FORMATS[dtype].storage
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        raise unknown_name("dtype", dtype, {*STORAGES, *FORMATS}) from None
    if name not in STORAGES:
        raise unknown_name("dtype", name, STORAGES)
    return STORAGES[name]
