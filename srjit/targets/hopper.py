"""Hopper: FP8 products, by cuBLASLt."""

from srjit.targets.gpu.quantize import target_of

TARGETS = tuple(target_of(name, recipe="fp8") for name in ("h100", "h200"))
