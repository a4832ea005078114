"""Modules that did not come from a JAX function of this process: read, and checked to run here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jax.core import ShapedArray

from srjit._mlir import ir, stablehlo
from srjit.passes import PipelineError
from srjit.passes.driver.entry import located, mark, module_around
from srjit.passes.mlir import serialization
from srjit.program.stablehlo.operations import device_counts, inside, main_of, text, types_of
from srjit.program.stablehlo.program import aval_of

# Custom calls whose callback is a Python function of the process that lowered the module.
_CALLBACKS = ("python_cpu_callback", "python_gpu_callback", "python_tpu_callback")
_TRANSFERS = ("stablehlo.send", "stablehlo.recv")


def read(program: Any, entry: str | None) -> tuple[ir.Module, str]:
    """A module of its own of whatever a module is given as, and its name.

    Its entry is ``@main``, or what it says itself (``srjit.entry``).

    Raises:
      TypeError: it is given as none of them.
      ValueError: MLIR cannot parse it, or it has no such function.
      OSError: there is no such file.
    """
    name = "the module"
    try:
        if isinstance(program, ir.Module):
            module = serialization.copy_of(program)
        elif isinstance(program, (str, bytes)):
            module = serialization.parse(program)
        elif isinstance(program, Path):
            module, name = serialization.parse(program, str(program)), str(program)
        else:
            raise TypeError(
                "srjit.rejit takes what jax.jit(f).lower(...) returns, a jax.export.Exported, an "
                "ir.Module, MLIR's text or bytecode, or the path of a file with one of these; got "
                f"{type(program).__name__}"
            )
        serialization.to_stablehlo(module)
        if entry is not None:
            module = _starting_with(module, entry)
    except PipelineError as error:
        raise ValueError(str(error)) from error
    if name == "the module":
        name = text(module.operation, "sym_name") or name
    if "sym_name" not in module.operation.attributes:  # JAX compiles none without
        attribute = ir.StringAttr.get("rejitted", module.context)
        module.operation.attributes["sym_name"] = attribute
    return module, name


def _starting_with(module: ir.Module, entry: str) -> ir.Module:
    """The module that holds a function, and says that it starts with it."""
    function = located(module.operation, entry)
    inner = module_around(function)
    if inner != module.operation:
        for name in module.operation.attributes:  # for how many devices it is
            if name.startswith("mhlo.") and name not in inner.attributes:
                inner.attributes[name] = module.operation.attributes[name]
        mark(function)
        return serialization.copy_of(inner)
    mark(function)
    return module


def opened(program: Any) -> Any:
    """Reads a path and deserializes a program of JAX; returns anything else as it is.

    Raises:
      OSError: there is no such file.
    """
    if isinstance(program, os.PathLike) or _is_path(program):
        program = Path(program)
        content = program.read_bytes()
    elif isinstance(program, (bytes, bytearray)):
        content = program = bytes(program)
    else:
        return program
    try:
        return serialization.exported_in(content) or program
    except PipelineError as error:
        raise ValueError(str(error)) from error


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


def refuse_callbacks(module: ir.Module, name: str) -> None:
    """Raises ValueError if a module calls Python functions of the process that lowered it."""
    if found := called_back(module):
        raise ValueError(
            f"{name} calls Python functions of the process that lowered it ({', '.join(found)}), "
            "which a module does not contain: give srjit.rejit what .lower(...) returned, in that "
            "process, or lower the program without jax.debug.print, pure_callback and io_callback"
        )


def partitions_of(module: ir.Module, name: str) -> int:
    """The number of devices that a module is for.

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


def for_platform(module: ir.Module, exported: Any, platform: str) -> ir.Module:
    """The module of an exported program on one of its platforms.

    A program for several takes first which of them it runs on.

    Raises:
      ValueError: it is for others.
    """
    if platform not in exported.platforms:
        raise ValueError(
            f"{exported.fun_name} was exported for {', '.join(exported.platforms)}; this is "
            f"{platform}: export it with platforms=[{platform!r}]"
        )
    if len(exported.platforms) == 1:
        return module
    module = serialization.copy_of(module)
    main = main_of(module.operation)
    block = main.regions[0].blocks[0]
    with module.context, ir.Location.unknown(), ir.InsertionPoint.at_block_begin(block):
        index = ir.IntegerAttr.get(
            ir.IntegerType.get_signless(32), exported.platforms.index(platform)
        )
        kind: Any = block.arguments[0].type
        constant = stablehlo.constant(ir.DenseElementsAttr.get_splat(kind, index))
        block.arguments[0].replace_all_uses_with(constant)
        block.erase_argument(0)
        inputs, outputs = types_of(main)
        main.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs[1:], outputs))
        main.attributes["arg_attrs"] = ir.ArrayAttr.get(
            list(ir.ArrayAttr(main.attributes["arg_attrs"]))[1:]
        )
    return module
