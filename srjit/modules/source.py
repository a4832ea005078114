"""Modules that did not come from a JAX function of this process: read, and checked to run here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jax.core import ShapedArray

from srjit._mlir import ir
from srjit.passes import PipelineError
from srjit.passes.mlir import serialization
from srjit.program.stablehlo.operations import device_counts, inside, text
from srjit.program.stablehlo.program import aval_of

# Custom calls whose callback is a Python function of the process that lowered the module.
_CALLBACKS = ("python_cpu_callback", "python_gpu_callback", "python_tpu_callback")
_TRANSFERS = ("stablehlo.send", "stablehlo.recv")


def read(program: Any) -> tuple[ir.Module, str]:
    """A module of its own of whatever a module is given as, and its name.

    Raises:
      TypeError: it is given as none of them.
      ValueError: MLIR cannot parse it.
      OSError: there is no such file.
    """
    name = "the module"
    if isinstance(program, ir.Module):
        module = serialization.copy_of(program)
    elif isinstance(program, (str, bytes, bytearray, os.PathLike)):
        source: Any = bytes(program) if isinstance(program, bytearray) else program
        if isinstance(program, os.PathLike) or _is_path(program):
            source = Path(source)
            name = str(source)
        try:
            module = serialization.parse(source, name)
        except PipelineError as error:
            raise ValueError(str(error)) from error
    else:
        raise TypeError(
            "srjit.rejit takes what jax.jit(f).lower(...) returns, an ir.Module, MLIR's text or "
            f"bytecode, or the path of an .mlir file; got {type(program).__name__}"
        )
    if name == "the module":
        name = text(module.operation, "sym_name") or name
    if "sym_name" not in module.operation.attributes:  # JAX compiles none without
        attribute = ir.StringAttr.get("rejitted", module.context)
        module.operation.attributes["sym_name"] = attribute
    return module, name


def _is_path(program: Any) -> bool:
    if not isinstance(program, str) or "\n" in program or "{" in program:
        return False
    return program.endswith((".mlir", ".mlirbc", ".bc")) or os.path.exists(program)


def targets_of(module: ir.Module) -> list[str]:
    """The targets of a module's custom calls, and its operations that send and receive."""
    found: dict[str, None] = {}
    for op in inside(module.operation):
        if op.name == "stablehlo.custom_call":
            found[text(op, "call_target_name")] = None
        elif op.name in _TRANSFERS:
            found[op.name] = None
    return list(found)


def called_back(module: ir.Module) -> list[str]:
    """The custom calls of a module that call Python functions of the process that lowered it."""
    return [t for t in targets_of(module) if t.endswith(_CALLBACKS) or t in _TRANSFERS]


def partitions_of(module: ir.Module, name: str) -> int:
    """How many devices a module is for.

    Raises:
      ValueError: it has replicas.
    """
    partitions, replicas = device_counts(module.operation)
    if replicas not in (None, 1):
        raise ValueError(f"{name} is for {replicas} replicas (mhlo.num_replicas): JAX has one")
    return 1 if partitions is None else partitions


def avals_of(types: list[ir.Type], name: str, what: str) -> list[ShapedArray]:
    """JAX's types of the arguments or results (``what``) of a module.

    Raises:
      ValueError: JAX has no arrays of one of them.
    """
    avals = [aval_of(kind) for kind in types]
    for number, (kind, aval) in enumerate(zip(types, avals, strict=True)):
        if isinstance(aval.dtype, str):
            raise ValueError(
                f"{what} {number} of {name} is a {kind}: srjit.rejit runs modules whose arguments "
                "and results are tensors of static shape and of JAX's dtypes"
            )
    return [ShapedArray(aval.shape, aval.dtype) for aval in avals]
