"""JAX functions as private functions of a module: how passes say what numbers are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from srjit._mlir import ir
from srjit.passes.mlir import editing
from srjit.program.stablehlo import operations, products

_NAMES_MESHES = "replica_group_mesh_axes"  # so does JAX, from 0.12 on
Signature = tuple[tuple[tuple[int, ...], Any], ...]


def signature_of(values: Sequence[Any]) -> Signature:
    """Shapes and dtypes of ranked, static values."""
    types = [ir.RankedTensorType(v.type) for v in values]
    return tuple((tuple(t.shape), products.dtype_of(t.element_type)) for t in types)


def type_of(shape: Sequence[int], dtype: Any) -> Any:
    """The tensor type of a shape and dtype."""
    text = products.element_type_of(dtype)
    return ir.Type.parse(f"tensor<{''.join(f'{n}x' for n in shape)}{text}>")


@dataclasses.dataclass(frozen=True)
class _Function:
    """A JAX function, for JAX's caches: equal to those of its name and key."""

    name: str
    key: Hashable
    fun: Callable[..., Any] = dataclasses.field(compare=False)

    @property
    def __name__(self) -> str:
        return self.name.replace(".", "_")  # what profilers show

    def __call__(self, *args: Any) -> Any:
        return self.fun(*args)


class Library:
    """The functions that have been lowered into a module; each once for every signature."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._block = module.regions[0].blocks[0]
        self._symbols: dict[Hashable, tuple[str, list[Any]]] = {}
        named = (operations.text(op, "sym_name") for op in operations.top_level(module))
        self._taken = set(filter(None, named))

    def call(
        self, name: str, fun: Callable[..., Any], *operands: Any, key: Hashable = None
    ) -> ir.Value[Any]:
        """The only result of a new call of a function; ``key`` and ``name`` as of ``lowered``."""
        symbol, types = self.lowered(name, key, fun, signature_of(operands))
        return editing.call(symbol, types, operands)[0]

    def lowered(
        self,
        name: str,
        key: Hashable,
        fun: Callable[..., Any],
        signature: Signature,
        platform: str = "cpu",
        result: Any = None,
    ) -> tuple[str, list[Any]]:
        """The symbol of a function, and the types of its results.

        Args:
          name: what it is called, if that is free.
          key: with ``name`` and ``signature``, equal for equal functions, in whatever modules.
          fun: a JAX function of arrays.
          signature: of its arguments.
          platform: that it is lowered for, as JAX calls it. What is lowered for a CPU runs
            everywhere.
          result: the dtype of its result, where it may be wider than those of its arguments.
        """
        known = (name, key, signature, platform)
        if known not in self._symbols:
            dtypes = [dtype for _, dtype in signature]
            wide = any(d.itemsize == 8 for d in (*dtypes, *([] if result is None else [result])))
            self._symbols[known] = self._lower(_Function(name, key, fun), signature, platform, wide)
        return self._symbols[known]

    def _lower(
        self, fun: _Function, signature: Signature, platform: str, wide: bool
    ) -> tuple[str, list[Any]]:
        import jax

        from srjit import _compat

        name = fun.name
        with jax.enable_x64(wide):
            text = _compat.lowered_without_devices(fun, signature, platform)
        inner = ir.Module.parse(text, self.module.context)
        if _NAMES_MESHES in text:
            inner = ir.Module.parse(self._with_meshes(text, inner), self.module.context)
        functions = operations.functions(inner.operation)
        renamed = {old: self.free(name if old == "main" else f"{name}.{old}") for old in functions}
        for old, op in functions.items():
            for called in operations.inside(op):
                for name_of in ("callee", "decomposition"):  # of a call, of a composite
                    if name_of in called.attributes:
                        symbol = ir.FlatSymbolRefAttr(called.attributes[name_of]).value
                        called.attributes[name_of] = ir.FlatSymbolRefAttr.get(renamed[symbol])
            for of_jax in ("arg_attrs", "res_attrs"):
                if of_jax in op.attributes:
                    del op.attributes[of_jax]
            op.attributes["sym_name"] = ir.StringAttr.get(renamed[old])
            op.attributes["sym_visibility"] = ir.StringAttr.get("private")
            self._block.append(op.detach_from_parent())
        return renamed["main"], operations.types_of(functions["main"])[1]

    def _with_meshes(self, text: str, inner: ir.Module) -> str:
        """The text of a module whose collectives name meshes of this module."""
        names: dict[str, str] = {}
        for op in operations.top_level(inner.operation):
            if op.name == "sdy.mesh":
                names[operations.text(op, "sym_name")] = self._mesh_like(op)
        text = re.sub(r"@([\w$.]+)", lambda found: f"@{names.get(found[1], found[1])}", text)
        defined: set[str] = set()
        lines: list[str] = []
        for line in text.splitlines():  # two meshes may be one of this module
            if line.lstrip().startswith("sdy.mesh "):
                name = line.split("@")[1].split()[0]
                if name in defined:
                    continue
                defined.add(name)
            lines.append(line)
        return "\n".join(lines)

    def _mesh_like(self, op: ir.Operation) -> str:
        """The name of this module's mesh that is like one; one more, if it has none."""
        for own in operations.top_level(self.module):
            if own.name == "sdy.mesh" and own.attributes["mesh"] == op.attributes["mesh"]:
                return operations.text(own, "sym_name")
        name = self.free(f"srjit.{operations.text(op, 'sym_name')}")
        copy = op.clone(ip=ir.InsertionPoint.at_block_begin(self._block)).operation
        copy.attributes["sym_name"] = ir.StringAttr.get(name)
        return name

    def free(self, name: str) -> str:
        """A symbol like ``name`` that the module does not have."""
        return editing.free_symbol(name, self._taken)
