"""Modules printed, parsed and printed again: ``srjit-opt --verify-roundtrip``."""

from __future__ import annotations

from srjit import _mlir
from srjit._mlir import ir
from srjit.passes.driver import diagnostics
from srjit.passes.driver.diagnostics import Diagnostic
from srjit.passes.mlir import serialization


def succeeds(module: ir.Module) -> bool:
    """True if a module is read back equal from text, generic text and bytecode; errors if not."""
    reference = _text(module, generic=True)
    forms: dict[str, str | bytes] = {
        "text": _text(module),
        "generic text": reference,
        "bytecode": serialization.bytecode_of(module),
    }
    found = [why for form, written in forms.items() if (why := _why_not(module, form, written))]
    for why in found:
        module.operation.location.emit_error(why)
    return not found


def _why_not(module: ir.Module, form: str, written: str | bytes) -> str:
    reference, context = _text(module, generic=True), _mlir.new_context()
    context.allow_unregistered_dialects = module.context.allow_unregistered_dialects
    said: list[Diagnostic] = []
    with diagnostics.going_to(said.append, context):
        again = serialization.parse_in(context, written)
    if again is None:
        return f"{form} roundtrip: it cannot be parsed: {'; '.join(map(str, said))}"
    text = _text(again, generic=True)
    return (
        ""
        if text == reference
        else (
            f"{form} roundtrip: roundtripped module differs from reference:\n"
            f"<<<<<<Reference\n{reference}\n=====\n{text}\n>>>>>roundtripped"
        )
    )


def _text(module: ir.Module, generic: bool = False) -> str:
    return str(
        module.operation.get_asm(
            enable_debug_info=True, print_generic_op_form=generic, use_local_scope=True
        )
    )
