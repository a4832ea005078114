"""Matrix multiplications of a module that are not read as products, and why they are not."""

from __future__ import annotations

from collections.abc import Callable

from srjit._mlir import ir
from srjit.program.stablehlo.operations import text

_KERNELS = ("pallas", "mosaic", "triton", "tpu_custom_call", "cudnn", "cublas", "__op$", "ffi_call")
# Words in the names of operations that multiply matrices, in StableHLO and elsewhere.
_WORDS = frozenset(
    {
        "dot", "conv", "conv2d", "conv3d", "convolution", "matmul", "gemm", "einsum", "contract",
        "syrk", "symm", "trmm",
    }
)  # fmt: skip


def multiplies(op: ir.Operation) -> bool:
    """Whether an operation multiplies matrices, by its name."""
    return not _WORDS.isdisjoint(op.name.partition(".")[2].split("_"))


def why_opaque(op: ir.Operation, has_inside: Callable[[ir.Operation], bool]) -> str:
    """Why srjit does not see what an operation may multiply; nothing if it multiplies none.

    Args:
      op: the operation.
      has_inside: whether a multiplication stands inside of an operation.
    """
    if op.name == "stablehlo.custom_call":
        target = text(op, "call_target_name")
        if any(k in target for k in _KERNELS):
            return "srjit does not look inside kernels and custom calls"
    if op.name in ("chlo.ragged_dot", "stablehlo.ragged_dot"):
        return "a ragged product that was lowered elsewhere: lower it with layer='stablehlo'"
    if multiplies(op):
        return "srjit does not quantize this kind of multiplication"
    if has_inside(op):
        return "srjit does not look inside this operation's region"
    return ""
