"""Blackwell: FP8 products, by cuBLASLt. NVFP4 is emulated until the block-scaled dot path lands."""

from srjit.targets.gpu_products import target_of

TARGETS = tuple(target_of(name, recipe="nvfp4") for name in ("b200", "gb200", "b300"))
