"""Modules as text, bytecode, artifacts and exported programs: parsed, written and copied."""

from __future__ import annotations

import io
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from srjit import _mlir
from srjit._mlir import ir
from srjit.passes.driver import diagnostics
from srjit.passes.driver.diagnostics import Diagnostic, PipelineError

BYTECODE = b"ML\xefR"  # the beginning of it


def parse(source: str | bytes | Path, name: str = "the module") -> ir.Module:
    """A module in a context of its own.

    Args:
      source: text, bytecode, a portable artifact, what ``jax.export`` serialized, or the path of a
        file that holds one of them.
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
    if isinstance(content, bytes) and (exported := exported_in(content)) is not None:
        content = exported.mlir_module_serialized
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
    """True if bytes are a portable artifact: it names StableHLO as its producer."""
    return content.startswith(BYTECODE) and b"StableHLO_v" in content[:64]


def exported_in(content: bytes) -> Any:
    """The ``jax.export.Exported`` that serialized bytes are; None if they are something else.

    Raises:
      PipelineError: they may be one, and its package is not installed.
    """
    if content.startswith(BYTECODE) or b"\0" not in content[:16]:
        return None
    import jax.export

    try:
        return jax.export.deserialize(bytearray(content))
    except ImportError as error:
        hint = "pip install srjit[export]"
        raise PipelineError(f"programs of jax.export need flatbuffers: {hint}") from error
    except Exception:  # flatbuffers raises whatever it stumbles over
        return None


def to_stablehlo(module: ir.Module) -> None:
    """Makes StableHLO of a module in VHLO, of which artifacts are made.

    Raises:
      PipelineError: it cannot be.
    """
    if not any(op.operation.name == "vhlo.func_v1" for op in module.body.operations):
        return
    said: list[Diagnostic] = []
    version = _mlir.stablehlo.get_current_version()
    text = f"builtin.module(vhlo-to-version{{target={version}}},vhlo-legalize-to-stablehlo)"
    with module.context, diagnostics.going_to(said.append, module.context):
        try:
            _mlir.passmanager.PassManager.parse(text).run(module.operation)
        except ir.MLIRError:
            raise PipelineError("the module is in VHLO that StableHLO cannot read", said) from None


def bytecode_of(module: ir.Module | ir.Operation, version: int | None = None) -> bytes:
    """A module's bytecode, in MLIR's current version of it or in another one."""
    buffer = io.BytesIO()
    module.operation.write_bytecode(buffer, version)
    return buffer.getvalue()


def text_of(module: ir.Module, *, debug_info: bool = False) -> str:
    """A module's text, with locations if asked for."""
    return str(module.operation.get_asm(enable_debug_info=debug_info))


def copy_of(module: ir.Module | ir.Operation, context: ir.Context | None = None) -> ir.Module:
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
