"""Sums of parts and kernels on shards are written once it is known how a program is sharded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from srjit._mlir import ir
from srjit.passes.emit import on_shards, partial_sums, shardings
from srjit.passes.mlir import attributes
from srjit.program.stablehlo import operations


def settle(module: ir.Operation, returned: Sequence[Any] | None = None) -> None:
    """Writes what products and calls of formulas ask for on several devices, and drops the marks.

    Products give parts of their sums in another dtype. Calls of formulas call kernels on shards.

    Args:
      module: of all devices, with shardings of ``@main``'s arguments.
      returned: values of ``@main`` that depend on all of it, if it is still being written.
    """
    from srjit.products.dot import SUMS
    from srjit.targets.kernel_call import ON_SHARDS

    count = operations.device_counts(module)[0]
    with module.context:
        if (count or 1) > 1:
            on_shards.keep_apart(module)
            dots = [
                op
                for op in operations.inside(module)
                if op.name == "stablehlo.dot_general" and partial_sums.said(op)
            ]
            calls = list(filter(on_shards.said, operations.inside(module)))
            _settle(module, dots, calls, returned)
        for op in operations.inside(module):
            for name in (SUMS, ON_SHARDS):
                attributes.forget_frontend(op, name)


def _settle(
    module: ir.Operation, dots: list[Any], calls: list[Any], returned: Sequence[Any] | None
) -> None:
    if not (dots or calls):
        return
    try:
        copy, found = shardings.propagated(module, [*dots, *calls], returned)
    except ir.MLIRError as error:
        from srjit import _stack

        _stack.warn(
            "how the program is sharded is not known, so that parts of products which devices add "
            f"may take more bytes than the program's own, and no kernels run: {error}"
        )
        return
    partial_sums.add(module, dots, found[: len(dots)])
    on_shards.place(module, copy, calls, found[len(dots) :])
