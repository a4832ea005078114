"""Matrix multiplications of a module that are not read as products, and why they are not."""

from __future__ import annotations

from srjit._mlir import ir
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.operations import callee_of, text

_KERNELS = ("pallas", "mosaic", "triton", "tpu_custom_call", "cudnn", "cublas", "__op$", "ffi_call")
# Words in the names of operations that multiply matrices, in StableHLO and elsewhere.
_WORDS = frozenset(
    {
        "dot", "conv", "conv2d", "conv3d", "convolution", "matmul", "gemm", "einsum", "contract",
        "syrk", "symm", "trmm",
    }
)  # fmt: skip


class Multiplications:
    """Finds the multiplications of a module.

    Args:
      functions: the module's, by name.
    """

    def __init__(self, functions: dict[str, ir.Operation]) -> None:
        self._functions = functions
        self._called: dict[str, bool] = {}

    def inside(self, op: ir.Operation) -> bool:
        """Whether a multiplication stands in an operation's regions, or is called there."""
        return any(_multiplies(inner) or self._calls_one(inner) for inner in operations.inside(op))

    def _calls_one(self, op: ir.Operation) -> bool:
        name = callee_of(op)
        if name is None or name not in self._functions:
            return False
        if name not in self._called:
            self._called[name] = False  # while it is being found out: recursion
            self._called[name] = self.inside(self._functions[name])
        return self._called[name]

    def why_opaque(self, op: ir.Operation) -> str:
        """Why srjit does not see what an operation may multiply; nothing if it multiplies none."""
        if op.name == "stablehlo.custom_call":
            target = text(op, "call_target_name")
            if any(k in target for k in _KERNELS):
                return "srjit does not look inside kernels and custom calls"
        if op.name in ("chlo.ragged_dot", "stablehlo.ragged_dot"):
            return "a ragged product that was lowered elsewhere: lower it with layer='stablehlo'"
        if _multiplies(op):
            return "srjit does not quantize this kind of multiplication"
        if self.inside(op):
            return "srjit does not look inside this operation's region"
        return ""


def _multiplies(op: ir.Operation) -> bool:
    """Whether an operation multiplies matrices, by its name."""
    return not _WORDS.isdisjoint(op.name.partition(".")[2].split("_"))
