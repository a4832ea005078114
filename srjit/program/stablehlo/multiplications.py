"""Matrix multiplications of a module that are not read as products: why, and how large they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from srjit._mlir import ir
from srjit.program import left_alone
from srjit.program.stablehlo.operations import text
from srjit.program.stablehlo.products import Attributes

RAGGED = ("chlo.ragged_dot", "stablehlo.ragged_dot")
# Custom calls that multiply no matrices of their caller: what JAX, XLA and their libraries for
# decompositions, transforms, sorting, random numbers, callbacks and layouts are called by.
_HARMLESS = (
    "lapack", "cusolver", "hipsolver", "solver", "ducc", "fft", "threefry", "callback", "sharding",
    "annotate", "layout", "topk", "top_k", "partialreduce", "shape", "allocatebuffer", "check",
    "qr", "eigh", "cholesky", "householder", "tridiagonal", "svd", "lu_", "pivot", "schur",
    "hessenberg", "triangular", "erf", "dynamic", "pin", "move_to", "moveto", "copy", "rng",
    "random", "sort", "xla.sdy", "print", "infeed", "outfeed", "mhlo.", "buffer", "assume",
)  # fmt: skip


def multiplies(op: ir.Operation) -> bool:
    """True if an operation multiplies matrices, by its name."""
    return left_alone.named_so(op.name.partition(".")[2])


def why_opaque(op: ir.Operation, has_inside: Callable[[ir.Operation], bool]) -> str:
    """Why srjit does not see what an operation may multiply; nothing if it multiplies none.

    Args:
      op: the operation.
      has_inside: whether a multiplication stands inside of an operation.
    """
    if op.name == "stablehlo.custom_call" and _may_multiply(op):
        return left_alone.KERNEL
    if op.name in RAGGED:
        return "a ragged product that was lowered elsewhere: lower it with layer='stablehlo'"
    if multiplies(op):
        return left_alone.KIND
    if has_inside(op):
        return "srjit does not look inside this operation's region"
    return ""


def _may_multiply(op: ir.Operation) -> bool:
    """True if a custom call may be one: by its name, or since nothing is known of its name."""
    target = text(op, "call_target_name").lower()
    if any(word in target for word in (*left_alone.KERNELS, "__op$")):
        return True
    if left_alone.named_so(target.replace("$", "_").replace(".", "_").strip("_")):
        return True
    is_known = any(word in target for word in _HARMLESS)
    return not is_known and any(map(_is_matrix, op.operands)) and any(map(_is_float, op.results))


def _is_float(value: ir.Value[Any]) -> bool:
    kind = value.type
    return isinstance(kind, ir.RankedTensorType) and isinstance(kind.element_type, ir.FloatType)


def _is_matrix(value: ir.Value[Any]) -> bool:
    return _is_float(value) and ir.RankedTensorType(value.type).rank > 1


def flops_of(op: ir.Operation) -> int:
    """Multiplications and additions of what is left alone, as far as shapes tell; otherwise 0.

    Dimensions that are not known count once.
    """
    try:
        return _flops(op)
    except (KeyError, ValueError, IndexError):
        return 0


def _flops(op: ir.Operation) -> int:
    lhs, out = (_known(v) for v in (op.operands[0], op.results[0]))
    if op.name in ("stablehlo.dot_general", "stablehlo.dot"):
        numbers = Attributes(op.attributes).get("dot_dimension_numbers")
        summed = (len(lhs) - 1,) if numbers is None else numbers[0][0]
        return 2 * math.prod(out) * math.prod(lhs[d] for d in summed)
    if op.name in ("stablehlo.convolution", "stablehlo.dynamic_conv"):
        kernel, dimensions = _known(op.operands[1]), Attributes(op.attributes)["dimension_numbers"]
        return 2 * math.prod(out) * math.prod(kernel) // kernel[dimensions[1][0]]
    if op.name in RAGGED or text(op, "call_target_name") == "__op$block_scaled_dot":
        return 2 * math.prod(out) * lhs[-1]
    return 0


def _known(value: ir.Value[Any]) -> list[int]:
    """The dimensions of a tensor, 1 for those that are not known."""
    kind = ir.RankedTensorType(value.type)
    return [1 if kind.is_dynamic_dim(d) else kind.get_dim_size(d) for d in range(kind.rank)]
