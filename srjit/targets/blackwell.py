"""Blackwell: NVFP4. Products are emulated until the block-scaled dot path lands."""

from srjit.targets import Target, register

for _name in ("b200", "gb200", "b300"):
    register(Target(name=_name, platform="cuda", recipe="nvfp4"))
