"""``srjit-legalize``: composites of srjit as what a target runs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from srjit._mlir import ir
from srjit.passes.driver.registry import Pass, PassError, register
from srjit.passes.emit import shardings
from srjit.passes.emit.composites import QUANTIZE, SCALED_DOT
from srjit.passes.emit.settle import settle
from srjit.passes.emit.target_calls import TargetCalls
from srjit.passes.inline_calls import inline
from srjit.passes.mlir import annotation, attributes, editing
from srjit.passes.mlir.header import header_of
from srjit.products import kinds
from srjit.program.left_alone import COMPOSITE
from srjit.program.stablehlo import operations


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Legalize(Pass):
    """Replaces composites of srjit by the operations that a target runs.

    Every number is defined once: a target's products and quantizations are those that the
    decorator uses there. ``target=portable`` inlines the decompositions that the composites carry.
    In a module of a program on one device (`mhlo.num_partitions = 1`), a target that multiplies
    codes with the scales of their blocks beside them gets them so, and a target that can quantizes
    a value in several ways at once. If the arguments are sharded, devices that have parts of a
    contraction add them in the dtype of the program's own product (docs/meshes.md).
    A composite that srjit does not know stays, and the report says so.

    Attributes:
      target: a chip's name, `portable`, `auto`: the attached device's; or a Target.

    Before ==> after:
        %0 = stablehlo.composite "srjit.scaled_dot" %q#0, %q#1, %r#0, %r#1 {...}
        ==>
        %0 = call @srjit.scaled_dot_int8_int8_cpu(%q#0, %q#1, %r#0, %r#1)
    """

    name: ClassVar[str] = "srjit-legalize"
    target: str | object = "auto"

    def run(self, module: ir.Operation) -> dict[str, int]:
        """Legalizes."""
        from srjit import targets
        from srjit.targets.target import PORTABLE

        try:
            target = targets.get(self.target)  # type: ignore[arg-type]
        except ValueError as error:
            raise PassError(None, str(error)) from None
        composites = [op for op in operations.inside(module) if annotation.is_composite(op)]
        names = {op: operations.text(op, "name") for op in composites}
        ours = [op for op, name in names.items() if _is_ours(name)]
        unknown = dict.fromkeys(name for name in names.values() if not _is_ours(name))
        used = {ir.FlatSymbolRefAttr(op.attributes["decomposition"]).value: None for op in ours}
        TargetCalls(target, module).replace(ours)
        if target is PORTABLE and used:
            used |= dict.fromkeys(inline(module, lambda name: name.startswith(annotation.PREFIX)))
        editing.erase_unused_functions(module, used)
        is_sharded = (operations.device_counts(module)[0] or 1) > 1
        if not is_sharded or shardings.are_given(operations.main_of(module)):
            settle(module)  # otherwise it is a part of a program, which its lowering settles
        header = header_of(module)
        if header is not None:
            notes = [f"composite {n} stays: target {target.name} does not know it" for n in unknown]
            header = dataclasses.replace(header, target=target.name, notes=(*header.notes, *notes))
            module.attributes[annotation.REPORT] = attributes.encode(header)
        return {"composites replaced": len(ours), "composites left": len(composites) - len(ours)}


def _is_ours(name: str) -> bool:
    return name in (QUANTIZE, SCALED_DOT, COMPOSITE) or kinds.of_operation(name) is not None
