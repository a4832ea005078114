"""TPUs: int8 on v5e, v5p and v6e, FP8 on Ironwood. Products are emulated until kernels land."""

from srjit.targets import Target, register

for _name, _recipe in (("v5e", "int8"), ("v5p", "int8"), ("v6e", "int8"), ("tpu7x", "fp8")):
    register(Target(name=_name, platform="tpu", recipe=_recipe))
