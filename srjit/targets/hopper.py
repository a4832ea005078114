"""Hopper: FP8. Products are emulated until the cuBLASLt path lands."""

from srjit.targets import Target, register

for _name in ("h100", "h200"):
    register(Target(name=_name, platform="cuda", recipe="fp8"))
