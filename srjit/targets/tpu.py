"""TPUs: int8 on v5e, v5p and v6e, FP8 on Ironwood. Products are emulated until kernels land."""

from srjit.targets.base import Compiler, Target


def _libtpu(name: str, one: str, four: str, eight: str) -> Compiler:
    topologies = {1: one, 4: four, 8: eight}
    return Compiler(
        platform="tpu", topologies={n: f"{name}:{shape}" for n, shape in topologies.items()}
    )


TARGETS = (
    Target(
        name="v5e",
        kinds=("v5 lite", "v5e"),
        recipe="int8",
        compiler=_libtpu("v5e", "1x1", "2x2", "2x4"),
    ),
    Target(
        name="v5p",
        kinds=("tpu v5", "v5p"),
        recipe="int8",
        compiler=_libtpu("v5p", "1x1x1", "2x2x1", "2x2x2"),
    ),
    Target(
        name="v6e",
        kinds=("v6 lite", "v6e"),
        recipe="int8",
        compiler=_libtpu("v6e", "1x1", "2x2", "2x4"),
    ),
    # A chip of it has two cores, each a device of its own.
    Target(
        name="tpu7x",
        kinds=("tpu7x", "tpu v7"),
        recipe="fp8",
        compiler=_libtpu("tpu7x", "1x1x1", "1x2x1", "2x2x1"),
    ),
)
