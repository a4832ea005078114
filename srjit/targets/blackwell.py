"""Blackwell: NVFP4. Products are emulated until the block-scaled dot path lands."""

from srjit.targets.base import Target

TARGETS = tuple(
    Target(name=name, kinds=(name,), recipe="nvfp4") for name in ("b200", "gb200", "b300")
)
