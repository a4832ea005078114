"""Results of kernels as other types of as many bytes: what a kernel stores as words may be codes.

Triton has no pointers to 4-bit floats, and XLA converts between types of other widths by a kernel
of its own, which reads and writes all of it once more. But what XLA hands to a kernel are
addresses: so the call itself is given the types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import core
from jax.extend import core as jex_core
from jax.extend.mlir import ir
from jax.interpreters import mlir

from srjit import _compat


def reinterpreted(
    fun: Callable[..., Sequence[jax.Array]], types: Sequence[Any], *args: jax.Array
) -> list[jax.Array]:
    """``fun(*args)`` as arrays of other types.

    Args:
      fun: what returns the results of one kernel, as they are.
      types: shape and dtype of each, of as many bytes.
      *args: arrays.
    """
    return reinterpreted_p.bind(*args, fun=fun, types=tuple((t.shape, t.dtype) for t in types))


reinterpreted_p = jex_core.Primitive("srjit_reinterpreted")
reinterpreted_p.multiple_results = True


@reinterpreted_p.def_abstract_eval
def _types(*args: Any, fun: Any, types: Any) -> list[Any]:
    made = _compat.result_types(fun, *args)
    return [
        aval.update(shape=tuple(shape), dtype=dtype)
        for aval, (shape, dtype) in zip(made, types, strict=True)
    ]


def _lowered(context: Any, *args: Any, fun: Any, types: Any) -> list[Any]:
    given = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in context.avals_in]
    avals = [core.ShapedArray(t.shape, t.dtype) for t in jax.eval_shape(fun, *given)]
    lower = mlir.lower_fun(fun, multiple_results=True)
    (call,) = {v.owner for v in jax.tree.leaves(lower(context.replace(avals_out=avals), *args))}
    layouts = [_row_major(len(shape)) for shape, _ in types]
    kept = {name: call.attributes[name] for name in call.attributes}
    new = ir.Operation.create(
        call.name,
        results=[
            ir.RankedTensorType.get(shape, mlir.dtype_to_ir_type(dtype)) for shape, dtype in types
        ],
        operands=list(call.operands),
        attributes={**kept, "result_layouts": ir.ArrayAttr.get(layouts)},
    )
    call.erase()
    return list(new.results)


def _row_major(rank: int) -> Any:
    order = ", ".join(map(str, reversed(range(rank))))
    return ir.Attribute.parse(f"dense<[{order}]> : tensor<{rank}xindex>")


mlir.register_lowering(reinterpreted_p, _lowered)
