"""``srjit-strip-annotations``."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from srjit._mlir import ir
from srjit.passes.driver.registry import Pass, register
from srjit.passes.mlir import annotation
from srjit.program.stablehlo import operations

_INTERFACE = (annotation.KEY, annotation.STATE)
_OF_ARGUMENTS = ("arg_attrs", "res_attrs")


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class StripAnnotations(Pass):
    """Removes the attributes that srjit's passes left for each other.

    They are notes of one pass to the next, and of no use to a compiler. Run it last, after
    ``srjit-report``. What says which arguments are the key and the state stays, because whoever
    calls the program has to know.

    Before ==> after:
        %0 = stablehlo.dot_general %x, %w, ... {srjit.sites = [{number = 0 : i64, ...}]}
        ==>
        %0 = stablehlo.dot_general %x, %w, ...

    Attributes:
      interface: remove `srjit.key` and `srjit.state` of arguments and results too.
    """

    name: ClassVar[str] = "srjit-strip-annotations"
    interface: bool = False

    def run(self, module: ir.Operation) -> dict[str, int]:
        """Removes them from operations, arguments and results."""
        removed = 0
        for op in operations.walk(module):
            ours = [name for name in op.attributes if name.startswith(annotation.PREFIX)]
            for name in ours:
                if name != operations.ENTRY:
                    del op.attributes[name]
                removed += 1
            for name in _OF_ARGUMENTS:
                given = operations.attribute_of(op, name) if name in op.attributes else None
                if isinstance(given, ir.ArrayAttr):
                    op.attributes[name] = ir.ArrayAttr.get([self._kept(each) for each in given])
        return {"attributes removed from operations": removed}

    def _kept(self, attributes: ir.Attribute) -> ir.Attribute:
        entries = operations.entries(attributes)
        if entries is None:  # not ours: we write no complex numbers
            return attributes
        kept = {
            name: value
            for name, value in entries.items()
            if not name.startswith(annotation.PREFIX) or (name in _INTERFACE and not self.interface)
        }
        return ir.DictAttr.get(kept)
