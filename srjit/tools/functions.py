"""Functions and arguments that a command line names, and where its report goes."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import pkgutil
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from srjit import recipes, targets
from srjit.api.function import SrjitFunction, srjit
from srjit.choices import unknown_name
from srjit.report.document import Documented
from srjit.tools.output import Failure, OutputFile

_DTYPES = {
    "pred": "bool",
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"{s}{bits}": f"int{bits}" for s in "si" for bits in (4, 8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (4, 8, 16, 32, 64)},
    "bf16": "bfloat16",
}
_ARGUMENT = re.compile(r"(?P<dtype>\w+)\[(?P<dims>[\d,]*)\](@(?P<axes>[\w,+-]*))?")


def takes_function(parser: argparse.ArgumentParser, shapes: bool = True) -> None:
    """Adds the options that name a function, its arguments and how it is quantized.

    Args:
      parser: of the command.
      shapes: whether shapes of arguments are enough, without values.
    """
    add = parser.add_argument
    add("function", metavar="MODULE:FUNCTION", help="a function; a decorated one keeps its options")
    given = parser.add_mutually_exclusive_group(required=True)
    if shapes:
        given.add_argument(
            "--args",
            metavar="TEXT",
            help="its arguments, as arrays: 'f32[8,16] bf16[4]'; sharded over a mesh's axes: "
            "'f32[8,16]@data,-'",
        )
    given.add_argument(
        "--example",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that returns a tuple of them: "
        + ("arrays, jax.ShapeDtypeStruct, pytrees" if shapes else "arrays, pytrees"),
    )
    add("--target", help="the chip: v5e, h200, b200, ...; by default a decorator's own")
    add("--recipe", help="what a function that is not decorated gets (auto)")
    add(
        "--mode",
        default="train",
        choices=("train", "inference"),
        help="what a function that is not decorated is for (train)",
    )


def takes_output(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how a report is written, and where."""
    form = parser.add_mutually_exclusive_group()
    for name in ("json", "html"):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name)
    parser.add_argument(
        "-o", dest="output", default="-", metavar="FILE", help="where the report goes"
    )
    parser.set_defaults(form="table")


def function_of(options: argparse.Namespace) -> SrjitFunction:
    """The function that options name, quantized as they say unless it is decorated already.

    Raises:
      Failure: there is no such function, recipe or target.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    fun: Any = found(options.function)
    if isinstance(fun, SrjitFunction):
        return fun
    recipe = _in_any_case(options.recipe or "auto", recipes.names())
    target = _in_any_case(options.target or "auto", targets.names())
    try:
        quantized: Any = srjit(fun, recipe=recipe, mode=options.mode, target=target)
    except (TypeError, ValueError, OSError) as error:
        raise Failure(str(error)) from error
    return quantized


def target_of(options: argparse.Namespace, fun: SrjitFunction) -> targets.Target:
    """The target that options name; a function's own if they name none."""
    try:
        named = _in_any_case(options.target or "", targets.names())
        return targets.get(named) if named else fun.target
    except ValueError as error:
        raise Failure(str(error)) from error


def _in_any_case(name: str, known: tuple[str, ...]) -> str:
    return name.lower() if name.lower() in known else name


def arguments_of(options: argparse.Namespace, fun: SrjitFunction, mesh: Any) -> tuple[Any, ...]:
    """The arguments that options describe, sharded over a mesh, or None, if they say so.

    Raises:
      Failure: they are no arguments, or not those of the function.
    """
    if options.example:
        args = found(options.example)()
    else:
        args = tuple(_argument(text, mesh) for text in options.args.split())
    args = args if isinstance(args, tuple) else (args,)
    try:
        inspect.signature(fun).bind(*args)
    except TypeError as error:
        raise Failure(f"{options.function} takes other arguments: {error}") from error
    return args


def write(report: Documented, text: str, options: argparse.Namespace) -> None:
    """Writes a report in the form, and to the file, that options say.

    Args:
      report: as data or as a page.
      text: what it is as text.
      options: of the command.
    """
    output = OutputFile(options.output)
    made: dict[str, Any] = {
        "table": lambda: f"{text}\n",
        "json": lambda: f"{report.to_json()}\n",  # pyright: ignore[reportAttributeAccessIssue]
        "html": report.to_html,
    }
    output.write(made[options.form]().encode())
    output.keep()


def without_accelerators() -> None:
    """Keeps JAX from looking for accelerators: nothing runs."""
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")


def found(name: str) -> Any:
    """The object that ``MODULE:NAME`` names.

    Raises:
      Failure: there is none.
    """
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


def mesh_sizes(text: str) -> dict[str, int]:
    """The sizes of a mesh by the names of its axes: ``data=4,model=2``.

    Raises:
      Failure: the text says none.
    """
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
