"""A rewriting that several tests use: appends a key and histories to ``@main``, and uses them."""

from __future__ import annotations

import dataclasses
from typing import Any

from srjit import passes
from srjit._mlir import func, ir, stablehlo


@passes.register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Appending(passes.Pass):
    """Adds the key's first word to the first result; each history becomes twice what it was.

    Before ==> after:
        return %0
        ==>
        return %1, %2
    """

    name = "test-appending"
    histories: int = 2

    def run(self, module: ir.Operation) -> None:
        """Appends."""
        main: Any = ir.SymbolTable(module)["main"]
        kinds = [ir.Type.parse(t) for t in ["tensor<2xui32>", *["tensor<3xf32>"] * self.histories]]
        block, old = main.regions[0].blocks[0], main.type
        key, *histories = [block.add_argument(kind, ir.Location.unknown()) for kind in kinds]
        last = block.operations[len(block.operations) - 1]
        with ir.InsertionPoint(last):
            word = stablehlo.slice(key, [0], [1], [1])
            word = stablehlo.reshape(ir.Type.parse("tensor<ui32>"), word)
            word = stablehlo.convert(ir.Type.parse("tensor<f32>"), word)
            first = last.operands[0]
            nowhere = ir.DenseI64ArrayAttr.get([])
            first = stablehlo.add(first, stablehlo.broadcast_in_dim(first.type, word, nowhere))
            more = [stablehlo.add(h, h) for h in histories]
            func.ReturnOp([first, *list(last.operands)[1:], *more])
        last.operation.erase()
        inputs, results = [*old.inputs, *kinds], [*old.results, *kinds[1:]]
        main.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, results))
        states = [
            ir.DictAttr.get({"srjit.state": ir.StringAttr.get(f"h{i}")})
            for i in reversed(range(self.histories))
        ]
        marks = [ir.DictAttr.get({"srjit.key": ir.UnitAttr.get()}), *states]
        _append(main, "arg_attrs", len(old.inputs), marks)
        _append(main, "res_attrs", len(old.results), states)


def _append(main: Any, name: str, count: int, marks: list[ir.DictAttr]) -> None:
    given = main.attributes
    plain = list(given[name]) if name in given else [ir.DictAttr.get({})] * count
    given[name] = ir.ArrayAttr.get([*plain, *marks])
