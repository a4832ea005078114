"""``srjit-aot``: compiles a function for hardware that is not attached, and reports its sites."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

from srjit.aot import CompiledReport, MissingCompilerError
from srjit.aot.compilers import devices_of, mesh_of
from srjit.api.transformation import UnsupportedSiteError
from srjit.tools.functions import (
    arguments_of,
    function_of,
    mesh_sizes,
    takes_function,
    takes_output,
    target_of,
    without_accelerators,
    write,
)
from srjit.tools.output import Failure, OutputFile


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``srjit-aot``.

    Args:
      argv: arguments, without the program's name; those of the process if None.

    Returns:
      The exit status: 0 if all went well.
    """
    options = _parser().parse_args(argv)
    try:
        OutputFile(options.output)  # can it be written? Compiling takes long
        report = _report(options)
        write(report, str(report), options)
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
    takes_function(parser)
    add = parser.add_argument
    add("--mesh", metavar="AXES", help="for several devices: data=4,model=2")
    takes_output(parser)
    return parser


def _report(options: argparse.Namespace) -> CompiledReport:
    mesh = mesh_sizes(options.mesh) if options.mesh else None
    without_accelerators()
    fun = function_of(options)
    target = target_of(options, fun)
    try:
        devices_of(target, math.prod((mesh or {}).values()))
        sharded_over = mesh_of(target, mesh) if mesh else None
    except (TypeError, ValueError, OSError) as error:
        raise Failure(str(error)) from error
    args = arguments_of(options, fun, sharded_over)
    return fun.aot(*args, target=target, mesh=mesh)


if __name__ == "__main__":
    sys.exit(main())
