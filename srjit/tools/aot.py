"""``srjit-aot``: compiles a function for hardware that is not attached, and reports its sites."""

from __future__ import annotations

import argparse
import importlib
import inspect
import math
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from srjit import targets
from srjit.aot import CompiledReport, MissingCompilerError
from srjit.aot.compilers import devices_of, mesh_of
from srjit.api.function import SrjitFunction, srjit
from srjit.api.transformation import UnsupportedSiteError
from srjit.choices import unknown_name
from srjit.tools.output import Failure, OutputFile

_DTYPES = {
    "pred": "bool",
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"{s}{bits}": f"int{bits}" for s in "si" for bits in (4, 8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (4, 8, 16, 32, 64)},
    "bf16": "bfloat16",
}
_ARGUMENT = re.compile(r"(?P<dtype>\w+)\[(?P<dims>[\d,]*)\](@(?P<axes>[\w,+-]*))?")
_FORMS = {
    "table": lambda report: f"{report}\n",
    "json": lambda report: f"{report.to_json()}\n",
    "html": lambda report: report.to_html(),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``srjit-aot``.

    Args:
      argv: arguments, without the program's name; those of the process if None.

    Returns:
      The exit status: 0 if all went well.
    """
    options = _parser().parse_args(argv)
    try:
        output = OutputFile(options.output)
        output.write(_FORMS[options.form](_report(options)).encode())
        output.keep()
    except (Failure, MissingCompilerError, UnsupportedSiteError) as error:
        print(f"srjit-aot: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "srjit-aot",
        description="Compiles a function with its matrix multiplications quantized, and as it is, "
        "for hardware that is not attached, and reports what the compiler made of every one.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("function", metavar="MODULE:FUNCTION", help="a function; a decorated one keeps its options")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--args",
        metavar="TEXT",
        help="its arguments, as arrays: 'f32[8,16] bf16[4]'; sharded over a mesh's axes: "
        "'f32[8,16]@data,-'",
    )
    given.add_argument(
        "--example",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that returns a tuple of them: arrays, "
        "jax.ShapeDtypeStruct, pytrees",
    )
    add("--target", help="the chip: v5e, h200, b200, ...; by default a decorator's own")
    add("--recipe", default="auto", help="what a function that is not decorated gets (auto)")
    add("--mode", default="train", choices=("train", "inference"), help="likewise (train)")
    add("--mesh", metavar="AXES", help="for several devices: data=4,model=2")
    form = parser.add_mutually_exclusive_group()
    for name in ("json", "html"):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name)
    add("-o", dest="output", default="-", metavar="FILE", help="where the report goes")
    parser.set_defaults(form="table")
    return parser


def _report(options: argparse.Namespace) -> CompiledReport:
    mesh = _mesh(options.mesh) if options.mesh else None
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")  # nothing runs: no accelerator is looked for
    sys.path.insert(0, "")
    fun: Any = _found(options.function)
    try:
        if not isinstance(fun, SrjitFunction):
            target = options.target or "auto"
            fun = srjit(fun, recipe=options.recipe, mode=options.mode, target=target)
        target = targets.get(options.target) if options.target else fun.target
        devices_of(target, math.prod((mesh or {}).values()))
        sharded_over = mesh_of(target, mesh) if mesh else None
    except (TypeError, ValueError, OSError) as error:
        raise Failure(str(error)) from error
    if options.example:
        args = _found(options.example)()
    else:
        args = tuple(_argument(text, sharded_over) for text in options.args.split())
    args = args if isinstance(args, tuple) else (args,)
    try:
        inspect.signature(fun).bind(*args)
    except TypeError as error:
        raise Failure(f"{options.function} takes other arguments: {error}") from error
    return fun.aot(*args, target=target, mesh=mesh)


def _found(name: str) -> Any:
    module, colon, attribute = name.partition(":")
    if not colon or not attribute:
        raise Failure(f"{name!r} is not of the form MODULE:FUNCTION")
    try:
        return pkgutil.resolve_name(name)
    except ModuleNotFoundError as error:
        raise Failure(f"{name!r} cannot be imported: {error}") from error
    except AttributeError:
        there = vars(importlib.import_module(module)).items()
        known = [n for n, v in there if callable(v) and not n.startswith("_")]
        raise Failure(str(unknown_name("function", attribute, known))) from None


def _mesh(text: str) -> dict[str, int]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and size.isdigit() and int(size) for name, _, size in pairs):
        raise Failure(f"a mesh is sizes by name, such as data=4,model=2: got {text!r}")
    return {name: int(size) for name, _, size in pairs}


def _argument(text: str, mesh: Any) -> jax.ShapeDtypeStruct:
    found = _ARGUMENT.fullmatch(text)
    if found is None:
        raise Failure(f"{text!r} is no array: write f32[8,16], or f32[8,16]@data,- on a mesh")
    try:
        dtype = jnp.dtype(_DTYPES.get(found["dtype"], found["dtype"]))
    except TypeError:
        raise Failure(str(unknown_name("dtype", found["dtype"], _DTYPES))) from None
    shape = tuple(int(n) for n in found["dims"].split(",") if n)
    if found["axes"] is None:
        return jax.ShapeDtypeStruct(shape, dtype)
    if mesh is None:
        raise Failure(f"{text!r} is sharded: over which mesh? Give --mesh, such as data=4")
    axes = [tuple(a for a in part.split("+") if a != "-") for part in found["axes"].split(",")]
    unknown = [a for names in axes for a in names if a not in mesh.axis_names]
    if unknown:
        raise Failure(f"{text!r}: {unknown_name('axis', unknown[0], mesh.axis_names)}")
    spec = PartitionSpec(*(names or None for names in axes))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


if __name__ == "__main__":
    sys.exit(main())
