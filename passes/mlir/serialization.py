"""Modules as text, bytecode and portable artifacts: parsed, written and copied."""

from __future__ import annotations

import io
import os
import shutil
import uuid
from pathlib import Path

from srjit import _mlir
from srjit._mlir import ir
from srjit.passes.driver import diagnostics
from srjit.passes.driver.diagnostics import Diagnostic, PipelineError

BYTECODE = b"ML\xefR"  # the beginning of it


def parse(source: str | bytes | Path, name: str = "the module") -> ir.Module:
    """A module in a context of its own.

    Args:
      source: text, bytecode, a portable artifact, or the path of a file that holds one of them.
      name: for messages.

    Raises:
      PipelineError: MLIR cannot parse it.
      OSError: there is no such file.
    """
    said: list[Diagnostic] = []
    context = _mlir.new_context()
    with diagnostics.going_to(said.append, context):
        module = parse_in(context, source)
    if module is None:
        raise PipelineError(f"{name} is no MLIR module", said)
    return module


def parse_in(context: ir.Context, source: str | bytes | Path) -> ir.Module | None:
    """The module, or None after diagnostics that say why there is none."""
    content = source.read_bytes() if isinstance(source, Path) else source
    with context:
        try:
            if isinstance(content, bytes) and _is_artifact(content):
                return _mlir.stablehlo.deserialize_portable_artifact(context, content)
            if isinstance(source, Path):
                return ir.Module.parseFile(str(source))  # locations name the file
            return ir.Module.parse(content)
        except (ir.MLIRError, ValueError):
            return None


def _is_artifact(content: bytes) -> bool:
    """Whether bytes are a portable artifact: it names StableHLO as its producer."""
    return content.startswith(BYTECODE) and b"StableHLO_v" in content[:64]


def bytecode_of(module: ir.Module, version: int | None = None) -> bytes:
    """A module's bytecode, in MLIR's current version of it or in another one."""
    buffer = io.BytesIO()
    module.operation.write_bytecode(buffer, version)
    return buffer.getvalue()


def text_of(module: ir.Module, *, debug_info: bool = False) -> str:
    """A module's text, with locations if asked for."""
    return str(module.operation.get_asm(enable_debug_info=debug_info))


def copy_of(module: ir.Module, context: ir.Context | None = None) -> ir.Module:
    """A copy with all locations, in that context, or in one of its own."""
    with module.context:
        code = bytecode_of(module)
    return ir.Module.parse(code, context=context or _mlir.new_context())


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file as a whole or not at all, keeping its permissions."""
    if not os.access(path.parent, os.W_OK):
        path.write_bytes(data)
        return
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        new.write_bytes(data)
        if path.exists():
            shutil.copymode(path, new)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
