"""JAX functions as private functions of a module: how passes say what numbers are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from srjit._mlir import ir
from srjit.program.stablehlo import products

Signature = tuple[tuple[tuple[int, ...], Any], ...]


def signature_of(values: Sequence[Any]) -> Signature:
    """Shapes and dtypes of ranked, static values."""
    types = [ir.RankedTensorType(v.type) for v in values]
    return tuple((tuple(t.shape), products.dtype_of(t.element_type)) for t in types)


def type_of(shape: Sequence[int], dtype: Any) -> Any:
    """The tensor type of a shape and dtype."""
    text = products.element_type_of(dtype)
    return ir.Type.parse(f"tensor<{''.join(f'{n}x' for n in shape)}{text}>")


class Library:
    """The functions that have been lowered into a module; each once for every signature."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._block = module.regions[0].blocks[0]
        self._symbols: dict[Hashable, tuple[str, list[Any]]] = {}
        self._taken = {
            ir.StringAttr(op.attributes["sym_name"]).value
            for op in self._block.operations
            if "sym_name" in op.attributes
        }

    def lowered(
        self,
        name: str,
        key: Hashable,
        fun: Callable[..., Any],
        signature: Signature,
        platform: str | None = None,
    ) -> tuple[str, list[Any]]:
        """The symbol of a function, and the types of its results.

        Args:
          name: what it is called, if that is free.
          key: with ``name`` and ``signature``, equal for equal functions.
          fun: a JAX function of arrays.
          signature: of its arguments.
          platform: that it is lowered for, as JAX calls it; None: the attached one.
        """
        known = (name, key, signature, platform)
        if known not in self._symbols:
            self._symbols[known] = self._lower(name, fun, signature, platform)
        return self._symbols[known]

    def _lower(
        self, name: str, fun: Callable[..., Any], signature: Signature, platform: str | None
    ) -> tuple[str, list[Any]]:
        import jax

        def named(*args: Any) -> Any:
            return fun(*args)

        named.__name__ = named.__qualname__ = name.replace(".", "_")  # what profilers show
        wide = any(dtype.itemsize == 8 for _, dtype in signature)
        with jax.enable_x64(wide):
            structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in signature]
            traced = jax.jit(named, keep_unused=True).trace(*structs)
            lowered = traced.lower(lowering_platforms=(platform,) if platform else None)
            module: Any = lowered.compiler_ir()
        text = module.operation.get_asm(enable_debug_info=True)
        inner = ir.Module.parse(text, self.module.context)
        ops = [op.operation for op in inner.body.operations if op.operation.name == "func.func"]
        renamed = {
            old: self.free(name if old == "main" else f"{name}.{old}")
            for op in ops
            for old in [ir.StringAttr(op.attributes["sym_name"]).value]
        }
        for op in ops:
            self._adopt(op, renamed)
        symbol = renamed["main"]
        main = next(op for op in ops if ir.StringAttr(op.attributes["sym_name"]).value == symbol)
        kind = ir.FunctionType(ir.TypeAttr(main.attributes["function_type"]).value)
        types = list(kind.results)
        for op in ops:
            self._block.append(op.detach_from_parent())
        return symbol, types

    def _adopt(self, op: Any, renamed: dict[str, str]) -> None:
        """Renames a function and what it calls, and takes JAX's attributes off it."""
        old = ir.StringAttr(op.attributes["sym_name"]).value
        op.attributes["sym_name"] = ir.StringAttr.get(renamed[old])
        op.attributes["sym_visibility"] = ir.StringAttr.get("private")
        for extra in ("arg_attrs", "res_attrs"):
            if extra in op.attributes:
                del op.attributes[extra]

        def visit(inner: Any) -> Any:
            inner = inner.operation
            if inner.name == "func.call":
                callee = ir.FlatSymbolRefAttr(inner.attributes["callee"]).value
                inner.attributes["callee"] = ir.FlatSymbolRefAttr.get(renamed[callee])
            return ir.WalkResult.ADVANCE

        op.walk(visit)

    def free(self, name: str) -> str:
        """A symbol like ``name`` that the module does not have."""
        found, number = name, 0
        while found in self._taken:
            number += 1
            found = f"{name}_{number}"
        self._taken.add(found)
        return found
