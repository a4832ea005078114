"""``srjit-opt``: runs passes on a module, as ``mlir-opt`` does."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import linecache
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srjit import _mlir
from srjit._mlir import ir
from srjit.passes.driver import diagnostics, pipeline, registry, running
from srjit.passes.driver.diagnostics import Diagnostic, PipelineError
from srjit.passes.driver.options import nearest, options_of, text_of_value
from srjit.passes.mlir import serialization
from srjit.tools import expected_diagnostics, reproducer, round_trip
from srjit.tools.output import Failure, OutputFile

# Flags that may stand without a value, and the value that they then have.
_IMPLIED = {
    "--split-input-file": "// -----",
    "--verify-diagnostics": "all",
    "--verify-each": "true",
    "--emit-portable-artifact": "current",
}
_BOOL = {"true": True, "1": True, "false": False, "0": False}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``srjit-opt``.

    Args:
      argv: arguments, without the program's name; those of the process if None.

    Returns:
      The exit status: 0 if all went well.
    """
    try:
        args, flags = _arguments(sys.argv[1:] if argv is None else argv)
        for plugin in args.load_pass_plugin:
            _load_plugin(plugin)
        if args.list_passes or args.show_dialects:
            (_list_passes if args.list_passes else _show_dialects)()
            return 0
        given = map(_of_flag, flags) if flags else [pipeline.parse(args.pass_pipeline or "")]
        return 0 if _optimize(args, pipeline.Pipeline(*given)) else 1
    except (Failure, pipeline.PipelineSyntaxError) as error:
        print(f"srjit-opt: {error}", file=sys.stderr)
    except BrokenPipeError:
        # Nobody reads any more; do not let Python say so when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


# ---------------------------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "srjit-opt",
        description="Runs passes of srjit and of MLIR on a module: text, bytecode, a StableHLO "
        "portable artifact or what jax.export serialized. Every pass is a flag too: "
        "--srjit-inline-calls, --canonicalize, --srjit-strip-annotations='interface=true'; they "
        "run in the order given.",
        allow_abbrev=False,
    )
    parser.register("action", None, _Once)
    add = parser.add_argument
    add("input", nargs="?", default="-", help="the module; standard input if it is - or absent")
    add("-p", "--pass-pipeline", metavar="TEXT", help="passes: 'builtin.module(srjit-a{x=1},cse)'")
    add("-o", dest="output", default="-", metavar="FILE", help="where the result goes")
    add("--emit-bytecode", action="store_true", help="write MLIR bytecode")
    version = "--emit-bytecode-version"
    add(version, type=int, metavar="N", help="of this version of MLIR's bytecode")
    add(
        "--emit-portable-artifact",
        metavar="VERSION",
        help="write a StableHLO portable artifact, for this version or the current one",
    )
    add("--entry", metavar="NAME", help="the function to start with if not @main: f, inner::f")
    add("--list-passes", action="store_true", help="list srjit's passes, and users' own")
    add("--dump-pass-pipeline", action="store_true", help="print the pipeline before it runs")
    add(
        "--load-pass-plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module, or a file.py, that registers passes",
    )
    add("--allow-unregistered-dialect", action="store_true", help="parse unknown operations")
    add("--split-input-file", metavar="MARK", help="treat parts between '// -----' one by one")
    add(
        "--verify-diagnostics",
        choices=("all", "only-expected"),
        help="compare diagnostics with comments such as // expected-error@+1 {{text}}",
    )
    add("--verify-each", choices=_BOOL, default="true", help="verify after each pass (default)")
    add("--verify-roundtrip", action="store_true", help="print the input, and read it back, first")
    crash = "--mlir-pass-pipeline-crash-reproducer"
    add(crash, metavar="FILE", help="write a module and pipeline that fail")
    add("--run-reproducer", action="store_true", help="run the pipeline that such a file has")
    trace = "--mlir-print-stacktrace-on-diagnostic"
    add(trace, action="store_true", help="print the traceback of a pass that failed")
    add("--show-dialects", action="store_true", help="list the dialects that can be parsed")
    add("--mlir-pass-statistics", action="store_true", help="print what passes counted")
    add("--mlir-timing", action="store_true", help="print how long passes took")
    add("--mlir-disable-threading", action="store_true", help="nothing: there are no threads")
    for when in ("before", "after"):
        name = f"--mlir-print-ir-{when}"
        add(name, dest=when, action="extend", type=_names, default=[], metavar="PASSES")
        add(f"{name}-all", dest=f"{when}_all", action="store_true")
    for name, field, meaning in (
        ("ir-after-change", "after_change", "only where something changed"),
        ("ir-after-failure", "after_failure", "only after a pass that failed"),
        ("ir-module-scope", "module_scope", "print the whole module"),
        ("op-generic", "generic", "print in the generic form"),
        ("debuginfo", "debuginfo", "print locations"),
    ):
        add(f"--mlir-print-{name}", dest=field, action="store_true", help=meaning)
    folder = "--mlir-print-ir-tree-dir"
    add(folder, dest="tree_dir", default="", metavar="DIR", help="print into files")
    prefix = "--mlir-use-nameloc-as-prefix"
    add(prefix, dest="nameloc", action="store_true", help="name values after their locations")
    add("--mlir-print-local-scope", action="store_true", help="print without aliases")
    elided = "--mlir-elide-elementsattrs-if-larger"
    add(elided, dest="elide_above", type=int, metavar="N", help="elide constants")
    add("--version", action="store_true", help="print versions")
    return parser


