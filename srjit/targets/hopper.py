"""Hopper: FP8. Products are emulated until the cuBLASLt path lands."""

from srjit.targets.base import Target

TARGETS = tuple(Target(name=name, kinds=(name,), recipe="fp8") for name in ("h100", "h200"))
