"""The end of a program, where how it is sharded can be known: when JAX lowers it.

A trace serves all shardings of its arguments that are automatic. A primitive that a program ends
with does nothing but have its module looked at while JAX lowers it, when everything before it, and
the shardings of the arguments, stand there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.core import Tracer
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir

from srjit import _compat, _stack
from srjit._mlir import ir
from srjit.passes.emit.on_shards import said
from srjit.passes.emit.settle import settle
from srjit.program.stablehlo import operations
from srjit.targets.kernel_call import numbered
from srjit.targets.wire import Parts


def settled(outs: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """The outputs of a program whose products add parts over devices as its own products did.

    Args:
      outs: of the program.
      inputs: of it; outputs that are inputs stay what they are.
    """
    given = {id(x) for x in inputs}
    made = [i for i, x in enumerate(outs) if id(x) not in given and _is_array(x)]
    outs = list(outs)
    if made:
        outs[made[0]] = settled_p.bind(*(outs[i] for i in made))
    return outs


def _is_array(x: Any) -> bool:
    return isinstance(x, Tracer) and hasattr(x, "dtype") and _compat.is_float(x.dtype)


settled_p = jex_core.Primitive("srjit_settled")
settled_p.def_impl(lambda *values: values[0])
settled_p.def_abstract_eval(lambda *avals: avals[0])


def _lower(ctx: Any, *values: Any) -> Any:
    module = ctx.module_context.module.operation
    main = operations.functions(module).get("main")
    point: Any = ir.InsertionPoint.current
    if main is not None and point.block == operations.body_of(main):
        settle(module, values)
    elif any(_sends(op) for op in operations.inside(point.block.owner.operation)):
        _stack.warn(
            "gradients are not sent as the recipe's wire says: how they are sharded is not known "
            "inside of another jit or a loop; decorate the whole step"
        )
    return [values[0]]


def _sends(op: Any) -> bool:
    """True for a product whose parts a recipe wants to be sent as codes."""
    known = numbered(said(op))
    return known is not None and isinstance(known[0], Parts)


def _jvp(primals: Any, tangents: Any) -> Any:
    return settled_p.bind(*primals), tangents[0]


def _batch(args: Any, dims: Any) -> Any:
    return settled_p.bind(*args), dims[0]


ad.primitive_jvps[settled_p] = _jvp
batching.primitive_batchers[settled_p] = _batch
mlir.register_lowering(settled_p, _lower, cacheable=False)