class _Once(argparse.Action):
    """Takes the value of a flag that may stand once."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        given: set[str] = vars(namespace).setdefault("given", set())
        if option_string and self.dest in given:
            parser.error(f"for the {option_string} option: may only occur zero or one times!")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    given: list[str] = []
    for argument in argv:
        # MLIR's tools take -long-names too.
        if re.match(r"-[a-z]{2}[a-z-]*(=|$)", argument):
            argument = f"-{argument}"
        given.append(f"{argument}={_IMPLIED[argument]}" if argument in _IMPLIED else argument)
    parser = _parser()
    args, flags = parser.parse_known_args(given)
    if args.version:
        parser.exit(message=_versions())
    for flag in flags:
        if not flag.startswith("--"):
            parser.error(f"one input at a time; this is another: {flag}")
    if flags and args.pass_pipeline is not None:
        parser.error(f"give passes either by -p or by flags, not by both: {flags[0]}")
    if args.run_reproducer and (flags or args.pass_pipeline is not None):
        parser.error("--run-reproducer runs the pipeline of the file: give no passes")
    if args.emit_bytecode_version is not None and not args.emit_bytecode:
        parser.error("--emit-bytecode-version needs --emit-bytecode: give both")
    return args, flags


def _versions() -> str:
    from importlib import metadata

    stablehlo = _mlir.stablehlo.get_current_version()
    return (
        f"srjit {metadata.version('srjit')}, jax {metadata.version('jax')}, StableHLO {stablehlo}\n"
    )


def _of_flag(flag: str) -> pipeline.Pipeline:
    name, _, options = flag.removeprefix("--").partition("=")
    try:
        return pipeline.parse(f"{name}{{{options}}}" if options else name)
    except pipeline.PipelineSyntaxError as error:
        if not error.reason.startswith("unknown pass"):
            raise
        ours = [s for a in _parser()._actions for s in a.option_strings]  # pyright: ignore
        near = nearest(f"--{name}", [*ours, *(f"--{n}" for n in registry.names())])
        near = near or error.reason.removeprefix(f"unknown pass {name!r}")
        raise Failure(f"--{name} is neither a flag nor a pass{near}") from None


def _load_plugin(name: str) -> None:
    try:
        if not name.endswith(".py"):
            sys.path.insert(0, "")
            importlib.import_module(name)
            return
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    except Exception as error:  # whatever it is, it is the plugin's
        said = f"{type(error).__name__}: {error}"
        raise Failure(f"the plugin {name!r} cannot be loaded: {said}") from error


def _list_passes() -> None:
    for name in registry.names():
        try:
            cls = registry.find(name)
        except registry.UnknownPassError as error:
            print(f"{name}\n    cannot be loaded: {error}")
            continue
        print(f"{name}\n    {(cls.__doc__ or '').partition(chr(10))[0]}")
        for option in options_of(cls).values():
            print(f"    {option.name}={text_of_value(option, option.default)}")
    print("\nand every pass that MLIR knows: canonicalize, cse, symbol-dce, sccp, ...")


def _show_dialects() -> None:
    """Prints what MLIR knows; the bindings tell it only in a note about an unknown dialect."""
    said: list[Diagnostic] = []
    context = _mlir.new_context()
    with diagnostics.going_to(said.append, context):
        serialization.parse_in(context, "none.such")
    listed = re.search(r"Available dialects: (.*?)(?: \(\* |;)", "\n".join(map(str, said)))
    assert listed is not None
    print("Available Dialects:", *listed[1].replace(" (*)", "").split(", "), sep="\n")


# ------------------------------------------------------------------------------------- the programs


@dataclasses.dataclass(frozen=True)
class _Part:
    """A module of the input.

    Attributes:
      source: its text or bytecode.
      file: what the input is called.
      first_line: the number of its first line in the input.
      path: a file that holds just this, if there is one.
    """

    source: str | bytes
    file: str
    first_line: int = 1
    path: str | None = None

    @property
    def names(self) -> set[str]:
        """The names of the file in its locations."""
        return {"-", self.file, *([self.path] if self.path else [])}

    def line(self, number: int) -> str:
        if isinstance(self.source, bytes):
            return ""
        lines = self.source.split("\n")
        index = number - self.first_line
        return lines[index] if 0 <= index < len(lines) else ""


def _optimize(args: argparse.Namespace, passes: pipeline.Pipeline) -> bool:
    """True if all parts of the input went through; then their output has been written."""
    if args.dump_pass_pipeline:
        print(f"Pass Manager with {len(passes)} passes:\n{passes}\n", file=sys.stderr)
    parts = _read(args.input, args.split_input_file)
    output = OutputFile(args.output)
    context = _mlir.new_context()
    context.allow_unregistered_dialects = args.allow_unregistered_dialect
    succeeded = True
    for number, part in enumerate(parts):
        if number:
            output.write(f"{args.split_input_file}\n".encode())
        written, is_fine = _treat(part, context, passes, args)
        succeeded = succeeded and is_fine
        if written is not None:
            output.write(written)
    if succeeded:
        output.keep()
    return succeeded


def _read(name: str, mark: str | None) -> list[_Part]:
    path = None if name == "-" else name
    file = name if path else "<stdin>"
    try:
        raw = Path(path).read_bytes() if path else sys.stdin.buffer.read()
    except OSError as error:
        raise Failure(f"cannot read {file!r}: {error.strerror}") from error
    exported = serialization.exported_in(raw)
    raw = raw if exported is None else exported.mlir_module_serialized
    if raw.startswith(serialization.BYTECODE):
        if mark is not None:
            raise Failure(f"{file!r} is bytecode, which --split-input-file cannot split")
        return [_Part(raw, file)]
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Failure(f"{file!r} is neither bytecode nor UTF-8 text: {error}") from error
    if mark is None:
        return [_Part(text, file, path=path)]
    parts: list[_Part] = []
    line = 1
    # As MLIR does: the mark has a line for itself.
    for source in re.split(rf"^{re.escape(mark)}[^\S\n]*$\n?", text, flags=re.MULTILINE):
        parts.append(_Part(source, file, line))
        line += source.count("\n") + 1
    return parts


def _treat(
    part: _Part, context: ir.Context, passes: pipeline.Pipeline, args: argparse.Namespace
) -> tuple[bytes | None, bool]:
    """The output for one module, if it went through, and whether all is as it should be."""
    said: list[Diagnostic] = []

    def print_it(diagnostic: Diagnostic) -> None:
        print(_shown(diagnostic, part), file=sys.stderr)

    sink = said.append if args.verify_diagnostics else print_it
    verify_each = _BOOL[args.verify_each]
    if args.run_reproducer:
        text, found = reproducer.read(part.source, part.file)
        part = dataclasses.replace(part, source=text, path=None)
        passes, verify_each = pipeline.parse(found.pipeline), found.verify_each
    source = part.source if part.path is None else Path(part.path)
    if isinstance(source, str):  # so that MLIR counts lines from the beginning of the input
        source = "\n" * (part.first_line - 1) + source
    with diagnostics.going_to(sink, context):
        module = serialization.parse_in(context, source)
        if module is not None and args.verify_roundtrip and not round_trip.succeeds(module):
            module = None
    written = None
    if module is not None:
        fields = dataclasses.fields(running.Printing)
        printing = running.Printing(**{f.name: getattr(args, f.name) for f in fields})
        try:
            made = reproducer.Reproducer(str(passes), verify_each)
            with made.kept_on_failure(module, args.mlir_pass_pipeline_crash_reproducer):
                passes.run(
                    module,
                    verify_each=verify_each,
                    timing=args.mlir_timing,
                    statistics=args.mlir_pass_statistics,
                    printing=printing,
                    sink=sink,
                    entry=args.entry,
                )
            with diagnostics.going_to(sink, context):
                written = _serialized(module, args)
        except PipelineError as error:
            if not (args.verify_diagnostics or error.diagnostics):
                print(f"srjit-opt: {error}", file=sys.stderr)
            if args.mlir_print_stacktrace_on_diagnostic and error.__cause__:
                trace = "".join(traceback.format_exception(error.__cause__))
                print(f"note: diagnostic emitted with trace:\n{trace}", file=sys.stderr)
    if not args.verify_diagnostics:
        return written, written is not None
    return written, _are_expected(part, said, args.verify_diagnostics == "only-expected")


def _serialized(module: ir.Module, args: argparse.Namespace) -> bytes:
    if args.emit_portable_artifact:
        version = args.emit_portable_artifact
        if version == "current":
            version = _mlir.stablehlo.get_current_version()
        try:
            return _mlir.stablehlo.serialize_portable_artifact(module, version)
        except ValueError as error:
            raise Failure(f"no portable artifact of version {version}: {error}") from error
    if args.emit_bytecode:
        try:
            return serialization.bytecode_of(module, args.emit_bytecode_version)
        except (ir.MLIRError, ValueError) as error:
            raise Failure(
                f"no bytecode of version {args.emit_bytecode_version}: {error}"
            ) from error
    text = module.operation.get_asm(
        enable_debug_info=args.debuginfo,
        print_generic_op_form=args.generic,
        use_local_scope=args.mlir_print_local_scope,
        large_elements_limit=args.elide_above,
        use_name_loc_as_prefix=args.nameloc,
    )
    return f"{str(text).rstrip()}\n".encode()


# -------------------------------------------------------------------------------------- diagnostics


def _shown(diagnostic: Diagnostic, part: _Part) -> str:
    """A diagnostic with the line that it is about, as MLIR's tools print it."""
    own = diagnostic.file in part.names
    file = part.file if own else diagnostic.file
    if not file or not diagnostic.line:
        place = file or diagnostic.location.removeprefix("loc(").removesuffix(")")
        place = "<unknown>:0" if place == "unknown" else place
        shown = [f"{place}: {diagnostic.severity}: {diagnostic.message}"]
    else:
        line, column = diagnostic.line, diagnostic.column
        shown = [f"{file}:{line}:{column}: {diagnostic.severity}: {diagnostic.message}"]
        text = part.line(line) if own else linecache.getline(file, line).rstrip("\n")
        if text:
            shown.append(diagnostics.pointed_at(text, max(column - 1, 0)))
    return "\n".join([*shown, *(_shown(note, part) for note in diagnostic.notes)])


def _are_expected(part: _Part, said: list[Diagnostic], ignore_unexpected: bool) -> bool:
    source = part.source if isinstance(part.source, str) else ""
    wrong = expected_diagnostics.complaints(
        expected_diagnostics.expectations(source, part.first_line),
        said,
        part.names,
        ignore_unexpected=ignore_unexpected,
    )
    for line, message in wrong:
        place = f"{part.file}:{line}" if line else part.file
        print(f"{place}: error: {message}", file=sys.stderr)
        if text := part.line(line):
            print(text, file=sys.stderr)
    return not wrong


if __name__ == "__main__":
    sys.exit(main())
