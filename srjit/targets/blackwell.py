"""Blackwell: NVFP4 and MX products, by cuDNN's block-scaled one; FP8 products, by cuBLASLt."""

from srjit.targets.gpu.quantize import target_of

TARGETS = tuple(target_of(name, recipe="nvfp4") for name in ("b200", "gb200", "b300"))
