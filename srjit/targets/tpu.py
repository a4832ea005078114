"""TPUs: int8 on v5e, v5p and v6e, FP8 on Ironwood. Products are emulated until kernels land."""

from srjit.targets.base import Target

TARGETS = (
    Target(name="v5e", kinds=("v5 lite", "v5e"), recipe="int8"),
    Target(name="v5p", kinds=("tpu v5", "v5p"), recipe="int8"),
    Target(name="v6e", kinds=("v6 lite", "v6e"), recipe="int8"),
    Target(name="tpu7x", kinds=("tpu7x", "tpu v7"), recipe="fp8"),
)
